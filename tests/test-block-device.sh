#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that source, destination and metadata may be block devices, that such a
# destination needs metadata=, and that the devices are locked.

. "$(dirname "$0")/functions.sh"

requires_command losetup
make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/model"
truncate -s 8M "$tmp/d"
truncate -s 1M "$tmp/m"

loops=()
at_exit ()
{
  local l
  for l in "${loops[@]}"; do losetup -d "$l"; done
}
loop ()
{
  dev=$(losetup -f --show "$@" 2>/dev/null) ||
    skip "cannot make a loop device"
  loops+=("$dev")
}
loop -r "$tmp/src"; src=$dev
loop "$tmp/d"; d=$dev
loop "$tmp/m"; m=$dev

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
