#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the scenarios of unit/test-scenarios can tell: each build that is
# broken by one of controls/*.patch fails at least one of them.  A patch that
# does not apply to lib/ any more fails the test, and so does a build that
# passes.

. "$(dirname "$0")/functions.sh"

not_under asan tsan valgrind "it is about builds that are broken"
requires_command make patch
[ -x "$builddir/tests/unit/test-scenarios" ] || skip "there are no unit tests"

# make's own variables would make these part of the outer make.
unset MAKEFLAGS MFLAGS MAKELEVEL
make -s -C "$builddir/tests" scenarios-controls

# A broken build may hang in one of them: then Check ends it.
export CK_DEFAULT_TIMEOUT=20
controls=0 caught=0
for control in $(make -s -C "$builddir/tests" list-scenarios-controls); do
  name=$(basename "$control")
  controls=$((controls + 1))
  status=0
  "$builddir/tests/$control" >"$tmp/$name.out" 2>&1 || status=$?
  by=$(sed -n 's/.*:[FE]:scenarios:\([a-z_]*\):.*/\1/p' "$tmp/$name.out" |
         sort | uniq -c | awk '{ printf " %s (%d)", $2, $1 }')
  if [ $status -eq 1 ] && [ -n "$by" ]; then
    caught=$((caught + 1))
    echo "$name: caught by$by"
  else
    echo "$name: NOT caught, status $status"
  fi
done
echo "scenarios: controls caught: $caught of $controls"
[ $caught -eq $controls ] && [ $controls -gt 0 ]
