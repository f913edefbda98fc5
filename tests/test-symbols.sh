#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the plugin exports what nbdkit looks up, and no other symbol:
# nbdkit loads plugins into one name space.

. "$(dirname "$0")/functions.sh"

requires_command nm
nm -D --defined-only "$plugin" >"$tmp/symbols"
cat "$tmp/symbols"
grep -q ' T plugin_init$' "$tmp/symbols"
for flag in request region commit hydrate; do
  grep -q " [BD] clone_debug_$flag\$" "$tmp/symbols"
done
fails grep -v -E ' (T plugin_init|[BD] clone_debug_[a-z]+)$' "$tmp/symbols"
