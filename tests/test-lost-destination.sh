#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that clients wait while the servers of destination and metadata are
# away, and that a server that comes back without what it had not flushed does
# no harm: regions that were not durable are copied again; what clients had
# written and not flushed reads as the source or as older data, never as
# anything else; and the next flush of each client fails, once.  Questions about
# block status do not wait.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 16M
truncate -s 16M "$tmp/d"
truncate -s 1M "$tmp/m"
serve dest file "$tmp/d"
serve meta file "$tmp/m"
args=("$tmp/src" destination="$(uri dest)" metadata="$(uri meta)"
      commit-interval=3600)
serve_clone "${args[@]}" hydration=off

# crash NAME FILE: the server dies and loses what it had not flushed: FILE
# becomes what it was when `flushed' was called.
flushed () { cp "$1" "$1.flushed"; }
crash ()
{
  kill9 "$1"
  cat "$2.flushed" >"$2"
}
is_lost () { [ "$(grep -c "$1.*is lost" "$tmp/clone.log")" = "$2" ]; }

# Two clients in one process, which goes on when it reads the name of the next
# step from a pipe.
cat >"$tmp/client.py" <<'PY'
import nbd, sys
def connect():
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    return h
def step(name):
    print("at", name, flush=True)
    if sys.stdin.readline().strip() != name:
        sys.exit("not told to go on at " + name)
def flush_fails(h, who):
    try:
        h.flush()
    except nbd.Error as e:
        if e.errno != "EIO":
            raise
        return
    sys.exit("a flush of %s did not fail after a loss" % who)
def must(value, offset, what):
    if a.pread(len(value), offset) != value:
        sys.exit("wrong: " + what)
K = 1 << 10
source = open(sys.argv[2], "rb").read()
a, b = connect(), connect()
a.pwrite(b"f" * 64 * K, 0)
a.pwrite(b"F" * 4 * K, 1024 * K, flags=nbd.CMD_FLAG_FUA)
a.flush()
step("flushed")
a.pwrite(b"u" * 4 * K, 0)           # over what is durable
a.pwrite(b"v" * 64 * K, 128 * K)    # where nothing is
b.pwrite(b"w" * 1000, 301 * K + 7)  # with the source around it
step("crash")
must(b"f" * 64 * K, 0, "what was flushed")
must(b"F" * 4 * K, 1024 * K, "what had FUA")
must(source[64 * K:320 * K], 64 * K, "what was lost is not the source's")
flush_fails(a, "the first client")
flush_fails(b, "the second client")
a.flush()
b.flush()
connect().flush()                   # a new client is not told
step("again")
a.pwrite(b"x" * 1000, 301 * K + 7, flags=nbd.CMD_FLAG_FUA)
a.pwrite(b"y" * 3 * K, 2048 * K + 512)
a.flush()
step("flushed")
step("crash")
a.flush()                           # no client's write was lost
expected = bytearray(source)
expected[:64 * K] = b"f" * 64 * K
expected[1024 * K:1028 * K] = b"F" * 4 * K
expected[301 * K + 7:301 * K + 1007] = b"x" * 1000
expected[2048 * K + 512:2051 * K + 512] = b"y" * 3 * K
must(bytes(expected), 0, "the disk")
open(sys.argv[3], "wb").write(expected)
PY
mkfifo "$tmp/orders"
"$python" "$tmp/client.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
          <"$tmp/orders" >"$tmp/client.out" &
client=$!
exec {orders}>"$tmp/orders"
is_at () { [ "$(tail -n 1 "$tmp/client.out")" = "at $1" ] ||
             ! kill -0 $client; }
go_on () { echo "$1" >&$orders; }

eventually is_at flushed
flushed "$tmp/d"
go_on flushed
eventually is_at crash
crash dest "$tmp/d"
eventually is_lost destination 1
# Block status does not wait: what is in the destination is data.
timeout 60 nbdinfo --json --map "$(uri clone)" >"$tmp/map"
jq -e '.[0] | .offset == 0 and .length >= 65536 and .type == 0' "$tmp/map"
# The client reads while the server is away.
go_on crash
serve dest file "$tmp/d"
eventually is_at again
grep "regions that were not durable are copied again" "$tmp/clone.log"

# The destination is lost while hydration has regions that are not durable.
status_is '.hydrated == .durable and .mode == "rw"'
go_on again
eventually is_at flushed
flushed "$tmp/d"
set_settings '{"hydration-rate": 500000}'
control POST /resume
has_hydrated () { status_is ".hydrated >= .durable + $1"; }
eventually has_hydrated 128
go_on flushed
eventually is_at crash
crash dest "$tmp/d"
eventually is_lost destination 2
status_is '.mode == "fail"'
serve dest file "$tmp/d"
go_on crash
wait $client || fail "the client: $(tail -n 1 "$tmp/client.out")"

# The metadata's server loses what it had not flushed, too.
flushed "$tmp/m"
eventually has_hydrated 64
crash meta "$tmp/m"
eventually is_lost metadata 1
nbdsh () { "$python" -m nbd "$@"; }
nbdsh -u "$(uri clone)" -c 'h.pwrite(b"z" * 4096, 4 << 20)' \
      -c 'h.flush()' & client=$!
serve meta file "$tmp/m"
wait $client
printf '%4096s' | tr ' ' z |
  dd of="$tmp/expected" bs=4096 seek=1024 conv=notrunc status=none

set_settings '{"hydration-rate": 0}'
wait_complete
stop clone
stop dest
same "$tmp/d" "$tmp/expected"
grep -c 'clients have written and not flushed may be lost' "$tmp/clone.log" | grep -qx 1
