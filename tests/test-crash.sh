#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that no power cut loses data that was flushed, or shows data that was
# never written (crash/lab.c).  It also proves that the laboratory finds these
# bugs: it must find an illegal image of each build that is broken by one of
# controls/*.patch.
# A patch that does not apply to lib/ fails the test, and so does a build that
# is not caught.

. "$(dirname "$0")/functions.sh"

requires_command make patch

# A tool checks our own code, not broken builds.  Each cut takes long there, so
# a history has few of them.
if [ -n "$tool" ]; then
  "$(program tests/crash/lab)" histories=8 every=40 faults=1 |
    sed 's/^/crash: /'
  exit
fi

cuts=$(long_or_short 20000 4000)
# Controls are tried at a few cut points of many histories.  Most are caught in
# one of the first ten histories.  The rare ones need a loss at the right
# moment, which may take a thousand or two; test-scenarios.sh catches these in
# each run.
histories=30000

mapfile -t wanted < <(make_list crash_controls)
if is_all; then
  mapfile -t -O ${#wanted[@]} wanted < <(make_list rare_crash_controls)
fi
make_tests crash/lab "${wanted[@]}"

"$builddir/tests/crash/lab" cuts=$cuts faults=1 | sed 's/^/crash: /'

controls=0 caught=0
for control in "${wanted[@]}"; do
  name=$(basename "$control")
  controls=$((controls + 1))
  status=0
  "$builddir/tests/crash/$name" histories=$histories every=40 images=1 \
    cuts=100000000 deep=0 faults=1 \
    >"$tmp/$name.out" 2>"$tmp/$name.err" || status=$?
  if [ $status -eq 1 ] && grep '^illegal: ' "$tmp/$name.err"; then
    caught=$((caught + 1))
    echo "$name: caught, $(cat "$tmp/$name.out")"
  elif [ $status -eq 134 ] || [ $status -eq 139 ]; then
    # A broken build may crash as well.
    caught=$((caught + 1))
    echo "$name: caught, it crashed, status $status"
  else
    echo "$name: NOT caught, status $status"
  fi
done
echo "crash: controls caught: $caught of $controls"
[ $caught -eq $controls ] && [ $controls -gt 0 ]
is_all || left_to_all "four of five power cuts, and controls that" \
                      "test-scenarios.sh catches"
