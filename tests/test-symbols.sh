#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the plugin exports the symbols that nbdkit looks up, and no
# others, because nbdkit loads all plugins into one name space.  Also proves
# that test points cost nothing in a normal build, which has none.

. "$(dirname "$0")/functions.sh"

not_under asan tsan "the compiler adds symbols"
requires_command nm
nm -D --defined-only "$plugin" >"$tmp/symbols"
cat "$tmp/symbols"
grep -q ' T plugin_init$' "$tmp/symbols"
for flag in request region commit hydrate; do
  grep -q " [BD] clone_debug_$flag\$" "$tmp/symbols"
done
fails grep -v -E ' (T plugin_init|[BD] clone_debug_[a-z]+)$' "$tmp/symbols"

nm "$plugin" >"$tmp/all"
grep -q ' t clone_pread$' "$tmp/all"
fails grep test_point "$tmp/all"
nm "$builddir/tests/scenarios/.libs/clone-with-delays.so" >"$tmp/points"
grep -q test_point "$tmp/points"
