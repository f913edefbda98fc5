#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves the invariants for the models in model/: spin searches all of their
# states and finds no violation.  With --all it searches with more parameters,
# which takes minutes, and finds each bug of a list, which proves that the
# invariants can fail.

. "$(dirname "$0")/functions.sh"
not_under asan tsan valgrind "none of our code runs in it"
requires_command spin gcc
set +x

# build NAME MODEL DEFINITION...: build $tmp/NAME/pan, with $cflags.
build ()
{
  local dir=$tmp/$1 model=$2
  shift 2
  mkdir "$dir"
  cp "$srcdir/model/$model.pml" "$dir/model.pml"
  (cd "$dir" && spin -a "${@/#/-D}" model.pml &&
     gcc "${cflags[@]}" -w -DSAFETY -DMEMLIM=4000 -o pan pan.c) \
    >"$dir.log" 2>&1 || fail "cannot build $model $*"
}

# search NAME OPTION...: search until there is no new state, or an error.
search ()
{
  local name=$1
  shift
  (cd "$tmp/$name" && ./pan -m100000 "$@") >>"$tmp/$name.log" 2>&1
}

# holds MODEL DEFINITION...: the search of all states finds no error.
states=0
holds ()
{
  local n mb
  build good "$@"
  search good || fail "spin has failed: $*"
  grep -q 'errors: 0$' "$tmp/good.log" || fail "an invariant is broken: $*"
  # spin's messages when it did not search all states.
  fails grep -E -i 'too small|not completed|MEMLIM|out of memory|bit state' \
        "$tmp/good.log"
  n=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$tmp/good.log")
  mb=$(sed -n 's/^ *\([0-9]*\).*total actual memory usage$/\1/p' \
         "$tmp/good.log")
  echo "$*: $n states, $mb MB, $SECONDS s"
  [ "$n" -gt 100000 ] || fail "too few states for it to be true: $n"
  states=$((states + n))
  rm -r "$tmp/good" "$tmp/good.log"
}

# finds MODEL BUG [DEFINITION...]: an assertion fails.
# hangs MODEL BUG [DEFINITION...]: the model comes to a deadlock.
bugs=0
bug ()
{
  local error=$1
  shift
  build bug "$@"
  search bug -w20 || :
  grep -q 'errors: 1$' "$tmp/bug.log" || fail "the bug was not found: $*"
  grep -q "^pan:1: $error" "$tmp/bug.log" ||
    fail "another error than: $error: $*"
  echo "$*: found, $SECONDS s"
  bugs=$((bugs + 1))
  rm -r "$tmp/bug" "$tmp/bug.log"
}
finds () { bug 'assertion violated' "$@"; }
hangs () { bug 'invalid end state' "$@"; }

# The parameters are small.  Each search has something that the others lack: two
# regions in one sector or in two, more requests, hydration, lost servers, a
# full destination, a commit of several rounds, a process after a crash.
cflags=(-O2)
holds clone READS
holds commit MORE=1
holds commit MORE=1 CRASHED
holds commit REGIONS=1 MORE=1 DEST_LOSSES=1
holds commit REQUESTS=0 SECTORS=2 META_LOSSES=1

if ! is_all; then
  left_to_all "eleven more searches, and the bugs that spin must find"
  echo "model: $states states, all invariants hold"
  exit 0
fi

holds clone
holds commit MORE=1 SECTORS=2
holds commit REGIONS=1
holds commit REGIONS=1 MORE=1 FULL
holds commit REGIONS=1 MORE=1 FULL CRASHED
holds commit MORE=1 SECTORS=2 CRASHED
holds commit REGIONS=1 NO_HYDRATION DEST_LOSSES=1 META_LOSSES=1
holds commit REQUESTS=0 SECTORS=2 COMMIT_SECTORS=1 DEST_LOSSES=1

# The same with more of them at a time, which takes minutes.
cflags=(-O2 -DCOLLAPSE)
holds commit
holds commit REGIONS=1 DEST_LOSSES=1
holds commit NO_HYDRATION SECTORS=2 COMMIT_SECTORS=1 DEST_LOSSES=1 \
      META_LOSSES=1

# These are found soon: gcc takes longer than the search.
cflags=(-O0)
finds clone BIT_BEFORE_DATA
finds clone CANCELLED_IS_DONE
finds clone CLOSE_SOURCE_AT_ONCE READS
finds clone NO_SECOND_LOOK
finds clone NO_SECOND_LOOK_AT_EDGES
finds clone OWN_ACROSS_SOURCE_READ
finds clone RELEASE_BEFORE_BIT
finds clone TRIM_SHOWS_OLD
finds clone TRIM_WITHOUT_OWNERSHIP

finds commit BIT_BEFORE_DATA MORE=1
finds commit COMMIT_BEFORE_FLUSH MORE=1
finds commit CROSSING_COMMITS MORE=1
finds commit FORGET_FAILED_SECTORS MORE=1
finds commit FUA_WITHOUT_COMMIT MORE=1
finds commit JOIN_RUNNING_COMMIT MORE=1
finds commit MARK_DURABLE_EARLY MORE=1
finds commit RETRY_AFTER_LOST_FLUSH MORE=1
finds commit REVERT_ON_FAILED_COMMIT MORE=1
finds commit SET_BEFORE_LISTED MORE=1
finds commit SNAPSHOT_AFTER_FLUSH MORE=1
finds commit WRITE_LIVE_BITS MORE=1

# After a crash of the process.
finds commit CRASH_FORGETS_BITS MORE=1
finds commit BIT_TAKEN_OVER_BEFORE_DATA MORE=1 CRASHED
finds commit NO_FLUSH_AT_START MORE=1 CRASHED
finds commit TAKEN_OVER_AFTER_FAILED_FLUSH MORE=1 CRASHED
finds commit TAKEN_OVER_AS_DURABLE MORE=1 CRASHED

# With the destination's server lost.
lost=(REGIONS=1 NO_HYDRATION DEST_LOSSES=1)
finds commit BIT_IN_ANOTHER_STAY "${lost[@]}"
finds commit COMMIT_OUTSIDE_GATE "${lost[@]}"
finds commit COUNTED_OUTSIDE_GATE "${lost[@]}"
finds commit COVERED_AFTER_FLUSH "${lost[@]}"
finds commit COVERED_IS_CHANGES "${lost[@]}"
finds commit FUA_COMMITS_AGAIN "${lost[@]}"
finds commit FUA_LEAVES_GATE "${lost[@]}"
hangs commit LEADER_WAITS_AT_GATE "${lost[@]}"
finds commit LOSS_FORGETS_NOTHING "${lost[@]}"
finds commit LOSS_WITHOUT_GATE "${lost[@]}"
finds commit NEWCOMER_KNOWS_ALL "${lost[@]}"
finds commit NEWCOMER_KNOWS_NOTHING "${lost[@]}"
finds commit NEW_CONNECTION_AT_ONCE "${lost[@]}"
finds commit TELL_AGAIN "${lost[@]}"
finds commit TELL_ONE_CLIENT "${lost[@]}"
finds commit VALID_OUTSIDE_GATE "${lost[@]}"
finds commit COVERED_AFTER_ROUND REQUESTS=0 SECTORS=2 COMMIT_SECTORS=1 \
      DEST_LOSSES=1
finds commit METADATA_ON_TWO_SERVERS REGIONS=1 NO_HYDRATION META_LOSSES=1

echo "model: $states states, all invariants hold; $bugs of 44 bugs found"
