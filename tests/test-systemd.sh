#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the commands in examples/systemd work: nbdkit starts although a
# killed process has left its socket, ExecStop waits for the end, and the end is
# clean; that the service has no option that hides what the last process has
# left; and that systemd-analyze finds no fault with it.

. "$(dirname "$0")/functions.sh"

unit=$srcdir/../examples/systemd/nbdkit-clone@.service
conf=$srcdir/../examples/systemd/example.conf

# See the comment in the unit.
fails grep -E '^(RemoveIPC|DynamicUser|TemporaryFileSystem|RootDirectory)=' "$unit"
fails grep -E '^(RootImage|ProcSubset|PrivateDevices|ProtectClock)=' "$unit"

# The unit's commands, with the test's directory and the built plugin.
make_disk "$tmp/src" 1M
sed -e "s,^SOURCE=.*,SOURCE=$tmp/src," \
    -e "s,^DESTINATION=.*,DESTINATION=$tmp/dest," \
    -e 's,^OPTIONS=.*,OPTIONS="region-size=64K commit-interval=0 hydration=off",' \
    "$conf" >"$tmp/vm.conf"
commands ()
{
  sed -n "s,^$1=-\{0\,1\},,p" "$unit" |
    sed -e "s,/run/nbdkit-clone,$tmp,g" -e 's,%i,clone,g' \
        -e "s, clone source=, -P $tmp/clone.pid $plugin source=," \
        -e 's,^nbdkit,exec nbdkit,'
}
run_clone ()
{
  # shellcheck source=/dev/null
  . "$tmp/vm.conf"
  eval "$(commands ExecStartPre)"
  eval "$(commands ExecStart)"
}
start ()
{
  run_clone >>"$tmp/clone.log" 2>&1 </dev/null & pid=$!
  pids+=("$pid")
  eval "$(commands ExecStartPost)"
  eventually status_is '.size == 1048576'
}

start
qemu-io -f raw -c 'write -P 1 0 64k' "$(uri clone)"
$python - "$(uri clone)" <<'PY'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"2" * 65536, 65536)
os._exit(0)
PY
kill9 clone
test -S "$tmp/clone.sock"
start
status_is '.hydrated == 2 and .durable == 1'
MAINPID=$pid
export MAINPID
eval "$(commands ExecStop)"
# The process has ended already.
has_ended "$pid"
reap clone "$pid"
start
status_is '.hydrated == 2 and .durable == 2'
stop clone

if ! command -v systemd-analyze >/dev/null; then
  skip "needs the command systemd-analyze; the commands have been run"
fi
systemd-analyze verify --man=no "$unit" >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
test ! -s "$tmp/out"
if systemd-analyze --help | grep -q -e --offline; then
  # 0 is the best, 10 the worst; here in tenths.
  systemd-analyze security --offline=true --no-pager --threshold=30 "$unit"
fi
