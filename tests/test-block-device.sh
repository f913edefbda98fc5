#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that source, destination and metadata may be block devices, that such a
# destination needs metadata=, that the devices are locked, and that a read-only
# device is refused as destination and as metadata.  And that sectors of 512 and
# of 4096 bytes work, over old data.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/model"
truncate -s 8M "$tmp/d"
truncate -s 1M "$tmp/m"

attach -r "$tmp/src"; src=$loop
attach "$tmp/d"; d=$loop
attach "$tmp/m"; m=$loop

refused metadata "$src" destination="$d"
refused 'same|both' "$d" destination="$d" metadata="$m"

# Devices that are read-only from the start, or were made so.
attach -r "$tmp/d"; readonly_d=$loop
attach -r "$tmp/m"; readonly_m=$loop
refused 'destination.*read-only.*blockdev --setrw' "$src" \
        destination="$readonly_d" metadata="$m" create=always
refused 'metadata.*read-only.*blockdev --setrw' "$src" destination="$d" \
        metadata="$readonly_m" create=always
blockdev --setro "$d"
refused 'destination.*read-only' "$src" destination="$d" metadata="$m"
blockdev --setrw "$d"

args=("$src" destination="$d" metadata="$m" region-size=64K)
serve_clone "${args[@]}" hydration=off
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100
refused 'lock|in use' "${args[@]}"
stop clone
serve_clone "${args[@]}"
status_is '.durable > 0'
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100 --seed 2
wait_complete
stop clone
blockdev --flushbufs "$d"
same "$tmp/d" "$tmp/model"

# Devices whose backing file can have holes punched, and that cannot be zeroed in
# parts of sectors.
for sector in 512 4096; do
  for passdown in true false; do
    : "sectors of $sector bytes, discard-passdown=$passdown"
    make_disk "$tmp/src2" 8M
    dd if=/dev/zero of="$tmp/src2" bs=64K seek=32 count=32 conv=notrunc \
       status=none
    cp "$tmp/src2" "$tmp/model"
    make_garbage "$tmp/d2" 8M
    rm -f "$tmp/meta"
    attach -b $sector "$tmp/d2"
    args=("$tmp/src2" destination="$loop" metadata="$tmp/meta" create=always
          discard-passdown=$passdown)
    serve_clone "${args[@]}" hydration=off
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100
    control POST /resume
    wait_complete
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50 --seed 2
    stop clone
    blockdev --flushbufs "$loop"
    same "$tmp/d2" "$tmp/model"
    losetup -d "$loop"
  done
done
