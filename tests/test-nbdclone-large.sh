#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone reads the metadata of 64 TiB quickly, in memory that does
# not grow with it; that no bits of region numbers and offsets are lost; and
# that thousands of damaged sectors make a message of bounded length.

. "$(dirname "$0")/functions.sh"
not_under asan tsan valgrind "it measures time and memory"

nbdclone=$(program tools/nbdclone)
meta=$tmp/meta

# 2^30 regions, 266306 sectors of the bitmap, 130 MiB.
serve src null size=64T
serve dest memory size=64T
serve_clone source="$(uri src)" destination="$(uri dest)" metadata="$meta" \
            region-size=64K hydration=off
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
T = 1 << 40
for offset in (0, 33 * T, 64 * T - 65536):
    h.pwrite(bytes([1]) * 65536, offset)
h.flush()
PY
stop clone

# limited STATUS COMMAND...: it has this exit status, within a minute and 64 MiB
# of memory.
limited ()
{
  $python - "$nbdclone" "$@" >"$tmp/out" <<'PY'
import resource, subprocess, sys
p = subprocess.run([sys.argv[1], *sys.argv[3:]], timeout=60)
assert p.returncode == int(sys.argv[2]), p
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("%d KiB" % used, file=sys.stderr)
assert used < 64 << 10, used
PY
}

limited 0 check "$meta"
grep '3 of 1073741824 regions' "$tmp/out"
limited 0 dump --json "$meta"
jq -e '.size == 70368744177664 and .runs == [
         {first: 0, count: 1, state: "valid"},
         {first: 553648128, count: 1, state: "valid"},
         {first: 1073741823, count: 1, state: "valid"}]' "$tmp/out"
limited 0 repair "$meta" "$tmp/new"
limited 0 check "$tmp/new"
limited 0 dump "$tmp/new"
grep '^  553648128 valid' "$tmp/out"
rm "$tmp/new"

# Every other one of the first 20,000 sectors is damaged, and the store is cut
# off after 100,000.
$python - "$meta" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    for s in range(0, 20000, 2):
        f.seek(8192 + 512 * s)
        f.write(bytes(512))
    f.truncate(8192 + 512 * 100000)
PY
limited 1 check "$meta"
test "$(wc -l <"$tmp/out")" -eq 103
grep 'and 176206 more bitmap sectors' "$tmp/out"
limited 1 check --all "$meta"
test "$(wc -l <"$tmp/out")" -eq 10003
grep 'bitmap sectors 100000..266305 .* regions 403200000..1073741823, bytes 26424115200000..70368744177663 ' "$tmp/out"
limited 1 dump --json "$meta"
jq -e '.damaged_bitmap_sectors == 176306 and (.runs | length) == 10001' \
   "$tmp/out"
limited 0 repair --unknown=invalid "$meta" "$tmp/new"
limited 0 check "$tmp/new"
grep ' 0 of 1073741824 regions' "$tmp/out"
