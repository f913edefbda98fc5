#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that valgrind finds no error, and no memory that was lost, in the unit
# tests.

tool_wanted=valgrind
. "$(dirname "$0")/functions.sh"

requires_command valgrind
found=no
for t in "$builddir"/tests/unit/test-*; do
  # The consistency tester's checker has nothing of lib/.
  [ "$(basename "$t")" != test-consistency ] || continue
  if [ -x "$t" ] && [ -f "$t" ]; then
    found=yes
    "$(program "tests/unit/$(basename "$t")")"
  fi
done
[ $found = yes ] || skip "there are no unit tests"
