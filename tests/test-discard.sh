#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that bytes that the destination held before the clone never reach a
# client, after trims, zeroes and partial writes, with discard-passdown and
# without (I9).

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" $(((8 << 20) + 1000))

no_garbage ()
{
  fails grep -a -c 'garbage of old' "$1"
}

for passdown in true false; do
  for region_size in 4K 1M; do
    : "discard-passdown=$passdown region-size=$region_size"
    cp "$tmp/src" "$tmp/model"
    rm -f "$tmp/dest.clone"
    make_garbage "$tmp/dest" 9M
    serve_clone "$tmp/src" destination="$tmp/dest" create=always \
                region-size=$region_size discard-passdown=$passdown \
                hydration=off
    # Whole regions, one at the disk's short end, parts, and all at once.
    $python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size = h.get_size()
M = 1 << 20
h.trim(M, M)                            # one region of 1M
h.trim(2 * M + 100, 3 * M - 50)         # two and two parts
h.trim(size - 7 * M - 500, 7 * M + 500) # the end, in part
h.trim(1000, 8 * M)                     # the short last region
h.trim(10, 20)                          # a part
for offset in range(0, size, M):
    data = h.pread(min(M, size - offset), offset)
    if b"garbage of old" in data:
        sys.exit("the destination's old bytes at %d" % offset)
h.shutdown()
PY
    export_to clone "$tmp/out"
    no_garbage "$tmp/out"
    # Trimmed bytes are the source's or zero; all others are the source's.
    $python - "$tmp/src" "$tmp/out" <<'PY'
import sys
src = open(sys.argv[1], "rb").read()
out = open(sys.argv[2], "rb").read()
M = 1 << 20
trimmed = [(M, 2 * M), (3 * M - 50, 5 * M + 50), (7 * M + 500, len(src)),
           (20, 30)]
assert len(src) == len(out)
at = 0
for start, end in sorted(trimmed) + [(len(src), len(src))]:
    assert src[at:start] == out[at:start], "changed in %d-%d" % (at, start)
    assert all(o in (0, s) for s, o in zip(src[start:end], out[start:end]))
    at = end
# A trim of part of an invalid region does nothing.
assert src[20:30] == out[20:30]
PY
    cp "$tmp/out" "$tmp/model"
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 200 \
            --seed 5 --kinds read,write,zero,trim,extents
    control POST /resume
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100 \
            --seed 6 --kinds read,write,zero,trim,extents
    wait_complete
    export_to clone "$tmp/out"
    same "$tmp/out" "$tmp/model"
    no_garbage "$tmp/out"
    stop clone
    head -c $(((8 << 20) + 1000)) "$tmp/dest" >"$tmp/alone"
    same "$tmp/alone" "$tmp/model"
  done
done

# A trim frees space if it is passed down, and else does not.
rm -f "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest"
wait_complete
qemu-io -f raw -d unmap -c 'discard 0 8M' "$(uri clone)"
stop clone
test "$(stat -c %b "$tmp/dest")" -le $((1 << 11))
rm -f "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest" discard-passdown=false
wait_complete
qemu-io -f raw -d unmap -c 'discard 0 8M' "$(uri clone)"
stop clone
test "$(stat -c %b "$tmp/dest")" -ge $((8 << 11))
