#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a loop device over a file, and a partition of a disk, are
# recognised as what they are a part of: source, destination and metadata that
# share bytes are refused in any order, also with create=always, and nothing is
# written.  Halves of one file or disk are different.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/src.orig"
truncate -s 1M "$tmp/m"
attach "$tmp/src"; one=$loop
attach "$tmp/src"; two=$loop
attach -o 1M --sizelimit 4M "$tmp/src"; first=$loop
attach -o 5M --sizelimit 3M "$tmp/src"; second=$loop
attach "$one"; stacked=$loop

# both_refused A B: whichever of them is the source.
both_refused ()
{
  refused 'are the same' "$1" destination="$2" metadata="$tmp/m" create=always
  refused 'are the same' "$2" destination="$1" metadata="$tmp/m" create=always
  same "$tmp/src" "$tmp/src.orig"
}

both_refused "$tmp/src" "$one"
both_refused "$one" "$two"
both_refused "$tmp/src" "$first"
both_refused "$one" "$second"
both_refused "$tmp/src" "$stacked"
both_refused "$one" "$stacked"
both_refused "$stacked" "$two"

# Metadata.
attach "$tmp/m"; m=$loop
refused 'are the same' "$tmp/src" destination="$tmp/d" metadata="$one" \
        create=always
refused 'are the same' "$one" destination="$tmp/d" metadata="$tmp/src" \
        create=always
refused 'are the same' "$tmp/src" destination="$tmp/m" metadata="$m" \
        create=always
refused 'are the same' "$tmp/src" destination="$m" metadata="$tmp/m" \
        create=always

# Parts that share no byte work, even if they have one file below.
truncate -s 12M "$tmp/both"
dd if="$tmp/src" of="$tmp/both" bs=1M count=6 conv=notrunc status=none
attach --sizelimit 6M "$tmp/both"; left=$loop
attach -o 6M "$tmp/both"; right=$loop
serve_clone "$left" destination="$right" metadata="$tmp/meta"
wait_complete
stop clone
blockdev --flushbufs "$right"
cmp -n $((6 << 20)) -i 6M:0 "$tmp/both" "$tmp/src"

# A backing device with a minor number of more than eight bits.  loop_control
# COMMAND: LOOP_CTL_ADD or LOOP_CTL_REMOVE.
minor=$((1000 + $$ % 10000))
loop_control ()
{
  $python - "$1" $minor 2>/dev/null <<'PY'
import fcntl, os, sys
fcntl.ioctl(os.open("/dev/loop-control", os.O_RDWR),
            {"add": 0x4C80, "remove": 0x4C81}[sys.argv[1]], int(sys.argv[2]))
PY
}
if loop_control add; then
  at_exit () { loop_control remove; }
  losetup /dev/loop$minor "$tmp/src"
  loops+=(/dev/loop$minor)
  attach /dev/loop$minor
  both_refused "$tmp/src" /dev/loop$minor
  both_refused "$tmp/src" "$loop"
  both_refused /dev/loop$minor "$loop"
  both_refused "$two" "$loop"
fi

# A partition and its disk; two partitions.
truncate -s 64M "$tmp/parted"
$python "$srcdir/partitions.py" mbr "$tmp/parted"
cp "$tmp/parted" "$tmp/parted.orig"
attach -P "$tmp/parted"; disk=$loop
# Not all kernels read the table.
partx -a "$disk" || :
if [ -b "${disk}p1" ] && [ -b "${disk}p2" ]; then
  attach "$tmp/parted"; again=$loop
  for other in "$disk" "$again" "$tmp/parted" "${disk}p1"; do
    refused 'are the same' "${disk}p1" destination="$other" \
            metadata="$tmp/m" create=always
    refused 'are the same' "$other" destination="${disk}p1" \
            metadata="$tmp/m" create=always
  done
  same "$tmp/parted" "$tmp/parted.orig"
  serve_clone "${disk}p1" destination="${disk}p2" metadata="$tmp/meta2"
  wait_complete
  stop clone
fi
