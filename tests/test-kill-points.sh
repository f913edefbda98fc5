#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nothing that was acknowledged is lost when the program is killed
# at any test point (lib/base/test-point.h), one after the other: before and
# after the bytes and the bit of a change or a copy, and between any two steps
# of a commit.  Four clients that never flush run all the time, and each process
# is killed, so that the bits are taken over again and again.  The program is
# killed three times at each point, each time after a random number of passes.
# SEED determines these numbers.

. "$(dirname "$0")/functions.sh"

not_under asan tsan valgrind "it would take too long to start again and again"
requires "$python" -c 'import nbd'
plugin=$builddir/tests/scenarios/.libs/clone-with-delays.so
[ -f "$plugin" ] || fail "$plugin is not built"
# At all points but that of block status, which changes nothing.
mapfile -t points < <(sed -n 's/^ *X ([A-Z_]*, "\([a-z-]*\)").*/\1/p' \
                          "$srcdir/../lib/base/test-point.h" |
                        grep -v -x status-looked)
test ${#points[@]} -eq 18
# Those of a commit, and the end of hydration, are the last ones.
test "${points[12]} ${points[13]} ${points[16]} ${points[17]}" = \
     "hydrate-set commit-snapshot commit-durable source-dropped"

make_disk "$tmp/src" $(((96 << 20) + 1536))
serve src -t 1 file "$tmp/src"
mkdir "$tmp/progress"

# start KILL RATE
start ()
{
  CLONE_TEST_KILL=$1 serve_clone "$(uri src)" destination="$tmp/dest" \
      region-size=16K copy-on-read=true hydration-batch-size=64K \
      hydration-rate="$2" commit-interval=0
}

# A flush makes a commit.  The clients get on by a few requests each time, so
# that they do not complete the clone before the process is killed on a slow
# machine; if they do, this seed is over.
has_died ()
{
  has_ended "$pid" && return 0
  find "$tmp/progress" -type f -delete
  if [ "$1" != source-dropped ] &&
     status_is '.state == "complete"' 2>/dev/null; then
    complete=yes
    return 0
  fi
  case $1 in
    commit-*)
      $python -m nbd -u "$(uri clone)" -c 'h.flush()' >/dev/null 2>&1 || : ;;
  esac
  return 1
}

# Kill the clone at this point.
kill_at ()
{
  if [ -n "$complete" ]; then return 0; fi
  case $1 in
    source-dropped) start "$1":1 0 ;;
    commit-*) start "$1":$((1 + RANDOM % 2)) 100K ;;
    hydrate-*) start "$1":$((1 + RANDOM % 5)) 100K ;;
    *) start "$1":$((1 + RANDOM % 10)) 20K ;;
  esac
  # The process may have ended already.
  pid=${pids[-1]}
  eventually has_died "$1"
  if [ -n "$complete" ]; then
    kill9 clone
    return 0
  fi
  reap clone "$pid" || :
  kill -0 $clients || fail "the clients: $(cat "$tmp/kill-all.out")"
  kills=$((kills + 1))
}

# all_points SEED
kills=0
all_points ()
{
  local point turn rc=0
  RANDOM=$1 complete=
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/stop" "$tmp/clone.log"
  start none:0 100K
  $python "$srcdir/kill-all.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
          "$tmp/progress" "$tmp/stop" --crash 65536 --seed "$1" --ahead 60 \
          >"$tmp/kill-all.out" 2>&1 &
  clients=$!
  pids+=("$clients")
  kill9 clone
  # A commit's points come last: its flushes are many, and the disk must not be
  # all valid before.
  for turn in 1 2 3; do
    for point in "${points[@]:0:13}"; do
      : "$point, turn $turn"
      kill_at "$point"
    done
  done
  for turn in 1 2 3; do
    for point in "${points[@]:13:4}"; do
      : "$point, turn $turn"
      kill_at "$point"
    done
  done
  kill_at source-dropped
  grep 'durable are taken over' "$tmp/clone.log"

  start none:0 0
  touch "$tmp/stop"
  wait $clients || rc=$?
  cat "$tmp/kill-all.out"
  test $rc -eq 0
  eventually status_is '.state == "complete"'
  stop clone
  same "$tmp/dest" "$tmp/expected"
}

first=${SEED:-1}
runs=$(long_or_short 5 1)
for ((seed = first; seed < first + runs; seed++)); do
  all_points $seed
done
echo "kill-points: $kills kills at ${#points[@]} points, seeds from $first"
is_all || left_to_all "four of five runs"
