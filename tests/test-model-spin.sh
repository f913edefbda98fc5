#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# The models in model/: spin looks at every state that they can be in, and finds
# the invariants true in all of them.  And it finds each bug of a list, which
# shows that the invariants say something.

. "$(dirname "$0")/functions.sh"
not_under asan tsan valgrind "none of our code runs in it"
requires_command spin gcc
set +x

# build NAME MODEL DEFINITION...: makes $tmp/NAME/pan.
build ()
{
  local dir=$tmp/$1 model=$2
  shift 2
  mkdir "$dir"
  cp "$srcdir/model/$model.pml" "$dir/model.pml"
  (cd "$dir" && spin -a "${@/#/-D}" model.pml &&
     gcc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=2000 -o pan pan.c) \
    >"$dir.log" 2>&1 || fail "cannot build $model $*"
}

# search NAME: looks until there is nothing new, or an error.
search ()
{
  (cd "$tmp/$1" && ./pan -m100000) >>"$tmp/$1.log" 2>&1
}

# holds MODEL DEFINITION...: all states, and no error.
states=0
holds ()
{
  local n mb
  build good "$@"
  search good || fail "spin has failed: $*"
  grep -q 'errors: 0$' "$tmp/good.log" || fail "an invariant is broken: $*"
  # What spin says when it did not look everywhere.
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

# finds MODEL BUG [DEFINITION...]: an assertion does not hold.
bugs=0
finds ()
{
  build bug "$@"
  search bug || :
  grep -q 'errors: 1$' "$tmp/bug.log" || fail "the bug was not found: $*"
  grep -q 'assertion violated' "$tmp/bug.log" ||
    fail "another error than an assertion: $*"
  echo "$*: found, $SECONDS s"
  bugs=$((bugs + 1))
  rm -r "$tmp/bug" "$tmp/bug.log"
}

holds clone
holds clone READS
holds commit
holds commit SECTORS=2 MORE=1

finds clone BIT_BEFORE_DATA
finds clone CANCELLED_IS_DONE
finds clone CLOSE_SOURCE_AT_ONCE READS
finds clone NO_SECOND_LOOK
finds clone NO_SECOND_LOOK_AT_EDGES
finds clone OWN_ACROSS_SOURCE_READ
finds clone RELEASE_BEFORE_BIT
finds clone TRIM_SHOWS_OLD
finds clone TRIM_WITHOUT_OWNERSHIP

finds commit BIT_BEFORE_DATA
finds commit COMMIT_BEFORE_FLUSH
finds commit CROSSING_COMMITS
finds commit FORGET_FAILED_SECTORS
finds commit FUA_WITHOUT_COMMIT
finds commit JOIN_RUNNING_COMMIT
finds commit MARK_DURABLE_EARLY
finds commit RETRY_AFTER_LOST_FLUSH
finds commit REVERT_ON_FAILED_COMMIT
finds commit SET_BEFORE_LISTED MORE=1
finds commit SNAPSHOT_AFTER_FLUSH MORE=1
finds commit WRITE_LIVE_BITS MORE=1

echo "model: $states states, all invariants hold; $bugs of 21 bugs found"
