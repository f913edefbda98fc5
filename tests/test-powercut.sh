#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a power cut at any point leaves what I7 allows: real nbdkit
# processes, threads and connections on devices that record what reaches them,
# and a restart on what a cut could have left.  Cuts are made in creation, amid
# clients and hydration, in the last commit, and in a run after a crash.  It also
# proves that three ways to break the order of a commit are caught.  See
# powercut/powercut.py.  CUTS says how many cut points, SEED which.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
modules=$builddir/tests/powercut/.libs
controls=()
for module in "$modules"/control-*.so; do
  name=$(basename "$module" .so)
  controls+=(--control "${name#control-}=$module")
done
[ ${#controls[@]} -ge 6 ] || fail "controls are missing"
# Under a tool, our own code is what counts.
[ -z "$tool" ] || controls=()

set +x
"$python" "$srcdir/powercut/powercut.py" lab "$tmp" --clone "$plugin" \
          --powercut "$modules/nbdkit-powercut-plugin.so" "${controls[@]}" \
          --cuts "${CUTS:-$(fewer 200)}" --seed "${SEED:-1}"
