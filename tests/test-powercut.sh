#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a power cut at any point leaves what I7 allows.  Real nbdkit
# processes run on devices that record their requests, and the clone is started
# again on what a cut could have left (powercut/powercut.py).  Cuts are made
# while the store is created, while clients and hydration are busy, in the last
# commit, and in a run after a crash.  With --all it also proves that three ways
# to break the order of a commit are caught here; test-crash.sh catches them in
# each run.  CUTS is the number of cut points, SEED determines them.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
modules=$builddir/tests/powercut/.libs
cuts=200 controls=()
# A tool checks our own code, not broken builds.
if [ -z "$tool" ] && is_all; then
  requires_command make patch
  make_tests powercut-controls
  for module in "$modules"/control-*.so; do
    name=$(basename "$module" .so)
    controls+=(--control "${name#control-}=$module")
  done
  [ ${#controls[@]} -ge 6 ] || fail "controls are missing"
elif ! is_all; then
  cuts=60
  left_to_all "two of three power cuts, and controls, which test-crash.sh" \
              "catches"
fi

set +x
"$python" "$srcdir/powercut/powercut.py" lab "$tmp" --clone "$plugin" \
          --powercut "$modules/nbdkit-powercut-plugin.so" "${controls[@]}" \
          --cuts "${CUTS:-$(fewer $cuts)}" --seed "${SEED:-1}"
