# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash

# Functions that the shell tests share.  A test begins with
#
#   . "$(dirname "$0")/functions.sh"
#
# and then has a directory of its own, $tmp, which is removed when it ends.
# Every server that it started is killed then.  A test that cannot run on this
# machine calls `skip' or `requires'.  A test fails when a command fails.
#
# Servers have names.  The server NAME listens on the unix socket
# $tmp/NAME.sock, its messages are in $tmp/NAME.log, its process in
# $tmp/NAME.pid.  No other processes are killed.
#
# No test depends on the clock.  A test waits for what must happen, and the only
# purpose of a bound is that a broken program does not hang the suite.
#
# Tests run at the same time.  A test that mounts a file system does so in a
# mount namespace of its own, else another test's namespace may keep a copy of
# the mount.

set -eu -o pipefail
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin

srcdir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The build tree: `make check' sets it; else it is the default one.
builddir=${CLONE_BUILDDIR:-$srcdir/../build}
plugin=$builddir/plugin/.libs/nbdkit-clone-plugin.so
python=/usr/bin/python3

# The tool under which our code runs, see `under'; empty: none.
tool=${CLONE_TOOL-$(sed -n 's/^SANITIZER = //p' "$builddir/Makefile")}

tmp=$(mktemp -d "${TMPDIR:-/tmp}/clone-XXXXXX")
tool_dir=
pids=()
bits=()
loops=()

cleanup ()
{
  local status=$? pid log i
  set +ex
  for pid in "${pids[@]}"; do note_bits "$pid"; done
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
  if [ -n "$tool_dir" ] && found_something; then
    echo "$(basename "$0"): FAILED: $tool has found the above"
    status=1
  fi
  if [ $status -ne 0 ] && [ $status -ne 77 ]; then
    for log in "$tmp"/*.log; do
      [ -s "$log" ] || continue
      echo "--- $(basename "$log"), its last lines:"
      tail -n 40 "$log"
    done
  fi
  remove_bits
  for ((i = ${#loops[@]} - 1; i >= 0; i--)); do losetup -d "${loops[i]}"; done
  type -t at_exit >/dev/null && at_exit
  rm -rf "$tmp" ${tool_dir:+"$tool_dir"}
  exit $status
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

fail ()
{
  { set +x; } 2>/dev/null
  echo "$(basename "$0"): FAILED: $*"
  exit 1
}

skip ()
{
  { set +x; } 2>/dev/null
  echo "$(basename "$0"): $*"
  exit 77
}

# Skip the test unless this command succeeds.
requires ()
{
  "$@" >/dev/null 2>&1 || skip "needs: $*"
}

# not_under TOOL... REASON: skip a test that makes no sense under one of these.
not_under ()
{
  while [ $# -gt 1 ]; do
    [ "$tool" != "$1" ] || skip "not under $tool: ${*: -1}"
    shift
  done
}

requires_command ()
{
  local c
  for c; do
    command -v "$c" >/dev/null || skip "needs the command $c"
  done
}

# fails COMMAND...: the command must fail.  (`! COMMAND' is no use with `set
# -e', which ignores its status.)
fails ()
{
  if "$@"; then fail "should not succeed: $*"; fi
}

# eventually COMMAND...: run it until it succeeds, for at most a minute, or ten
# under a tool.
eventually ()
{
  local i
  { set +x; } 2>/dev/null
  for ((i = 0; i < ${tool:+10 *} 1200; i++)); do
    if "$@"; then set -x; return 0; fi
    # The tool may have ended the server that the command waits for.
    if [ -n "$tool_dir" ] && found_something >/dev/null; then
      sleep 2 # the report may not be complete
      break
    fi
    sleep 0.05
  done
  fail "did not come true: $*"
}

# run_parts [PART...]: run these functions of the test, or all of the array
# parts.
run_parts ()
{
  local part
  if [ $# -eq 0 ]; then set -- "${parts[@]}"; fi
  for part; do
    : "$part"
    $part
  done
}

# nbdclone_exits STATUS ARGUMENT...: $nbdclone has this exit status.  Its output
# is in $tmp/out and $tmp/err; what goes wrong is one line there.
nbdclone_exits ()
{
  local status=$1 rc=0
  shift
  "$nbdclone" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null || rc=$?
  cat "$tmp/out" "$tmp/err"
  [ $rc -eq "$status" ] || fail "exit status $rc, not $status: nbdclone $*"
  if [ $rc -eq 0 ]; then
    test ! -s "$tmp/err"
  else
    test "$(grep -c '^nbdclone: ' "$tmp/err")" -eq 1
    test "$(wc -l <"$tmp/err")" -eq 1
  fi
}

# Tools that look for errors in our code.

# program NAME: print the command that runs NAME of the build directory.
program ()
{
  local file=$builddir/$1
  if [ -n "$tool" ]; then
    file=$tool_dir/bin/$(basename "$1")
    run_under "$file" "$builddir/$1"
  fi
  echo "$file"
}

# run_under FILE PROGRAM: the first runs the second.
run_under ()
{
  printf '#!/bin/sh\nexec bash "%s/under" "%s" "$@"\n' "$srcdir" "$2" >"$1"
  chmod +x "$1"
}

# Print the tool's reports.  Fails if there is none.
found_something ()
{
  local report found=1
  for report in "$tool_dir"/report*; do
    if [ -s "$report" ]; then
      echo "--- $tool:"
      cat "$report"
      found=0
    fi
  done
  return $found
}

# fewer NUMBER: print it, or a tenth of it under a tool, which makes tests slow.
fewer ()
{
  if [ -n "$tool" ]; then echo $((($1 + 9) / 10)); else echo "$1"; fi
}

# Is it the long run, `tests/run --all'?
is_all ()
{
  [ -n "${CLONE_ALL:-}" ]
}

# left_to_all WHAT: log what this run leaves out; tests/run prints it.
left_to_all ()
{
  { local traced=${-//[^x]/}; set +x; } 2>/dev/null
  echo "left to --all: $(basename "$0"): $*"
  [ -z "$traced" ] || set -x
}

# long_or_short LONG SHORT: print the first with --all, else the second.
long_or_short ()
{
  if is_all; then echo "$1"; else echo "$2"; fi
}

# make_tests TARGET...: make these in tests/ of the build directory.
make_tests ()
{
  # Without make's own variables, which would make this part of the outer make.
  env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s -C "$builddir/tests" "$@"
}

# make_list VARIABLE: the words of a variable of tests/Makefile.am, one a line.
make_list () { make_tests "print-$1" | tr ' ' '\n'; }

# A test can set tool_wanted before it reads this file.
if [ -n "${tool_wanted:-}" ]; then
  not_under asan tsan valgrind "this is about $tool_wanted"
  tool=$tool_wanted
fi

# The command `nbdkit' runs under the tool where it loads our code.
if [ -n "$tool" ]; then
  tool_dir=$(mktemp -d "${TMPDIR:-/tmp}/clone-tool-XXXXXX")
  export CLONE_TOOL=$tool CLONE_BUILDDIR=$builddir
  export CLONE_REPORTS=$tool_dir/report
  mkdir "$tool_dir/bin"
  run_under "$tool_dir/bin/nbdkit" "$(command -v nbdkit)"
  PATH=$tool_dir/bin:$PATH
fi

# Valid bits in shared memory, which a clone that is killed leaves to the next
# one (lib/store/inherit.h).

# bits_of METADATA: print the name of their file.
bits_of ()
{
  od -An -v -tx1 -j16 -N16 "$1" | tr -d ' \n' |
    sed -E 's,(.{8})(.{4})(.{4})(.{4})(.*),/dev/shm/nbdkit-clone-\1-\2-\3-\4-\5,'
}

# note_bits PID: remember the bits of this process, which are removed when the
# test ends.
note_bits ()
{
  local file
  for file in $(grep -o '/dev/shm/nbdkit-clone-[0-9a-f-]*' \
                     "/proc/$1/maps" 2>/dev/null | sort -u); do
    bits+=("$file")
  done
}

# Remove the bits that the test has left, and those of all metadata in $tmp.
remove_bits ()
{
  local file
  rm -f "${bits[@]}"
  find "$tmp" -xdev -type f -size +15 -print0 | while read -r -d '' file; do
    if [ "$(head -c 8 "$file" | tr -d '\0')" = NBDCLONE ]; then
      rm -f "$(bits_of "$file")"
    fi
  done
}

# Servers.

uri ()
{
  echo "nbd+unix:///?socket=$tmp/$1.sock"
}

is_running ()
{
  kill -0 "$(cat "$tmp/$1.pid")" 2>/dev/null
}

# server_is_up NAME PID: does the server listen?  For eventually.
server_is_up ()
{
  [ -s "$tmp/$1.pid" ] && [ -S "$tmp/$1.sock" ] && return 0
  kill -0 "$2" 2>/dev/null || fail "the server $1 did not start"
  return 1
}

# server NAME COMMAND...: run it in the background, and wait until it listens.
# A COMMAND that is a function ends with exec.
server ()
{
  local name=$1 pid
  shift
  rm -f "$tmp/$name.sock" "$tmp/$name.pid"
  "$@" >>"$tmp/$name.log" 2>&1 </dev/null &
  pid=$!
  pids+=("$pid")
  eventually server_is_up "$name" "$pid"
}

# serve NAME NBDKIT-ARGUMENT...
serve ()
{
  local name=$1
  shift
  server "$name" nbdkit -f -P "$tmp/$name.pid" -U "$tmp/$name.sock" "$@"
}

# serve_qemu NAME QEMU-NBD-ARGUMENT...
serve_qemu ()
{
  local name=$1
  shift
  server "$name" qemu-nbd -t --pid-file="$tmp/$name.pid" \
         -k "$tmp/$name.sock" "$@"
}

# serve_clone KEY=VALUE...: the server "clone", with a control socket.
# Arguments for nbdkit itself are in the array nbdkit_args.
nbdkit_args=()
serve_clone ()
{
  rm -f "$tmp/clone.ctl"
  server clone nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" \
         "${nbdkit_args[@]}" "$plugin" control="$tmp/clone.ctl" "$@"
}

# start_proxy NAME UPSTREAM: the server NAME is the server UPSTREAM behind a
# network that fails on command: proxy NAME COMMAND..., see proxy.py.
start_proxy ()
{
  server "$1" $python "$srcdir/proxy.py" serve "$tmp/$1.sock" "$tmp/$2.sock" \
         "$tmp/$1.proxy" "$tmp/$1.pid"
}

proxy ()
{
  local name=$1
  shift
  $python "$srcdir/proxy.py" tell "$tmp/$name.proxy" "$@"
}

# serve_odd NAME FILE [OPTION...]: a server that behaves in unusual or wrong
# ways, see odd-server.py.
serve_odd ()
{
  local name=$1
  shift
  server "$name" $python "$srcdir/odd-server.py" "$tmp/$name.sock" \
         "$tmp/$name.pid" "$@"
}

# serve_pausable NAME NBDKIT-ARGUMENT...: a server whose requests can be held.
# $tmp/NAME.requests logs requests when they arrive, held or not.
serve_pausable ()
{
  local name=$1
  shift
  rm -f "$tmp/$name.pause"
  : >"$tmp/$name.requests"
  serve "$name" --filter=log --filter=pause "$@" \
        pause-control="$tmp/$name.pause" logfile="$tmp/$name.requests"
}

# hold NAME: the server answers nothing until `let_go NAME'.
hold () { tell_pause_filter "$1" p; }
let_go () { tell_pause_filter "$1" r; }

tell_pause_filter ()
{
  $python - "$tmp/$1.pause" "$2" <<'PY'
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.send(sys.argv[2].encode())
    if s.recv(1).decode() != sys.argv[2].upper():
        sys.exit("the pause filter does not obey")
PY
}

# requests NAME [TYPE]: print how many have arrived: of one type (Read, ...), or
# of all types that touch data.
requests ()
{
  grep -c -E " ${2:-(Read|Write|Zero|Trim|Extents|Cache)} id=[0-9]+ offset=" \
       "$tmp/$1.requests" || :
}

# reads NAME: print offset and length, in bytes, of each read that has arrived.
# For a server behind nbdkit's log filter, with logfile=$tmp/NAME.requests.
reads ()
{
  $python - "$tmp/$1.requests" <<'PY'
import re, sys
with open(sys.argv[1]) as f:
    for m in re.finditer(r" Read id=\d+ offset=(\S+) count=(\S+)", f.read()):
        print(int(m.group(1), 0), int(m.group(2), 0))
PY
}

# For reads on standard input: how many bytes they have, and how many of these
# an earlier read has, too.
bytes_of () { awk '{ n += $2 } END { print n + 0 }'; }

bytes_again ()
{
  sort -n | awk '
    { stop = $1 + $2 }
    $1 < end { n += (stop < end ? stop : end) - $1 }
    stop > end { end = stop }
    END { print n + 0 }'
}

# Devices that fail and stall on command, see powercut/powercut-plugin.c.

# serve_device NAME FILE [KEY=VALUE...]: the server NAME serves FILE; `device
# NAME' prints the export's URI.  $tmp/NAME.requests logs requests when they
# arrive.
serve_device ()
{
  local name=$1 file=$2
  shift 2
  mkdir -p "$tmp/$name.faults"
  serve "$name" --filter=log \
        "$builddir/tests/powercut/.libs/nbdkit-powercut-plugin.so" \
        dest="$file" meta=/dev/null faults="$tmp/$name.faults" \
        logfile="$tmp/$name.requests" "$@"
}

device () { echo "nbd+unix:///dest?socket=$tmp/$1.sock"; }

# fault NAME REQUEST [ERROR [START END]]: requests of a device fail.  REQUEST is
# `write' or `flush.once', for example.
fault ()
{
  local file=$tmp/$1.faults/dest.$2
  shift 2
  echo "${*:-EIO}" >"$file.new"
  mv "$file.new" "$file"
}

no_fault () { rm -f "$tmp/$1.faults/dest.$2"; }

# hold_device NAME REQUEST [N]: requests of this kind are held until
# `let_device_go', except for the first N.  is_held: is one?
hold_device ()
{
  rm -f "$tmp/$1.faults/dest.$2.held"
  echo "${3:-0}" >"$tmp/$1.faults/hold.new"
  mv "$tmp/$1.faults/hold.new" "$tmp/$1.faults/dest.$2.hold"
}

let_device_go () { rm -f "$tmp/$1.faults/dest.$2.hold"; }
is_held () { [ -e "$tmp/$1.faults/dest.$2.held" ]; }

# flushes NAME: print how many have arrived at a device.
flushes () { grep -c ' Flush id=[0-9]* \.\.\.' "$tmp/$1.requests" || :; }

# lose NAME FILE: kill the device's server, with its cache: FILE becomes what it
# was when `remember FILE' was called.
remember () { cp --sparse=always "$1" "$1.durable"; }

lose ()
{
  kill9 "$1"
  cat "$2.durable" >"$2"
}

# Clients that stay connected and do what they are told, see told-client.py.

# start_client NAME SOURCE: a client of the server `clone'.
declare -A client_in client_out client_pid
start_client ()
{
  local in out
  mkfifo "$tmp/$1.in" "$tmp/$1.out"
  $python "$srcdir/told-client.py" "$(uri clone)" "$2" \
          <"$tmp/$1.in" >"$tmp/$1.out" &
  client_pid[$1]=$!
  pids+=("$!")
  exec {in}>"$tmp/$1.in" {out}<"$tmp/$1.out"
  rm "$tmp/$1.in" "$tmp/$1.out"
  client_in[$1]=$in client_out[$1]=$out
}

# client NAME REQUEST...: each request must end as specified.  tell_client and
# client_is_done do the same in two steps.
client ()
{
  tell_client "$@"
  client_is_done "$1"
}

tell_client ()
{
  local name=$1
  shift
  echo "$*" >&"${client_in[$name]}"
}

client_is_done ()
{
  local answer
  read -r -t $((${tool:+10 *} 60)) answer <&"${client_out[$1]}" ||
    fail "client $1: no answer"
  [ "$answer" = ok ] || fail "client $1: $answer"
}

# leave NAME: it disconnects when it has done what it was told; a server waits
# for clients when it is to end.
leave ()
{
  [ -n "${client_in[$1]}" ] || return 0
  tell_client "$1" exit
  drop_client_pipe "$1"
}

drop_client_pipe ()
{
  local in=${client_in[$1]}
  client_in[$1]=
  exec {in}>&-
}

# end_client NAME: the same, and wait for its end.
end_client ()
{
  leave "$1"
  reap_client "$1"
}

reap_client ()
{
  local out=${client_out[$1]}
  wait "${client_pid[$1]}" || :
  exec {out}<&-
}

# kill_client NAME: it vanishes without disconnecting.
kill_client ()
{
  drop_client_pipe "$1"
  kill -9 "${client_pid[$1]}"
  reap_client "$1"
}

# The clients of kill-all.py, which make a file in $tmp/progress for each
# request that was acknowledged.  Their process is $clients, their output in
# $tmp/kill-all.out.

progress_begins () { find "$tmp/progress" -type f -delete; }

# have_answered N: were N requests acknowledged since progress_begins?
# shellcheck disable=SC2012
have_answered ()
{
  [ "$(ls "$tmp/progress" | wc -l)" -ge "$1" ] && return 0
  kill -0 "$clients" 2>/dev/null ||
    fail "the clients: $(cat "$tmp/kill-all.out")"
  return 1
}

# ends_soon NAME: SIGTERM ends the server.  The exit status does not matter.
ends_soon ()
{
  local pid
  pid=$(cat "$tmp/$1.pid")
  kill -TERM "$pid" 2>/dev/null || :
  reap "$1" "$pid" || :
}

# messages PATTERN: print how many there are in the log of `clone'.
messages () { grep -c -e "$1" "$tmp/clone.log" || :; }

# deadline MILLISECONDS: the next clone waits this long for a silent server; the
# default is half a minute.
deadline () { nbdkit_args+=(-D "clone.deadline=$1"); }

# no_deadline: the next clone waits for a day.  A test that proves that
# something does not wait for a silent server then hangs, and fails, where it
# does.
no_deadline () { deadline 86400000; }

# stop NAME: SIGTERM; the result is the server's exit status.
stop ()
{
  local pid
  pid=$(cat "$tmp/$1.pid")
  kill -TERM "$pid"
  reap "$1" "$pid"
}

# kill9 NAME: SIGKILL.
kill9 ()
{
  local pid
  pid=$(cat "$tmp/$1.pid")
  note_bits "$pid"
  # It may have ended already.
  kill -KILL "$pid" 2>/dev/null || :
  reap "$1" "$pid" || :
}

has_ended ()
{
  # A zombie has: it only waits for our wait.
  ! kill -0 "$1" 2>/dev/null ||
    [ "$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null || echo Z)" = Z ]
}

reap ()
{
  local i left=() status=0
  eventually has_ended "$2"
  wait "$2" || status=$?
  for i in "${pids[@]}"; do [ "$i" = "$2" ] || left+=("$i"); done
  pids=("${left[@]}")
  rm -f "$tmp/$1.pid"
  return $status
}

# The control interface.

# control METHOD PATH [CURL-ARGUMENT...]: print the body.  Fails unless the
# status code is 2xx.
control ()
{
  local method=$1 path=$2
  shift 2
  curl -sS --fail-with-body --max-time 300 --unix-socket "$tmp/clone.ctl" \
       -X "$method" "$@" "http://localhost$path"
}

# http_code METHOD PATH [CURL-ARGUMENT...]: print the status code.  The body
# goes to $tmp/body.
http_code ()
{
  local method=$1 path=$2
  shift 2
  curl -sS --max-time 300 --unix-socket "$tmp/clone.ctl" -o "$tmp/body" \
       -w '%{http_code}' -X "$method" "$@" "http://localhost$path"
}

# status FILTER: print the result of a jq filter on /status.
status ()
{
  control GET /status | jq -r "$1"
}

# status_is FILTER: does the jq filter return true for /status?
status_is ()
{
  [ "$(status "$1")" = true ]
}

set_settings ()
{
  control PATCH /settings -d "$1" >/dev/null
}

wait_complete ()
{
  control GET /wait >/dev/null
  status_is '.state == "complete"' || fail "not complete: $(control GET /status)"
}

# make_finisher FILE: a script that lets hydration run at full speed, and waits
# until the clone is complete.
make_finisher ()
{
  cat >"$1" <<EOF
curl -sS --fail-with-body --max-time 300 --unix-socket "$tmp/clone.ctl" \
     -X PATCH -d '{"hydration-rate": 0, "hydration-batch-size": 1048576}' \
     http://localhost/settings >"$1.log" &&
curl -sS --fail-with-body --max-time 300 --unix-socket "$tmp/clone.ctl" \
     http://localhost/wait >>"$1.log"
EOF
}

# Disks.

# make_disk FILE SIZE [SEED]: random bytes, which the seed determines.
make_disk ()
{
  rm -f "$1"
  "$python" - "$1" "$(numfmt --from=iec "$2")" "${3:-1}" <<'PY'
import random, sys
path, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
r = random.Random(seed)
with open(path, "wb") as f:
    while size > 0:
        n = min(size, 1 << 20)
        f.write(r.randbytes(n))
        size -= n
PY
}

# make_garbage FILE SIZE: old content of a destination, easy to recognise.
make_garbage ()
{
  rm -f "$1"
  { yes 'garbage of old  ' || :; } | tr -d '\n' |
    head -c "$(numfmt --from=iec "$2")" >"$1" || :
}

# same FILE FILE: they are equal.
same ()
{
  cmp "$1" "$2" || fail "$1 and $2 differ"
}

# attach LOSETUP-ARGUMENT...: make the loop device $loop, which is detached when
# the test ends.  Skips the test where that is not possible.
attach ()
{
  requires_command losetup
  loop=$(losetup -f --show "$@" 2>/dev/null) ||
    skip "cannot make a loop device"
  loops+=("$loop")
}

# export_to NAME FILE: copy a server's export to a file.
export_to ()
{
  rm -f "$2"
  nbdcopy "$(uri "$1")" "$2"
}

# refused WORD KEY=VALUE...: nbdkit prints one error, which matches WORD (a
# regular expression, case ignored), exits with status 1, and creates or changes
# nothing in $tmp.
refused ()
{
  local word=$1 before after rc=0 errors
  shift
  rm -f "$tmp/refused.out"
  : >"$tmp/refused.out"
  # Except for its own output.
  before=$(find "$tmp" -mindepth 1 ! -name 'refused.*' ! -name '*.log' \
             -printf '%p %y %s %T@ %C@ %i\n' | sort)
  timeout ${refused_after:-300} nbdkit -f -U "$tmp/refused.sock" -P "$tmp/refused.pid" \
          "${nbdkit_args[@]}" "$plugin" "$@" >"$tmp/refused.out" 2>&1 \
          </dev/null || rc=$?
  cat "$tmp/refused.out"
  [ $rc -eq 1 ] || fail "exit status $rc, not 1: $*"
  after=$(find "$tmp" -mindepth 1 ! -name 'refused.*' ! -name '*.log' \
            -printf '%p %y %s %T@ %C@ %i\n' | sort)
  [ "$before" = "$after" ] ||
    fail "something was created or changed: $(diff <(echo "$before") <(echo "$after"))"
  errors=$(grep -c 'error:' "$tmp/refused.out" || :)
  [ "$errors" -eq 1 ] || fail "$errors errors instead of one: $*"
  [ "$(wc -l <"$tmp/refused.out")" -le 1 ] || fail "more than one line: $*"
  grep -i -q -E -e "$word" "$tmp/refused.out" ||
    fail "the message does not mention $word: $*"
}

[ -f "$plugin" ] || fail "$plugin is not built"
requires_command nbdkit nbdinfo nbdcopy curl jq

set -x
