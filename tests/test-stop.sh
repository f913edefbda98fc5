#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a client that reconnects notices POST /stop, or kill -9, and a new
# start as a pause only: with QEMU between fio, which verifies what it wrote,
# and the clone, there is no error and no wrong byte.  Also proves that POST
# /stop is answered before the end begins; commits; ends the process with status
# 0, without an answer to requests that are under way; leaves nothing in shared
# memory; and is not held up by SIGTERM, idle clients, or metadata that is lost
# or silent.
#
# Arguments are the parts to run.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # the process frees nothing at its end
requires "$python" -c 'import nbd'

no_deadline # the process does not wait for a silent server

# stop_clone [STATUS]: POST /stop is answered, and the process ends by itself
# with this exit status.
stop_clone ()
{
  local pid rc=0
  pid=$(cat "$tmp/clone.pid")
  control POST /stop | jq -e '.size > 0' >/dev/null
  reap clone "$pid" || rc=$?
  test $rc -eq "${1:-0}"
}

# Amid requests, with QEMU in between.
under_load ()
{
  local round rounds fio rc=0 how
  if [ -n "$tool" ]; then
    echo "stop: no load under $tool"
    return 0
  fi
  if ! command -v qemu-storage-daemon >/dev/null; then
    skip "needs the command qemu-storage-daemon"
  fi
  requires_command fio
  fio --enghelp | grep -q -w nbd || skip "fio has no nbd engine"
  rounds=$(long_or_short 10 2)
  make_disk "$tmp/src" 64M
  serve src -t 1 file "$tmp/src"
  start ()
  {
    serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K \
                hydration-rate=1M
  }
  start
  server qemu qemu-storage-daemon --pidfile "$tmp/qemu.pid" \
         --blockdev driver=nbd,node-name=disk,server.type=unix,server.path="$tmp/clone.sock",reconnect-delay=60 \
         --nbd-server addr.type=unix,addr.path="$tmp/qemu.sock",max-connections=0 \
         --export type=nbd,id=disk,node-name=disk,writable=on
  # Repeated until the file `end' is there.
  verify ()
  {
    local seed=1
    cd "$tmp"
    while ! [ -e end ]; do
      fio --name=verify --ioengine=nbd \
          --uri="nbd+unix:///disk?socket=$tmp/qemu.sock" \
          --rw=randwrite --bssplit=512/40:4k/30:20k/20:64k/10 \
          --blockalign=512 --numjobs=4 --offset_increment=3584k --size=3584k \
          --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 \
          --randseed=$seed --thread=0 --group_reporting \
          --output-format=terse || return 1
      seed=$((seed + 1))
      echo $seed >passes
    done
  }
  verify >"$tmp/fio.log" 2>&1 & fio=$!
  pids+=("$fio")
  # The clone has written half a megabyte.
  written () { awk '/^wchar/ { print $2 }' "/proc/$(cat "$tmp/clone.pid")/io"; }
  has_written ()
  {
    kill -0 $fio 2>/dev/null || fail "fio: $(cat "$tmp/fio.log")"
    [ "$(written)" -gt "$1" ]
  }
  for ((round = 1; round <= rounds; round++)); do
    for how in stop_clone "kill9 clone"; do
      : "round $round of $rounds: $how"
      eventually has_written $(($(written) + (512 << 10)))
      $how
      if [ "$how" = stop_clone ]; then
        test ! -e "$(bits_of "$tmp/dest.clone")"
        # The name stays, as after a kill.
        test -S "$tmp/clone.ctl"
      fi
      start
    done
  done
  eventually has_written $(($(written) + (512 << 10)))
  touch "$tmp/end"
  wait $fio || rc=$?
  cat "$tmp/fio.log"
  test $rc -eq 0
  grep 'are taken over' "$tmp/clone.log"
  # QEMU has seen no error either.
  fails grep -i error "$tmp/qemu.log"
  stop qemu
  set_settings '{"hydration-rate": 0}'
  wait_complete
  export_to clone "$tmp/out"
  stop clone
  same "$tmp/dest" "$tmp/out"
  # What fio did not write is the source's.
  cmp -i $((4 * 3584 * 1024)) "$tmp/dest" "$tmp/src"
  stop src
  echo "stop: $rounds stops and $rounds kills, fio verified $(cat "$tmp/passes") times"
}

# new_clone [DEVICE]: the destination and the metadata are files, or devices
# that can be held: dest, meta.  The last commit gives up metadata on a server
# that does not answer for a second and a half, which may be too short on a busy
# machine.
new_clone ()
{
  rm -rf "$tmp/d" "$tmp/m" "$tmp/clone.log" "$tmp"/*.faults
  make_disk "$tmp/src" 1M
  destination=$tmp/d metadata=$tmp/m
  case ${1:-} in
    dest)
      truncate -s 1M "$tmp/d"
      serve_device dest "$tmp/d"
      destination=$(device dest) ;;
    meta)
      truncate -s 1M "$tmp/m"
      serve_device meta "$tmp/m"
      metadata=$(device meta) ;;
  esac
  start_clone
}

start_clone ()
{
  serve_clone "$tmp/src" destination="$destination" \
              metadata="$metadata" region-size=64K hydration=off \
              commit-interval=0
  # It has started when it answers.
  status_is '.size == 1048576'
}

# Everything becomes durable, and an idle client does not hold up the end.
idle ()
{
  new_clone
  start_client a "$tmp/src"
  client a write 1 a write 2 b
  status_is '.durable == 0'
  stop_clone
  test "$(messages 'stopping: making everything durable')" -eq 1
  client a ENOTCONN read 1 a
  end_client a
  : >"$tmp/clone.log"
  start_clone
  test "$(messages 'taken over')" -eq 0
  status_is '.durable == 2'
  stop_clone
}

# The process cannot end while the destination holds the last commit's flush:
# the whole answer to POST /stop has come before that.  A client's request gets
# no answer meanwhile, and SIGTERM, of which nbdkit would make an answer, does
# nothing.
no_answer ()
{
  local pid rc=0
  new_clone dest
  start_client a "$tmp/src"
  client a write 1 a
  hold_device dest flush
  pid=$(cat "$tmp/clone.pid")
  control POST /stop >"$tmp/answer"
  jq -e '.size == 1048576 and .hydrated == 1 and .durable == 0' "$tmp/answer"
  eventually is_held dest flush
  fails has_ended "$pid"
  tell_client a ENOTCONN write 2 b
  kill -TERM "$pid"
  # A second stop has nothing to do.
  control POST /stop >/dev/null || :
  fails has_ended "$pid"
  let_device_go dest flush
  reap clone "$pid" || rc=$?
  test $rc -eq 0
  client_is_done a
  end_client a
  start_clone
  status_is '.durable == 1'
  stop_clone
  kill9 dest
}

# The end does not begin before the answer is sent, either: here there is no
# room for it in the socket, which holds answers that the client has not read.
unread_answers ()
{
  local pid
  new_clone
  pid=$(cat "$tmp/clone.pid")
  $python - "$tmp/clone.ctl" <<'PY'
import fcntl, socket, struct, sys, termios, time

GET = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"

def send(requests):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.sendall(requests)
    return s

def queued(s):
    """How many bytes have come that were not read?"""
    return struct.unpack("i", fcntl.ioctl(s, termios.FIONREAD, bytes(4)))[0]

def settled(s):
    """The same, when it does not change any more."""
    last = -1
    while queued(s) != last or last == 0:
        last = queued(s)
        time.sleep(0.5)
    return last

fit = settled(send(GET * 2000)) // settled(send(GET))
s = send(GET * fit + POST)
settled(s)
time.sleep(1) # for an end that comes too early
answers = b""
while True:
    data = s.recv(1 << 20)
    answers += data
    if not data:
        break
count = answers.count(b"HTTP/1.1 200 ")
print("%d answers fit, %d of %d have come" % (fit, count, fit + 1))
if fit == 2000 or count != fit + 1 or not answers.rstrip().endswith(b"}"):
    sys.exit("POST /stop was not answered")
PY
  reap clone "$pid"
}

# The metadata is lost, or does not answer, before the commit or in it: the
# process ends all the same, and the next one takes over what it has not made
# durable.
bad_metadata ()
{
  local how
  for how in lost silent in_commit; do
    new_clone meta
    start_client a "$tmp/src"
    client a write 1 a flush write 2 b
    case $how in
      lost)
        kill9 meta
        eventually grep -q 'metadata .* is lost' "$tmp/clone.log" ;;
      silent)
        hold_device meta write ;;
      in_commit)
        hold_device meta flush
        tell_client a ENOTCONN flush
        eventually is_held meta flush ;;
    esac
    stop_clone 1
    if [ $how = in_commit ]; then
      client_is_done a
    fi
    end_client a
    if [ $how != lost ]; then kill9 meta; fi
    rm -rf "$tmp/meta.faults"
    serve_device meta "$tmp/m"
    : >"$tmp/clone.log"
    start_clone
    if [ $how != in_commit ]; then # the bitmap was written then
      grep 'regions that were valid and not durable are taken over' \
           "$tmp/clone.log"
    fi
    start_client a "$tmp/src"
    client a read 1 a read 2 b read 3 source
    end_client a
    kill9 clone
    kill9 meta
  done
}

# SIGTERM has begun to end the process, and nbdkit waits for its clients.
after_sigterm ()
{
  new_clone
  start_client a "$tmp/src"
  client a write 1 a
  kill -TERM "$(cat "$tmp/clone.pid")"
  eventually status_is '.durable == 1'
  stop_clone
  end_client a
}

parts=(idle no_answer unread_answers bad_metadata after_sigterm under_load)
run_parts "$@"
is_all || left_to_all "8 of 10 stops and kills under load"
