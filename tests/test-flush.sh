#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the regions of a flushed write, or of a write with FUA, are
# durable, bits included: when the server is killed right after it, the next
# server finds their bits in the metadata (I6).  (It finds other valid bits in
# shared memory, see test-inherit.sh.)  Also proves that flushes with nothing to
# commit do not touch the metadata.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M
cp "$tmp/src" "$tmp/model"
# The periodic commit must not do the work of a flush.
args=("$tmp/src" destination="$tmp/dest" region-size=64K hydration=off
      commit-interval=3600)

serve_clone "${args[@]}"
status_is '.hydrated == 0 and .durable == 0'
qemu-io -f raw -c 'write -P 1 0 64k' "$(uri clone)"
# qemu-io flushes at its end.
status_is '.hydrated == 1 and .durable == 1'
kill9 clone
serve_clone "${args[@]}"
status_is '.durable >= 1'

$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"3" * 65536, 131072)
h.flush()
h.pwrite(b"4" * 10, 1 << 20, nbd.CMD_FLAG_FUA)
h.zero(65536, 2 << 20, nbd.CMD_FLAG_FUA)
h.trim(65536, 3 << 20, nbd.CMD_FLAG_FUA)
PY
hydrated=$(status .hydrated)
status_is '.durable >= 4'
kill9 clone
serve_clone "${args[@]}"
status_is ".durable >= 4 and .hydrated <= $hydrated"
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.pread(65536, 131072) == b"3" * 65536
assert h.pread(10, 1 << 20) == b"4" * 10
assert not any(h.pread(65536, 2 << 20))
h.flush()
PY

# Nothing is dirty now: neither flush nor FUA touches the metadata.
before=$(md5sum <"$tmp/dest.clone"; stat -c %y "$tmp/dest.clone")
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(20):
    h.pwrite(b"5" * 65536, 131072, nbd.CMD_FLAG_FUA)
    h.flush()
PY
control GET /status
test "$before" = "$(md5sum <"$tmp/dest.clone"; stat -c %y "$tmp/dest.clone")"
stop clone

# The periodic commit makes writes durable that no client flushes.
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off commit-interval=1
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"6" * 65536, 3 << 19)
PY
hydrated=$(status .hydrated)
eventually status_is ".durable == $hydrated"
kill9 clone
serve_clone "${args[@]}"
status_is ".durable == $hydrated"
