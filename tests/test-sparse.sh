#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that holes stay holes: hydration does not fill them, and copies of the
# clone by nbdcopy and qemu-img, hydrated or not, are sparse and right.

. "$(dirname "$0")/functions.sh"

requires_command qemu-img
truncate -s 256M "$tmp/src"
for mb in 0 1 25 127 255; do
  make_disk "$tmp/data" 1M $((mb + 1))
  dd if="$tmp/data" of="$tmp/src" bs=1M seek=$mb conv=notrunc status=none
done
# Zeroes that are not a hole.
dd if=/dev/zero of="$tmp/src" bs=1M seek=50 count=4 conv=notrunc status=none
max=$((9 << 11)) # 512 byte sectors
test "$(stat -c %b "$tmp/src")" -le $((10 << 11)) ||
  skip "no holes in this file system"
serve src file "$tmp/src"

copies_are_sparse ()
{
  export_to clone "$tmp/out"
  cmp "$tmp/out" "$1"
  test "$(stat -c %b "$tmp/out")" -le $2
  rm "$tmp/out"
  qemu-img convert -f raw -O raw "$(uri clone)" "$tmp/out"
  cmp "$tmp/out" "$1"
  test "$(stat -c %b "$tmp/out")" -le $2
  rm "$tmp/out"
  # Block status reports little more data than there is.
  test "$(nbdinfo --map --json "$(uri clone)" |
            jq '[.[] | select(.type == 0) | .length] | add')" \
       -le $(($2 * 512))
}

for source in "$(uri src)" "$tmp/src"; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  cp --sparse=always "$tmp/src" "$tmp/model"
  serve_clone "$source" destination="$tmp/dest" hydration=off
  copies_are_sparse "$tmp/model" $((max + (4 << 11)))
  # A hole in data, a hole in a hole, and data in a hole.
  for f in "$(uri clone)" "$tmp/model"; do
    qemu-io -f raw -d unmap -c 'write -P 3 75M 64k' \
            -c 'write -z -u 25M 512k' -c 'write -z -u 150M 25M' "$f"
  done
  copies_are_sparse "$tmp/model" $((max + (4 << 11)))
  control POST /resume
  wait_complete
  copies_are_sparse "$tmp/model" $((max + (4 << 11)))
  stop clone
  cmp "$tmp/dest" "$tmp/model"
  # Zeroes in the source became holes, too.
  test "$(stat -c %b "$tmp/dest")" -le $max
done

# A server without block status: zeroes are found by reading them.
rm -f "$tmp/dest" "$tmp/dest.clone"
stop src
serve src --filter=noextents file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest"
wait_complete
stop clone
cmp "$tmp/dest" "$tmp/src"
test "$(stat -c %b "$tmp/dest")" -le $max

# Block status of a large disk does not cost a round trip for each request: many
# requests are in flight at once, and no range is asked for twice.
rm -f "$tmp/dest" "$tmp/dest.clone"
truncate -s 256G "$tmp/large"
make_disk "$tmp/data" 1M
dd if="$tmp/data" of="$tmp/large" bs=1M seek=200000 conv=notrunc status=none
serve large --filter=log --filter=delay file "$tmp/large" \
      logfile="$tmp/large.requests" delay-extents=50ms
serve_clone "$(uri large)" destination="$tmp/dest"
wait_complete
stop clone
read -r questions at_once < <(awk '
  / Extents id=/ { all++; if (++n > max) max = n }
  / \.\.\.Extents id=/ { n-- }
  END { print all, max }' "$tmp/large.requests")
test "$questions" = 86
test "$at_once" -ge 8
cmp <(dd if="$tmp/dest" bs=1M skip=200000 count=1 status=none) "$tmp/data"
test "$(stat -c %b "$tmp/dest")" -le $((3 << 11))
