#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the clone's messages go to syslog when nbdkit is in the
# background, also those that are not errors: the clone has started, the source
# is back, hydration is complete, the end.  In the foreground, and where -v
# keeps standard error open, these go to standard error only.
#
# The clone has a /dev of its own, in which the test listens on syslog's socket.

. "$(dirname "$0")/functions.sh"

[ "$(id -u)" -eq 0 ] || skip "needs root, for a /dev of its own"
requires_command unshare mount

# A prefix that runs a command with this /dev.
mkdir "$tmp/dev"
# shellcheck disable=SC2016
with_syslog=(unshare -m bash -eu -c '
  dev=$1 log=$2
  shift 2
  mount -t tmpfs none "$dev"
  for f in full null random tty urandom zero; do
    touch "$dev/$f"
    mount --bind "/dev/$f" "$dev/$f"
  done
  mkdir "$dev/shm"
  ln -s /proc/self/fd "$dev/fd"
  ln -s "$log" "$dev/log"
  mount --rbind "$dev" /dev
  exec "$@"
' - "$tmp/dev" "$tmp/syslog.sock")
"${with_syslog[@]}" true ||
  skip "needs a mount namespace with a /dev of its own"

# Each message becomes a line of syslog.log.
server syslog $python -c '
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
with open(sys.argv[2], "w") as f:
    print(os.getpid(), file=f)
while True:
    print(s.recv(65536).rstrip(b"\n\0").decode(), flush=True)
' "$tmp/syslog.sock" "$tmp/syslog.pid"

make_disk "$tmp/src" 1M
daemon=
at_exit () { [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null; }

# run FILE NBDKIT-ARGUMENT...: the source is lost and comes back, and the clone
# becomes complete.  Its standard error goes to FILE.
run ()
{
  local file=$1
  shift
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.pid" "$tmp/clone.sock"
  : >"$tmp/clone.log"
  serve src file "$tmp/src"
  "${with_syslog[@]}" nbdkit -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$@" \
    "$plugin" "$(uri src)" destination="$tmp/dest" hydration=off \
    control="$tmp/clone.ctl" >>"$file" 2>&1 </dev/null &
  pids+=($!)
  eventually test -s "$tmp/clone.pid"
  daemon=$(cat "$tmp/clone.pid")
  kill9 src
  eventually status_is '.source.connected | not'
  serve src file "$tmp/src"
  eventually status_is '.source.connected'
  control POST /resume
  wait_complete
  kill -TERM "$daemon"
  eventually has_ended "$daemon"
  pid=$daemon daemon=
  # nbdkit before 1.34 may have aborted when the clone closed its source.
  ends_soon src
}

# says FILE PREFIX: these messages are there once, with this prefix.
news=("cloning [^ ]* to [^ ]*: 1 MiB, " "source [^ ]* is back after "
      "hydration goes on$" "hydration is complete: " "shutting down: ")
says ()
{
  local message
  for message in "${news[@]}"; do
    [ "$(grep -c -E "$2$message" "$1")" -eq 1 ] || return 1
  done
}

# The program's name, which is empty when AddressSanitizer is loaded before it.
name=nbdkit
[ "$tool" != asan ] || name=

# The priorities are those of LOG_DAEMON with LOG_INFO (30) and LOG_ERR (27).
: "in the background"
run "$tmp/clone.log"
syslog="^<30>.* $name\[$pid\]: clone: "
eventually says "$tmp/syslog.log" "$syslog"
# The loss is the only error.
grep -F "[$pid]: " "$tmp/syslog.log" | grep '^<27>' >"$tmp/errors"
fails grep -v -E " $name\[$pid\]: source [^ ]* is lost: " "$tmp/errors"
test "$(wc -l <"$tmp/errors")" -eq 1
test ! -s "$tmp/clone.log"

: "in the background, with -v"
run "$tmp/clone.log" -v
says "$tmp/clone.log" "^nbdkit: clone: "
fails grep -F "[$pid]: clone: " "$tmp/syslog.log"

: "in the foreground"
run "$tmp/clone.log" -f
says "$tmp/clone.log" "^nbdkit: clone: "
fails grep -F "[$pid]" "$tmp/syslog.log"

: "in the foreground, where the user does not want to see them"
run /dev/null -f
fails grep -F "[$pid]" "$tmp/syslog.log"
