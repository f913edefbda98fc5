#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that source, destination and metadata may be block devices, that such a
# destination needs metadata=, and that the devices are locked.

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
