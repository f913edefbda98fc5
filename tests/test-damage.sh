#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that damaged metadata is refused with a message.  It is never read as
# "invalid", which would bring back the source's old content.  Damage to one of
# the two superblocks does no harm.  This holds for both versions of the format.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 40M
cp "$tmp/src" "$tmp/model"
model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")
meta=$tmp/dest.clone

# 10240 regions of 4K: three sectors of the bitmap.
serve_clone "$tmp/src" destination="$tmp/dest" region-size=4K hydration=off
"${model[@]}" --writes 60
stop clone
cp "$meta" "$tmp/good"
size=$(stat -c %s "$meta")

flip ()
{
  cp "$tmp/good" "$meta"
  $python - "$meta" "$1" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    b = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([b ^ 0x10]))
PY
}

bad ()
{
  refused "$1" "$tmp/src" destination="$tmp/dest" hydration=off
}

for version in 2 1; do
  if [ $version -eq 1 ]; then
    $python "$srcdir/metadata.py" version-1 "$tmp/good"
  fi

  # One bit of the bitmap: in each sector, among the regions' bits and after
  # them.
  for offset in 8192 8500 8695 8696 8703 8704 9215 9216 9727; do
    flip $offset
    bad 'damage|corrupt|checksum|crc'
  done
  # A sector that was lost, or has another sector's content.
  cp "$tmp/good" "$meta"
  dd if=/dev/zero of="$meta" bs=512 seek=17 count=1 conv=notrunc status=none
  bad 'damage|corrupt|checksum|crc|bitmap'
  cp "$tmp/good" "$meta"
  dd if="$tmp/good" of="$meta" bs=512 skip=16 seek=17 count=1 conv=notrunc \
     status=none
  bad 'damage|corrupt|checksum|crc|bitmap'
  # Truncated.
  used=$((8192 + 3 * 512))
  test "$size" -ge $used
  for length in 0 1 511 512 4095 4096 4607 4608 8191 8192 8703 8704 \
                $((used - 512)) $((used - 1)); do
    cp "$tmp/good" "$meta"
    truncate -s $length "$meta"
    bad .
  done
  # Both superblocks are damaged in different ways; or both are gone, with a
  # destination that has data.
  flip 20
  dd if=/dev/zero of="$meta" bs=512 seek=8 count=1 conv=notrunc status=none
  bad 'damage|corrupt|checksum|crc|superblock|metadata'
  cp "$tmp/good" "$meta"
  dd if=/dev/zero of="$meta" bs=4608 count=1 conv=notrunc status=none
  bad .
  # No metadata at all.
  rm "$meta"
  bad .

  # One superblock is enough.
  for offset in 0 20 70 4096 4120 4300; do
    flip $offset
    serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
    "${model[@]}"
    stop clone
  done
  $python "$srcdir/metadata.py" decode "$meta" | jq -e ".version == $version"
done

cp "$tmp/good" "$meta"
serve_clone "$tmp/src" destination="$tmp/dest"
"${model[@]}"
wait_complete
stop clone
same "$tmp/dest" "$tmp/model"
