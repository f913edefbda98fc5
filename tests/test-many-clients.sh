#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that 64 clients with 16 requests each, for a source that does not
# answer, do not hold up a client on another connection that does not need the
# source, and that all of them get the right bytes when the source answers.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
clients=$(fewer 64)
make_disk "$tmp/src" 8M
serve_pausable src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K hydration=off
qemu-io -f raw -c 'write -P 1 7M 1M' "$(uri clone)"
hold src
before=$(requests src Read)

cat >"$tmp/clients.py" <<'PY'
import nbd, os, sys
disk = open(sys.argv[1], "rb").read()
clients = []
for i in range(int(sys.argv[3])):
    h = nbd.NBD()
    h.connect_uri(sys.argv[2])
    clients.append(h)
reads = []
for n, h in enumerate(clients):
    for k in range(16):
        offset = (n * 16 + k) * 5000
        buf = nbd.Buffer(5000)
        reads.append((h, h.aio_pread(buf, offset), buf, offset))
open(sys.argv[4], "w").close()
for h, cookie, buf, offset in reads:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
    if bytes(buf.to_bytearray()) != disk[offset:offset + 5000]:
        sys.exit("wrong bytes at %d" % offset)
os._exit(0)
PY
$python "$tmp/clients.py" "$tmp/src" "$(uri clone)" "$clients" "$tmp/asked" &
client=$!
pids+=("$client")
eventually test -e "$tmp/asked"
# As many as the source's server has threads for.
arrived () { [ "$(requests src Read)" -ge $((before + 16)) ]; }
eventually arrived
pid=$(cat "$tmp/clone.pid")
threads () { [ "$(ls "/proc/$pid/task" | wc -l)" -ge $((clients * 16)) ]; }
eventually threads

timeout 60 qemu-io -f raw -c 'read -P 1 7M 1M' -c 'write -P 2 6M 64k' -c flush \
        -c 'read -P 2 6M 64k' "$(uri clone)"
kill -0 "$client"
let_go src
wait "$client"
stop clone
