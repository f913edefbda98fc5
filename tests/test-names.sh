#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that each address of a source's host name is tried, at the start and
# after a loss, when the first address does not answer at all.  The test needs
# an /etc/hosts of its own, and so a mount namespace.

if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -rm true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -rm bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires test -n "${CLONE_IN_NAMESPACE:-}"
requires_command getent mount
name=two-hosts.clone.test
printf '%s\n' "127.0.0.2 $name" "127.0.0.3 $name" >"$tmp/hosts"
mount --bind "$tmp/hosts" /etc/hosts || skip "no /etc/hosts of its own"
read -r first other < <(getent ahostsv4 $name | awk '!seen[$1]++ { print $1 }' |
                          xargs)
[ "$first $other" = "127.0.0.2 127.0.0.3" ] ||
  [ "$first $other" = "127.0.0.3 127.0.0.2" ] || skip "no two addresses"

make_disk "$tmp/src" 1M
# The address that does not answer: its queue of connections is full, so that
# the kernel drops requests for another one.  The server has the same port.
cat >"$tmp/hole.py" <<'PY'
import socket, sys, time
hole, other = socket.socket(), socket.socket()
hole.bind((sys.argv[1], 0))
port = hole.getsockname()[1]
hole.listen(0)
queued = []
while True:
    s = socket.socket()
    s.settimeout(0.5)
    queued.append(s)
    try:
        s.connect((sys.argv[1], port))
    except socket.timeout:
        break
print(port, flush=True)
time.sleep(1000)
PY
$python "$tmp/hole.py" "$first" >"$tmp/port" &
pids+=("$!")
eventually test -s "$tmp/port"
port=$(cat "$tmp/port")

# The server is behind the other address, by way of a proxy.
serve src file "$tmp/src"
start_source ()
{
  $python "$srcdir/proxy.py" serve "$other:$port" "$tmp/src.sock" \
          "$tmp/far.proxy" "$tmp/far.pid" >"$tmp/far.log" 2>&1 &
  pids+=("$!")
  eventually test -s "$tmp/far.pid"
}
start_source

serve_clone "nbd://$name:$port/" destination="$tmp/dest" region-size=64K \
            hydration=off source-connections=2
status_is '.source.connected'
kill9 far
is_lost () { status_is '.source.connected == false'; }
is_back () { status_is '.source.connected'; }
eventually is_lost
rm -f "$tmp/far.proxy"
start_source
eventually is_back
control POST /resume >/dev/null
eventually status_is '.state == "complete"'
stop clone
same "$tmp/dest" "$tmp/src"
