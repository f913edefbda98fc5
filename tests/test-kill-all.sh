#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that no write that was acknowledged with FUA, or covered by a flush that
# was, is lost, and no byte becomes wrong, when the clone and the servers of
# source, destination and metadata are killed with SIGKILL, at random and one or
# two at a time, amid four clients' requests, commits and hydration; and that all
# goes on by itself when they are back.  With the servers of destination and
# metadata goes what they had not flushed.
#
# ROUNDS says how many, SEED which.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
not_under asan tsan valgrind "they would take too long to start again and again"
rounds=${ROUNDS:-$(long_or_short 100 10)}
RANDOM=${SEED:-1}
seed=${SEED:-1}
size=$(((8 << 20) + 1536))
make_disk "$tmp/src" $size
truncate -s $size "$tmp/d"
truncate -s 1M "$tmp/m"
mkdir "$tmp/progress"

# A cache that is lost with its server.  With more threads, nbdkit before 1.34 can
# abort when its client, the clone, vanishes.
start_src () { serve src -t 1 file "$tmp/src"; }
start_dest () { serve dest -t 1 --filter=cache file "$tmp/d" cache=writeback; }
start_meta () { serve meta -t 1 --filter=cache file "$tmp/m" cache=writeback; }

start_clone ()
{
  serve_clone "$(uri src)" destination="$(uri dest)" metadata="$(uri meta)" \
              region-size=16K hydration-rate=$rate hydration-batch-size=64K \
              commit-interval=1
}

# So that hydration has something to do in all rounds.
rate=$((size / rounds / 2))
for name in src dest meta clone; do start_$name; done
$python "$srcdir/kill-all.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
        "$tmp/progress" "$tmp/stop" --seed "$seed" \
        >"$tmp/kill-all.out" 2>&1 &
clients=$!
pids+=("$clients")

# Requests that were acknowledged since progress_begins.
progress_begins () { find "$tmp/progress" -type f -delete; }
# shellcheck disable=SC2012
have_answered ()
{
  [ "$(ls "$tmp/progress" | wc -l)" -ge "$1" ] && return 0
  kill -0 $clients 2>/dev/null || fail "the clients: $(cat "$tmp/kill-all.out")"
  return 1
}

declare -A killed
# The destination has the most to lose.
victims=(clone src dest dest meta)
for ((round = 1; round <= rounds; round++)); do
  first=${victims[RANDOM % 5]} second=${victims[RANDOM % 5]}
  if [ $((RANDOM % 2)) = 0 ]; then second=$first; fi
  : "round $round of $rounds: $first $second"
  progress_begins
  eventually have_answered $((1 + RANDOM % 100))
  for name in $first $second; do
    if [ -s "$tmp/$name.pid" ]; then kill9 $name; fi
    killed[$name]=1
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
echo "kill-all: rounds: $rounds, of ${!killed[*]}; $(cat "$tmp/kill-all.out")"
is_all || left_to_all "90 of 100 rounds"
