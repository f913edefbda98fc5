#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source may go away and come back.  While it is away valid
# regions are read, whole regions are written, writes are flushed, and block
# status is answered; requests that need the source wait, and then return the
# right bytes.  The state is "waiting".  The log says once that the source is
# lost, and once that it is back.  Hydration goes on by itself.  With
# source-timeout waiting requests fail in the end.  SIGTERM ends the process,
# with everything committed.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
make_disk "$tmp/src" 8M
size=$((8 << 20))

# Seconds after which a silent source is given up.
silence=1

start_source ()
{
  case $connections in
    several) serve src file "$tmp/src" ;;
    one) serve src --filter=multi-conn --filter=noextents file "$tmp/src" \
               multi-conn-mode=disable ;;
  esac
}

# start_all KEY=VALUE...: the first MiB becomes valid, and hydration is slow.
start_all ()
{
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
  cp "$tmp/src" "$tmp/model"
  start_source
  start_proxy net src
  serve_clone "$(uri net)" destination="$tmp/dest" region-size=64K \
              hydration-rate=64K hydration-batch-size=64K "$@"
  both -c 'write -P 1 0 1M' -c flush
}

stop_all ()
{
  stop clone
  stop net
  stop src
}

# both QEMU-IO-ARGUMENT...: runs qemu-io on the clone and on the model.
both ()
{
  local f
  for f in "$(uri clone)" "$tmp/model"; do qemu-io -f raw "$@" "$f"; done
}

is_lost () { status_is '.state == "waiting" and .source.connected == false'; }
is_back () { status_is '.state == "hydrating" and .source.connected'; }

# reader FILE OFFSET COUNT: copies these bytes to FILE, in the background.
readers=()
reader ()
{
  $python - "$(uri clone)" "$@" <<'PY' &
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    data = h.pread(int(sys.argv[4]), int(sys.argv[3]))
    with open(sys.argv[2], "wb") as f:
        f.write(data)
finally:
    # nbdkit 1.32 leaks the connection of a client that vanishes at its end.
    h.shutdown()
PY
  readers+=($!)
  pids+=($!)
}

wait_readers ()
{
  local pid
  for pid in "${readers[@]}"; do wait "$pid"; done
  readers=()
}

# Requests that never wait for the source.
others_go_on ()
{
  both -c 'read 0 1M' -c 'write -P 2 64k 4k' -c 'write -P 3 7M 128k' \
       -c 'write -z 7340032 64k' -c flush
  timeout 60 nbdinfo --map "$(uri clone)" >"$tmp/map"
  test "$(nbdinfo --size "$(uri clone)")" -eq $size
}

log_says ()
{
  grep -E "lost|back" "$tmp/clone.log" || :
  test "$(grep -c ': source [^ ]* is lost: ' "$tmp/clone.log")" -eq "$1"
  test "$(grep -c ': source [^ ]* is back after ' "$tmp/clone.log")" -eq "$2"
}

# How the source goes away, and how it comes back.
away_killed () { kill9 src; }
back_killed () { start_source; }
away_stopped () { stop src; }
back_stopped () { start_source; }
away_cut () { proxy net refuse; proxy net cut; }
back_cut () { proxy net normal; }
away_dropped () { proxy net drop; proxy net cut; }
back_dropped () { proxy net normal; }

for config in killed:several killed:one cut:several cut:one stopped:several \
                             dropped:several; do
  : "the source is $config"
  outage=${config%:*} connections=${config#*:}
  start_all
  away_$outage
  eventually is_lost
  reader "$tmp/part" 2000000 3000000
  # A write to a part of a region needs the bytes around it.
  qemu-io -f raw -c 'write -P 4 6300000 1000' "$(uri clone)" &
  writer=$!
  others_go_on
  is_lost
  kill -0 "${readers[@]}" $writer
  back_$outage
  wait_readers
  wait $writer
  cmp "$tmp/part" <(tail -c +2000001 "$tmp/src" | head -c 3000000)
  qemu-io -f raw -c 'write -P 4 6300000 1000' "$tmp/model"
  eventually is_back
  log_says 1 1
  set_settings '{"hydration-rate": 0}'
  wait_complete
  stop_all
  same "$tmp/dest" "$tmp/model"
done
connections=several

# One outage after the other, with requests of clients and hydration in flight,
# which are sent again.
start_all
set_settings '{"hydration-rate": 2097152}'
for i in 1 2 3; do
  reader "$tmp/part$i" 1048576 6291456
  reader "$tmp/again$i" 1048576 6291456
  proxy net cut
  wait_readers
  for f in part again; do
    cmp "$tmp/$f$i" <(tail -c +1048577 "$tmp/src" | head -c 6291456)
  done
done
set_settings '{"hydration-rate": 0}'
wait_complete
stop_all
same "$tmp/dest" "$tmp/model"

# A silent source is noticed, and then this is an outage like the others.
# Requests that wait longer than source-timeout fail; later ones, when it is
# back, do not.
start_all source-timeout=$silence
proxy net hole
fails qemu-io -f raw -c 'read 2M 64k' "$(uri clone)"
eventually is_lost
eventually grep -q 'is lost: ' "$tmp/clone.log"
others_go_on
fails qemu-io -f raw -c 'read 2M 64k' "$(uri clone)"
proxy net normal
eventually is_back
qemu-io -f raw -c 'read 2M 64k' "$(uri clone)"
log_says 1 1
set_settings '{"hydration-rate": 0}'
control POST /resume
wait_complete
stop_all
same "$tmp/dest" "$tmp/model"

# SIGTERM, with readers that wait, and what has not been flushed.  The process
# does not wait for the source to answer.
no_deadline
for outage in killed cut hole; do
  start_all commit-interval=3600
  case $outage in
    hole) proxy net hole ;;
    *) away_$outage
       eventually is_lost ;;
  esac
  for i in 1 2 3; do reader "$tmp/part" $((i << 21)) 65536; done
  both -c 'write -P 5 3M 512k'
  valid=$(status .hydrated)
  stop clone
  for pid in "${readers[@]}"; do fails wait "$pid"; done
  readers=()
  stop net
  if [ $outage = killed ]; then start_source; fi
  start_proxy net src
  serve_clone "$(uri net)" destination="$tmp/dest" hydration=off
  status_is ".durable >= $valid"
  control POST /resume
  wait_complete
  stop_all
  same "$tmp/dest" "$tmp/model"
done
