#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that valgrind finds no error and no lost memory in the unit tests.

tool_wanted=valgrind
. "$(dirname "$0")/functions.sh"

requires_command valgrind
found=no
for t in "$builddir"/tests/unit/test-*; do
  # This one tests the consistency tester, and nothing of lib/.
  [ "$(basename "$t")" != test-consistency ] || continue
  if [ -x "$t" ] && [ -f "$t" ]; then
    found=yes
    "$(program "tests/unit/$(basename "$t")")"
  fi
done
[ $found = yes ] || skip "there are no unit tests"
