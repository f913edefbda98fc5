#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that --dump-plugin prints the plugin's name, its version and the
# version of the metadata format, without any parameter; and that --help and
# --version work.

. "$(dirname "$0")/functions.sh"

nbdkit --dump-plugin "$plugin" >"$tmp/dump"
cat "$tmp/dump"
grep -x 'name=clone' "$tmp/dump"
grep -x 'magic_config_key=source' "$tmp/dump"
grep -x 'max_thread_model=parallel' "$tmp/dump"
grep -x 'thread_model=parallel' "$tmp/dump"
grep -E -x 'clone_metadata_version=2' "$tmp/dump"
version=$(sed -n 's/^version=//p' "$tmp/dump")
test -n "$version"
nbdkit --version "$plugin" | grep -F "clone $version"
nbdkit --help "$plugin" | grep -F destination=
# Each feature is yes or no.
sed -n '/^clone_has_/p' "$tmp/dump" >"$tmp/has"
fails grep -v -E '=(yes|no)$' "$tmp/has"
