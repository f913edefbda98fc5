#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that source, destination and metadata may be block devices, that such a
# destination needs metadata=, that the devices are locked, and that a read-only
# device is refused as destination and as metadata.

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
