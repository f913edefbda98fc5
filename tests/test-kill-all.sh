#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that no write that was acknowledged with FUA, or covered by an
# acknowledged flush, is lost, and that no byte becomes wrong, when the clone
# and the servers of source, destination and metadata are killed with SIGKILL
# amid the requests of four clients, commits and hydration; and that everything
# goes on by itself when they are back.  A round kills one of them, two at the
# same moment, or a server and then, when the clone has noticed that, the clone.
# The servers of destination and metadata take with them what they had not
# flushed.
#
# ROUNDS is the number of rounds, SEED determines the clients' requests and when
# each round kills.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
not_under asan tsan valgrind "they would take too long to start again and again"
rounds=${ROUNDS:-$(long_or_short 100 10)}
RANDOM=${SEED:-1}
seed=${SEED:-1}
# So large that regions are invalid, and become valid, in all rounds.
size=$((((rounds + 8) << 19) + 1536))
make_disk "$tmp/src" $size
truncate -s $size "$tmp/d"
truncate -s 1M "$tmp/m"
mkdir "$tmp/progress"

# A cache that is lost with its server.  With more threads, nbdkit before 1.34
# can abort when its client, the clone, vanishes.
start_src () { serve src -t 1 file "$tmp/src"; }
start_dest () { serve dest -t 1 --filter=cache file "$tmp/d" cache=writeback; }
start_meta () { serve meta -t 1 --filter=cache file "$tmp/m" cache=writeback; }

start_clone ()
{
  serve_clone "$(uri src)" destination="$(uri dest)" metadata="$(uri meta)" \
              region-size=4K hydration-rate=$rate hydration-batch-size=64K \
              commit-interval=1
}

# So that hydration has something to do in all rounds.
rate=$((size / rounds / 2))
for name in src dest meta clone; do start_$name; done
$python "$srcdir/kill-all.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
        "$tmp/progress" "$tmp/stop" --seed "$seed" --ahead 110 \
        >"$tmp/kill-all.out" 2>&1 &
clients=$!
pids+=("$clients")

# What is killed in a round, in this order.  After NAME: the clone goes on until
# it has noticed that this server is lost.
kinds=(
  "clone" "dest" "meta" "src"
  "clone dest" "clone meta" "dest meta" "dest src"
  "meta: clone" "dest: clone"
)
losses () { grep -c ' is lost: ' "$tmp/clone.log" || :; }
has_noticed () { [ "$(losses)" -gt "$1" ]; }

for ((round = 1; round <= rounds; round++)); do
  kind=${kinds[(round - 1) % ${#kinds[@]}]}
  : "round $round of $rounds: $kind"
  progress_begins
  eventually have_answered $((1 + RANDOM % 100))
  for name in $kind; do
    is_running "${name%:}" || fail "$name has ended by itself"
    before=$(losses)
    kill9 "${name%:}"
    if [ "$name" != "${name%:}" ]; then eventually has_noticed "$before"; fi
  done
  # The clone does not start without them.
  for name in src dest meta clone; do
    if [ ! -s "$tmp/$name.pid" ]; then start_$name; fi
  done
done

# All goes on by itself.
progress_begins
eventually have_answered 100
touch "$tmp/stop"
rc=0
wait $clients || rc=$?
cat "$tmp/kill-all.out"
test $rc -eq 0
eventually status_is '.mode == "rw"'
set_settings '{"hydration-rate": 0}'
eventually status_is '.state == "complete"'
stop clone
stop dest
stop meta
same "$tmp/d" "$tmp/expected"
printf -v list '%s, ' "${kinds[@]}"
echo "kill-all: $rounds rounds of ${list%, }; $(cat "$tmp/kill-all.out")"
is_all || left_to_all "90 of 100 rounds"
