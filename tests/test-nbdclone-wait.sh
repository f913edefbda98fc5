#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone waits for several clones at once and says how that has
# ended, and that it pauses, resumes, sets and stops a clone.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)

said ()
{
  local word
  for word; do
    grep -q -F -e "$word" "$tmp/out" "$tmp/err" || fail "it does not say $word"
  done
}

# start NAME KEY=VALUE...: a clone, paused, with the control socket
# $tmp/NAME.ctl.
start ()
{
  local name=$1
  shift
  rm -f "$tmp/$name.ctl"
  server "$name" nbdkit -f -P "$tmp/$name.pid" -U "$tmp/$name.sock" "$plugin" \
         control="$tmp/$name.ctl" "$tmp/src" region-size=64K hydration=off "$@"
}

# is NAME FILTER: is the jq filter true for the clone's status?
is ()
{
  "$nbdclone" status --json "$tmp/$1.ctl" | jq -e "$2" >/dev/null
}

a=$tmp/a.ctl b=$tmp/b.ctl
make_disk "$tmp/src" 4M
start a destination="$tmp/a.dest"
start b destination="$tmp/b.dest"

# ---- pause, resume, set

nbdclone_exits 0 set "$a" hydration-rate=5M hydration-batch-size=65536
said 'hydration-rate: 5 MiB/s' 'hydration-batch-size: 64 KiB'
is a '.settings."hydration-rate" == 5242880 and
      .settings."hydration-batch-size" == 65536'
nbdclone_exits 1 set "$a" hydration-rate=1M nonsense=1
said '"nonsense" is not a setting'
nbdclone_exits 1 set "$a" hydration-rate=1M hydration-threshold=fast
said 'hydration-threshold'
is a '.settings."hydration-rate" == 5242880'
for args in "set $a" "set $a hydration-rate" "set $a =5" "set" "pause" \
            "pause $a $b" "wait" "stop --timeout=-1 $a" \
            "wait --timeout=x $a"; do
  # shellcheck disable=SC2086 # words
  nbdclone_exits 2 $args
done
nbdclone_exits 0 set "$a" hydration-rate=0
nbdclone_exits 0 resume "$b"
nbdclone_exits 0 wait "$b"
nbdclone_exits 0 pause "$a"
nbdclone_exits 0 pause "$a"
is a '.state == "paused"'

# ---- wait

# Each clone is asked, whatever the time.
nbdclone_exits 3 wait --timeout=0 "$a" "$b"
said '1 of 2 clones'
"$nbdclone" wait "$a" "$b" & waiter=$!
pids+=("$waiter")
nbdclone_exits 0 resume "$a"
wait "$waiter" || fail "wait: exit status $?"
nbdclone_exits 0 wait --timeout=0 "$b" "$a"
same "$tmp/a.dest" "$tmp/src"

# A clone that fails ends the wait, whatever the others do.
serve broken --filter=error memory 4M error-pwrite-rate=100%
start c destination="$(uri broken)" metadata="$tmp/c.meta"
start d destination="$tmp/d.dest"
nbdclone_exits 3 wait --timeout=0 "$tmp/c.ctl" "$tmp/d.ctl"
nbdclone_exits 0 resume "$tmp/c.ctl"
nbdclone_exits 1 wait "$tmp/d.ctl" "$tmp/c.ctl"
said "$tmp/c.ctl: hydration has failed"
nbdclone_exits 4 wait "$tmp/d.ctl" "$tmp/nothing"
said "$tmp/nothing: cannot connect"
kill9 c

# nbdkit ends, or is killed, perhaps before it was asked.
waits ()
{
  "$nbdclone" wait "$tmp/d.ctl" >"$tmp/out" 2>"$tmp/err" & waiter=$!
  pids+=("$waiter")
}
must_fail ()
{
  local rc=0
  wait "$waiter" || rc=$?
  cat "$tmp/err"
  test $rc -eq 4
  test "$(wc -l <"$tmp/err")" -eq 1
}
waits
stop d
must_fail
start d destination="$tmp/d.dest"
waits
kill9 d
must_fail

# A server that answers once, and then hangs until it is asked again.
mkdir "$tmp/files"
cat >"$tmp/files/status.json" <<'END'
{"size": 1, "durable": 0, "state": "hydrating", "mode": "rw"}
END
server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
       "$tmp/fake.pid" stuck "$tmp/files"
nbdclone_exits 4 wait --answer-timeout=3 "$tmp/fake.sock"
said 'ended without an answer'
diff - "$tmp/fake.sock.requests" <<'END'
GET /status HTTP/1.1
GET /wait HTTP/1.1
GET /status HTTP/1.1
END
kill9 fake

# ---- stop

pid=$(cat "$tmp/a.pid")
nbdclone_exits 0 stop "$a"
has_ended "$pid"
nbdclone_exits 4 stop "$a"
reap a "$pid"
kill9 b

# It waits until everything is durable, or for as long as it may.
serve_pausable dest memory 4M
start e destination="$(uri dest)" metadata="$tmp/e.meta"
hold dest
before=$(requests dest Write)
qemu-io -f raw -c 'write 0 64k' "$(uri e)" & client=$!
pids+=("$client")
arrived () { test "$(requests dest Write)" -gt "$before"; }
eventually arrived
pid=$(cat "$tmp/e.pid")
nbdclone_exits 3 stop --timeout=0 "$tmp/e.ctl"
said 'has not ended'
fails has_ended "$pid"
let_go dest
reap e "$pid"
wait "$client" || :
