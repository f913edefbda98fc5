#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the scenarios of unit/test-scenarios and the cells of
# unit/test-losses find bugs: each build that is broken by one of
# controls/*.patch fails at least one of them.  A patch that does not apply to
# lib/ fails the test, and so does a build that passes.  Controls that
# test-crash.sh catches are left to --all.

. "$(dirname "$0")/functions.sh"

not_under asan tsan valgrind "it is about builds that are broken"
requires_command make patch
[ -x "$builddir/tests/unit/test-scenarios" ] || skip "there are no unit tests"

mapfile -t all < <(make_list scenarios_controls; make_list losses_controls)
if is_all; then
  wanted=("${all[@]}")
else
  # test-crash.sh catches the others.
  others=$(make_list crash_controls | sed 's,crash/,,' | paste -sd '|')
  mapfile -t wanted < <(printf '%s\n' "${all[@]}" | grep -vE "/($others)\$")
fi
make_tests "${wanted[@]}"

# A broken build may wait in vain.
export MOCK_PATIENCE=20
controls=0 caught=0
for control in "${wanted[@]}"; do
  name=$(basename "$control")
  controls=$((controls + 1))
  status=0
  "$builddir/tests/$control" >"$tmp/$name.out" 2>&1 || status=$?
  by=$(sed -n 's/.*:[FE]:[a-z]*:\([a-z_]*\):.*/\1/p' "$tmp/$name.out" |
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
is_all || left_to_all "$((${#all[@]} - controls)) controls that" \
                      "test-crash.sh catches"
