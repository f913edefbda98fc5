#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that valgrind finds no error, and no memory that was lost, in the unit
# tests.

. "$(dirname "$0")/functions.sh"

requires_command valgrind
found=no
for t in "$builddir"/tests/unit/test-*; do
  if [ -x "$t" ] && [ -f "$t" ]; then
    found=yes
    CK_FORK=no valgrind --fair-sched=yes --error-exitcode=99 \
      --leak-check=full \
      --errors-for-leak-kinds=definite,indirect \
      --show-leak-kinds=definite,indirect --num-callers=30 \
      --log-file="$tmp/valgrind.log" "$t"
  fi
done
[ $found = yes ] || skip "there are no unit tests"
