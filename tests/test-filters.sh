#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdkit's filters work on top of the clone, and that a clone can be
# the source, and the destination, of another one.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/model"

# The export of a filter: the second half of the disk.
serve top --filter=offset "$plugin" "$tmp/src" destination="$tmp/dest" \
      offset=4M hydration=off
tail -c 4M "$tmp/model" >"$tmp/half"
$python "$srcdir/model.py" "$tmp/half" "$(uri top)" --ops 100
stop top
head -c 4M "$tmp/model" >"$tmp/new"
cat "$tmp/half" >>"$tmp/new"
mv "$tmp/new" "$tmp/model"

serve below "$plugin" "$tmp/src" destination="$tmp/dest"
serve_clone "$(uri below)" destination="$tmp/dest2" region-size=64K
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100
wait_complete
stop clone
same "$tmp/dest2" "$tmp/model"
stop below

rm "$tmp/dest" "$tmp/dest.clone" "$tmp/dest2" "$tmp/dest2.clone"
truncate -s 8M "$tmp/empty"
cp "$tmp/src" "$tmp/model"
serve below "$plugin" "$tmp/empty" destination="$tmp/dest" region-size=4K
serve_clone "$tmp/src" destination="$(uri below)" metadata="$tmp/meta" \
            region-size=64K
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100
wait_complete
stop clone
stop below
same "$tmp/dest" "$tmp/model"

# With nbdkit -r clients cannot write, and hydration goes on.
rm "$tmp/dest" "$tmp/dest.clone"
nbdkit_args=(-r)
serve_clone "$tmp/src" destination="$tmp/dest"
fails qemu-io -f raw -c 'write 0 1' "$(uri clone)"
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
