#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a clone hydrates to a right copy from sources that are odd, or lie
# about their extents beyond what was asked, while clients change it; that it
# asks them for nothing that they do not allow; and that those of which it can
# make nothing are refused.

. "$(dirname "$0")/functions.sh"

# Data, holes, and zeroes that are none; not a multiple of any block.
make_disk "$tmp/src" 3145000
fallocate -p -o 1M -l 256K "$tmp/src" || skip "no holes in this file system"
fallocate -p -o 2M -l 300K "$tmp/src"
dd if=/dev/zero of="$tmp/src" bs=64K seek=26 count=3 conv=notrunc status=none

# right_copy SOURCE-OPTION...: with unaligned requests of a client before and
# during hydration.
region_size=4K
right_copy ()
{
  : "source: $*"
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/src.log"
  cp "$tmp/src" "$tmp/model"
  serve_odd src "$tmp/src" "$@"
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=$region_size \
              hydration-rate=256K hydration-batch-size=64K
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 30 \
          --max-length 300000
  set_settings '{"hydration-rate": 0, "hydration-batch-size": 1048576}'
  wait_complete
  stop clone
  same "$tmp/dest" "$tmp/model"
  stop src
  cat "$tmp/src.log"
  fails grep violation "$tmp/src.log"
}

# Each answers with what is true, in its own way.
right_copy --no-structured --no-go
right_copy --reads chunks --extents flags
# Replies in another order than the requests.
right_copy --reverse
fails grep 'overtaken: 0$' "$tmp/src.log"
right_copy --reverse --no-multi-conn --no-structured
fails grep 'overtaken: 0$' "$tmp/src.log"
# Blocks: larger requests, and those of parts of blocks, are violations.
right_copy --maximum 65536
right_copy --minimum 4096 --maximum 4096 --no-multi-conn
region_size=64K
right_copy --minimum 65536 --preferred 65536 --maximum 65536 --extents more
region_size=4K
# Extents, as far as the protocol goes and beyond it.
for extents in short beyond empty nothing silence twice context error holes; do
  right_copy --extents $extents
done

# Sizes that cannot be.
rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/src.log"
for size in $((1 << 62)) 9223372036854775808 18446744073709551615; do
  : "source's size: $size"
  serve_odd src "$tmp/src" --size $size
  refused 'size' "$(uri src)" destination="$tmp/dest"
  stop src
done
