#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a clone hydrates to a right copy from sources that behave in
# unusual ways, or send extents beyond what was asked for, while clients change
# it; that it sends no request that a source does not allow; and that sources
# that cannot be used are refused.

. "$(dirname "$0")/functions.sh"

# Data, holes, and zeroes that are no hole; the size is no multiple of any block
# size.
make_disk "$tmp/src" 3145000
fallocate -p -o 1M -l 256K "$tmp/src" || skip "no holes in this file system"
fallocate -p -o 2M -l 300K "$tmp/src"
dd if=/dev/zero of="$tmp/src" bs=64K seek=26 count=3 conv=notrunc status=none

# right_copy SOURCE-OPTION...: a client sends unaligned requests while the clone
# hydrates from this source.
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

# Correct answers, in unusual forms.
right_copy --no-structured --no-go
right_copy --reads chunks --extents flags
# Replies in another order than that of the requests.
right_copy --reverse
fails grep 'overtaken: 0$' "$tmp/src.log"
right_copy --reverse --no-multi-conn --no-structured
fails grep 'overtaken: 0$' "$tmp/src.log"
# Block sizes: larger requests, and requests for parts of blocks, are
# violations.
right_copy --maximum 65536
right_copy --minimum 4096 --maximum 4096 --no-multi-conn
region_size=64K
right_copy --minimum 65536 --preferred 65536 --maximum 65536 --extents more
region_size=4K
# Extents that the protocol allows, and some that it does not.
for extents in short beyond empty nothing silence twice context error holes; do
  right_copy --extents $extents
done

# Impossible sizes.
rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/src.log"
for size in $((1 << 62)) 9223372036854775808 18446744073709551615; do
  : "source's size: $size"
  serve_odd src "$tmp/src" --size $size
  refused 'size' "$(uri src)" destination="$tmp/dest"
  stop src
done
