#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that 16 clients, each of which writes and flushes, share commits (P7):
# the metadata and the destination are flushed at most once for four of the
# clients' flushes.  The metadata's server holds the first commit until all
# clients have asked for theirs.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
clients=16
make_disk "$tmp/src" 1M
truncate -s 1M "$tmp/dest"
truncate -s 64K "$tmp/meta"
serve dest --filter=log file "$tmp/dest" logfile="$tmp/dest.requests"
serve_pausable meta file "$tmp/meta"
nbdkit_args=(--filter=log)
serve_clone "$tmp/src" destination="$(uri dest)" metadata="$(uri meta)" \
            region-size=4K hydration=off commit-interval=0 \
            logfile="$tmp/clone.requests"

flushes () { grep -c ' Flush id=[0-9]* \.\.\.' "$tmp/$1.requests" || :; }
all_have_asked () { [ "$(flushes clone)" -ge $clients ]; }

: >"$tmp/dest.requests"
: >"$tmp/meta.requests"
hold meta
$python - "$(uri clone)" $clients <<'PY' &
import nbd, sys, threading

def client(i):
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    h.flush()
    served[i] = True

served = [False] * int(sys.argv[2])
threads = [threading.Thread(target=client, args=(i,))
           for i in range(len(served))]
for t in threads:
    t.start()
for t in threads:
    t.join()
sys.exit(not all(served))
PY
clients_pid=$!
eventually all_have_asked
# No flush is acknowledged before its data is durable.
status_is '.durable == 0'
let_go meta
wait "$clients_pid"
status_is ".hydrated == $clients and .durable == $clients"
for name in dest meta; do
  n=$(flushes $name)
  test "$n" -ge 1
  test "$n" -le $((clients / 4))
done
stop clone
