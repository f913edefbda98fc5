#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nothing that was acknowledged is lost when the program is killed at
# any of the moments at which a race is decided (lib/test-point.h), one after the
# other: before and after a change's or a copy's bytes and its bit, and between any
# two steps of a commit.  Four clients that never flush go on all the time; and
# the next process is always killed, too, so that bits are taken over again and
# again.  SEED says how often a point is passed before.

. "$(dirname "$0")/functions.sh"

not_under asan tsan valgrind "it would take too long to start again and again"
requires "$python" -c 'import nbd'
plugin=$builddir/tests/scenarios/.libs/clone-with-delays.so
[ -f "$plugin" ] || fail "$plugin is not built"
RANDOM=${SEED:-1}
mapfile -t points < <(sed -n 's/^ *X ([A-Z_]*, "\([a-z-]*\)").*/\1/p' \
                          "$srcdir/../lib/test-point.h")
test ${#points[@]} -eq 18
# The last one is the end of hydration.
test "${points[17]}" = source-dropped

size=$(((64 << 20) + 1536))
make_disk "$tmp/src" $size
serve src -t 1 file "$tmp/src"
mkdir "$tmp/progress"

# start KILL RATE
start ()
{
  CLONE_TEST_KILL=$1 serve_clone "$(uri src)" destination="$tmp/dest" \
      region-size=16K copy-on-read=true hydration-batch-size=64K \
      hydration-rate="$2" commit-interval=0
}

# Whoever flushes makes commits.
has_died ()
{
  has_ended "$pid" && return 0
  if [ "$1" != source-dropped ] &&
     status_is '.state == "complete"' 2>/dev/null; then
    touch "$tmp/completed"
    return 0
  fi
  case $1 in
    commit-*)
      $python -m nbd -u "$(uri clone)" -c 'h.flush()' >/dev/null 2>&1 || : ;;
  esac
  return 1
}

start none:0 100K
$python "$srcdir/kill-all.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
        "$tmp/progress" "$tmp/stop" --crash 65536 --seed "${SEED:-1}" \
        >"$tmp/kill-all.out" 2>&1 &
clients=$!
pids+=("$clients")
kill9 clone
for point in "${points[@]}"; do
  : "$point"
  case $point in
    source-dropped) start $point:1 0 ;;
    commit-*) start $point:$((1 + RANDOM % 2)) 100K ;;
    hydrate-*) start $point:$((1 + RANDOM % 5)) 100K ;;
    *) start $point:$((1 + RANDOM % 20)) 20K ;;
  esac
  # It may be gone already.
  pid=${pids[-1]}
  eventually has_died $point
  # A busy machine may get to the end of hydration first.
  if [ -e "$tmp/completed" ]; then
    kill9 clone
    break
  fi
  reap clone "$pid" || :
  kill -0 $clients || fail "the clients: $(cat "$tmp/kill-all.out")"
done
grep 'are taken over' "$tmp/clone.log"

start none:0 0
touch "$tmp/stop"
rc=0
wait $clients || rc=$?
cat "$tmp/kill-all.out"
test $rc -eq 0
eventually status_is '.state == "complete"'
stop clone
same "$tmp/dest" "$tmp/expected"
