#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the map of a fragmented, half valid clone, as nbdinfo prints it,
# shows no data as zero, and holes where source and destination have them; that
# a client which asks for one extent at a time, for small ranges, or while it
# writes, gets the same map; that copies made with the map are right; and that
# all this costs few questions to the source, whose number does not depend on
# the number of extents.

. "$(dirname "$0")/functions.sh"

requires_command nbdinfo qemu-img
size=$((32 << 20))

# Holes and data in turns, 64K each.
make_disk "$tmp/src" $size
for ((i = 0; i < size; i += 128 << 10)); do
  fallocate -p -o $i -l 64K "$tmp/src" 2>/dev/null ||
    skip "no holes in this file system"
done
serve src --filter=log file "$tmp/src" logfile="$tmp/src.requests"

# Say what is wrong with $tmp/map, a map as nbdinfo prints it, of a disk that
# must be $tmp/model.  $1 is 1 if the map must show every block of zeroes.
check_map ()
{
  $python - "$tmp/map" "$tmp/model" "$1" <<'PY'
import json, sys
BLOCK = 4096
with open(sys.argv[1]) as f:
    extents = json.load(f)
with open(sys.argv[2], "rb") as f:
    model = f.read()
at = missed = 0
for e in extents:
    if e["offset"] != at:
        sys.exit("the map has a gap at %d" % at)
    at += e["length"]
    part = model[e["offset"]:at]
    if e["type"] & 2:
        if part.count(0) != len(part):
            sys.exit("%d+%d is data, not zero" % (e["offset"], e["length"]))
    else:
        missed += sum(part[i:i + BLOCK].count(0) == BLOCK
                      for i in range(0, len(part), BLOCK))
if at != len(model):
    sys.exit("the map ends at %d" % at)
if missed and int(sys.argv[3]):
    sys.exit("%d blocks are zero, and not in the map" % missed)
PY
}

# map_by ONE LENGTH WRITES: print the map as a client gets it that asks for one
# extent (1) or all (0) of LENGTH bytes, and between its questions writes a byte
# that the disk has anyway (1), or does not (0).
map_by ()
{
  $python - "$(uri clone)" "$@" <<'PY'
import json, nbd, sys
one, length, writes = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
size, at, extents = h.get_size(), 0, []
byte = h.pread(1, size - 1)

def extent(context, offset, entries, error):
    global at
    for n, flags in zip(entries[::2], entries[1::2]):
        extents.append({"offset": at, "length": n, "type": flags})
        at += n
    return 0

while at < size:
    if writes:
        h.pwrite(byte, size - 1)
    h.block_status(min(length, size - at), at, extent,
                   nbd.CMD_FLAG_REQ_ONE if one else 0)
h.shutdown()
print(json.dumps(extents))
PY
}

# check_maps EXACT: see check_map.
check_maps ()
{
  local how count
  for how in "1 $size 0" "0 65536 0" "1 65536 0" "1 $size 1" "0 65536 1"; do
    : "$how"
    count=$(requests src Extents)
    map_by $how >"$tmp/map"
    check_map $1
    test $(($(requests src Extents) - count)) -le 10
  done
  : "nbdinfo"
  nbdinfo --map --json "$(uri clone)" >"$tmp/map"
  check_map $1
  : "copies"
  export_to clone "$tmp/out"
  cmp "$tmp/out" "$tmp/model"
  qemu-img convert -f raw -O raw "$(uri clone)" "$tmp/out"
  cmp "$tmp/out" "$tmp/model"
  rm "$tmp/out"
}

cp --sparse=always "$tmp/src" "$tmp/model"
serve_clone "$(uri src)" destination="$tmp/dest" hydration=off
check_maps 1

# Data, holes, and holes in data, of 4K each.
$python - "$(uri clone)" "$tmp/model" <<'PY'
import nbd, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rand = random.Random(1)
blocks = rand.sample(range(h.get_size() // 4096), 2000)
with open(sys.argv[2], "r+b") as model:
    for i, block in enumerate(blocks):
        model.seek(block * 4096)
        if i % 4 == 0:
            h.zero(4096, block * 4096)
            model.write(bytes(4096))
        else:
            data = rand.randbytes(4096)
            h.pwrite(data, block * 4096)
            model.write(data)
h.shutdown()
PY
check_maps 1

# Half of it hydrated, and all of it.  A copy does not make a hole of every
# block of zeroes.
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for offset in range(0, h.get_size(), 192 << 10):
    h.cache(min(96 << 10, h.get_size() - offset), offset)
h.shutdown()
PY
check_maps 0
control POST /resume
wait_complete
check_maps 0
