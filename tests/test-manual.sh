#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the manual pages have no syntax errors, and that nbdclone(1) and
# nbdclone --help have the same commands and options.

. "$(dirname "$0")/functions.sh"

requires_command podchecker
for pod in "$srcdir"/../plugin/*.pod "$srcdir"/../tools/*.pod; do
  podchecker "$pod"
done

sed -n '/^=head1 SYNOPSIS/,/^=head1 DESCRIPTION/p' \
    "$srcdir/../tools/nbdclone.pod" |
  sed -n 's/^ *\(nbdclone .*\)/\1/p' >"$tmp/manual"
"$(program tools/nbdclone)" --help | sed -n 's/^ *\(nbdclone [a-z-]* .*\)/\1/p' |
  grep -v 'looks at' >"$tmp/help"
diff "$tmp/manual" "$tmp/help"
