#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the source is never written to; that hydration reads each byte of
# its data once and its holes not at all, also when it is stopped in the middle
# with many reads under way, and started again (P11); and that a write of whole
# regions reads nothing from the source, and one of partial regions only the
# bytes around it.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 16M
fallocate -p -o 8M -l 4M "$tmp/src" || skip "no holes in this file system"
cp "$tmp/src" "$tmp/model"
# Writable, so that a write would be seen.
serve src --filter=log file "$tmp/src" logfile="$tmp/src.requests"
before=$(md5sum <"$tmp/src"; stat -c %Y "$tmp/src")

# Bytes read from the source since the last call.
source_reads ()
{
  reads src | bytes_of
  : >"$tmp/src.requests"
}

serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K hydration=off
source_reads # the fingerprint

# Whole regions: write, zero and trim.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -d unmap -c 'write -P 1 0 1M' -c 'write -P 2 1M 64k' \
          -c 'write -z 2M 192k' -c 'discard 3M 64k' "$f"
done
test "$(source_reads)" -eq 0
# A fast zero does not read the rest of a region either: it is refused.
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
# Valid regions are read from the destination.
qemu-io -f raw -c 'read -P 1 0 1M' -c 'read -P 2 1M 64k' \
        -c 'read -P 0 2M 192k' "$(uri clone)"
test "$(source_reads)" -eq 0
# A part of one region: its other bytes are read.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 3 5242880 1000' "$f"
done
test "$(source_reads)" -le $((65536 - 1000))
# Four regions, of which only the first and the last are not whole.
for f in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 4 6299648 204800' "$f"
done
test "$(source_reads)" -le $((2 * 65536))

# 16M without the hole, and without the 27 regions above.
control POST /resume
wait_complete
test "$(reads src | bytes_again)" -eq 0
test "$(source_reads)" -eq $(((12 << 20) - 27 * 65536))
export_to clone "$tmp/out"
stop clone
test "$(source_reads)" -eq 0
# The trim may have left the old bytes.
for f in "$tmp/dest" "$tmp/model"; do
  qemu-io -f raw -c 'write -P 0 3M 64k' "$f"
done
same "$tmp/dest" "$tmp/model"
same "$tmp/out" "$tmp/dest"

# A complete clone does not even connect.
: >"$tmp/src.requests"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K
qemu-io -f raw -c 'read 0 16M' -c 'write 0 1M' "$(uri clone)"
stop clone
test ! -s "$tmp/src.requests"
stop src
fails grep -E 'Write|Zero|Trim' "$tmp/src.requests"
test "$before" = "$(md5sum <"$tmp/src"; stat -c %Y "$tmp/src")"

# A restart in the middle, with as many reads under way as there may be, reads
# nothing a second time.
rm "$tmp/dest" "$tmp/dest.clone"
serve_pausable src file "$tmp/src"
args=("$(uri src)" destination="$tmp/dest" hydration=off
      hydration-threshold=4M hydration-batch-size=256K)
: >"$tmp/clone.log"
serve_clone "${args[@]}" hydration-rate=256K
: >"$tmp/src.requests"
control POST /resume
eventually status_is '.bytes_hydrated > 0'
control POST /pause
eventually status_is '.hydrating == 0'
reads src >"$tmp/reads"
hold src
: >"$tmp/src.requests"
set_settings '{"hydration-rate": 0}'
control POST /resume
# The threshold allows 16, but workers that share it may leave some of it
# unused.
many_are_held () { [ "$(requests src Read)" -ge 13 ]; }
eventually many_are_held
# The process is told to end.  When it has begun to, the source answers, at
# once: it is given up after a second.
$python - "$(cat "$tmp/clone.pid")" "$tmp/clone.log" "$tmp/src.pause" <<'PY'
import os, signal, socket, sys, time
with socket.socket(socket.AF_UNIX) as s, open(sys.argv[2]) as log:
    s.connect(sys.argv[3])
    os.kill(int(sys.argv[1]), signal.SIGTERM)
    text = ""
    while "shutting down" not in text:
        text += log.read()
        time.sleep(0.001)
    s.send(b"r")
    if s.recv(1) != b"R":
        sys.exit("the pause filter does not obey")
PY
reap clone "$(cat "$tmp/clone.pid")"
reads src >>"$tmp/reads"
test "$(bytes_of <"$tmp/reads")" -lt $((12 << 20))

serve_clone "${args[@]}"
: >"$tmp/src.requests" # the fingerprint
control POST /resume
wait_complete
stop clone
reads src >>"$tmp/reads"
test "$(bytes_again <"$tmp/reads")" -eq 0
test "$(bytes_of <"$tmp/reads")" -eq $((12 << 20))
same "$tmp/dest" "$tmp/src"
