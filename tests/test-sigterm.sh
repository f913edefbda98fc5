#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that SIGTERM commits at once, although nbdkit waits for a client that
# is connected and idle; and that the next start finds every region that was
# valid.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M
args=("$tmp/src" destination="$tmp/dest" region-size=64K hydration=off
      commit-interval=3600)
serve_clone "${args[@]}"

# A client that writes, and stays connected.
cat >"$tmp/client.py" <<'PY'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * (5 * 65536), 65536)
open(sys.argv[2], "w").close()
sys.stdin.read()
os._exit(0)
PY
mkfifo "$tmp/fifo"
$python "$tmp/client.py" "$(uri clone)" "$tmp/written" <"$tmp/fifo" &
client=$!
pids+=("$client")
exec 5>"$tmp/fifo"
eventually test -e "$tmp/written"
status_is '.hydrated == 5 and .durable == 0'

before=$(md5sum <"$tmp/dest.clone")
kill -TERM "$(cat "$tmp/clone.pid")"
changed () { [ "$before" != "$(md5sum <"$tmp/dest.clone")" ]; }
eventually changed
is_running clone
kill9 clone
exec 5>&-
wait $client

serve_clone "${args[@]}"
status_is '.hydrated == 5 and .durable == 5'
stop clone

# The same without a client: a normal end loses nothing.
serve_clone "${args[@]}"
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"y" * (3 * 65536), 4 << 20)
h.shutdown()
PY
stop clone
serve_clone "${args[@]}"
status_is '.hydrated == 8 and .durable == 8'
