#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the source is never written to; that hydration reads its data
# once, and its holes not at all; that a write of whole regions reads nothing
# from it, and one of parts only the bytes around it.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 16M
fallocate -p -o 8M -l 4M "$tmp/src" || skip "no holes in this file system"
cp "$tmp/src" "$tmp/model"
# Writable, so that a write would be seen.
serve src --filter=log file "$tmp/src" logfile="$tmp/requests"
before=$(md5sum <"$tmp/src"; stat -c %Y "$tmp/src")

# Bytes read from the source since the last call.
source_reads ()
{
  $python - "$tmp/requests" <<'PY'
import re, sys
print(sum(int(m.group(1), 0) for m in
          re.finditer(r" Read id=\d+ offset=\S+ count=(\S+)",
                      open(sys.argv[1]).read())))
PY
  : >"$tmp/requests"
}

serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K hydration=off
source_reads # the fingerprint

# Whole regions: write, zero and trim.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -d unmap -c 'write -P 1 0 1M' -c 'write -P 2 1M 64k' \
          -c 'write -z 2M 192k' -c 'discard 3M 64k' "$f"
done
test "$(source_reads)" -eq 0
# A fast zero does not read the rest of a region either, it is refused.
$python - "$(uri clone)" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"1" * 65536, 4 << 20)
if not h.can_fast_zero():
    sys.exit(0)
try:
    h.zero(1000, 14 << 20, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as e:
    if e.errnum not in (errno.EOPNOTSUPP, errno.ENOTSUP):
        raise
else:
    sys.exit("a fast zero of part of an invalid region succeeded")
PY
$python - "$tmp/model" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(4 << 20)
    f.write(b"1" * 65536)
PY
test "$(source_reads)" -eq 0
# What is valid is read from the destination.
qemu-io -f raw -c 'read -P 1 0 1M' -c 'read -P 2 1M 64k' \
        -c 'read -P 0 2M 192k' "$(uri clone)"
test "$(source_reads)" -eq 0
# One region in part: its other bytes.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 3 5242880 1000' "$f"
done
test "$(source_reads)" -le $((65536 - 1000))
# Four regions, of which only the first and the last are not whole.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 4 6299648 204800' "$f"
done
test "$(source_reads)" -le $((2 * 65536))

# 16M without the hole, what was written, and the two regions in part.
control POST /resume
wait_complete
n=$(source_reads)
test "$n" -le $(((12 << 20) - (1 << 20) - 5 * 65536 - 5 * 65536))
test "$n" -gt $((10 << 20))
export_to clone "$tmp/out"
stop clone
test "$(source_reads)" -eq 0
# The trim may have left what was there.
for f in "$tmp/dest" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 0 3M 64k' "$f"
done
same "$tmp/dest" "$tmp/model"
same "$tmp/out" "$tmp/dest"

# A complete clone does not even connect.
: >"$tmp/requests"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K
qemu-io -f raw -c 'read 0 16M' -c 'write 0 1M' "$(uri clone)"
stop clone
test ! -s "$tmp/requests"
stop src
fails grep -E 'Write|Zero|Trim' "$tmp/requests"
test "$before" = "$(md5sum <"$tmp/src"; stat -c %Y "$tmp/src")"

# A restart in the middle does not begin anew.
rm "$tmp/dest" "$tmp/dest.clone"
: >"$tmp/requests"
serve src --filter=log file "$tmp/src" logfile="$tmp/requests"
serve_clone "$(uri src)" destination="$tmp/dest" hydration-rate=2M
eventually status_is '.bytes_hydrated > 3000000'
stop clone
serve_clone "$(uri src)" destination="$tmp/dest"
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
# 1 % more than the data, and two fingerprints of 128K.
test "$(source_reads)" -le $(((12 << 20) * 101 / 100 + (256 << 10)))
