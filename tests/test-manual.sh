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
nbdclone=$(program tools/nbdclone)
"$nbdclone" --help | sed -n 's/^  *\(nbdclone [A-Za-z-]* .*\)/\1/p' >"$tmp/help"
diff "$tmp/manual" "$tmp/help"

# options_of COMMAND: those in the command's section of the manual.
options_of ()
{
  sed -n "/^=head2 nbdclone $1\$/,/^=head/p" "$srcdir/../tools/nbdclone.pod" |
    sed -n 's/^=item B<\(--[a-z-]*\).*/\1/p'
}
options_of_all=$(sed -n '/^=head2 CONTROL$/,/^=head2/p' \
                     "$srcdir/../tools/nbdclone.pod" |
                   sed -n 's/^=item B<\(--[a-z-]*\).*/\1/p')
test "$(wc -w <<<"$options_of_all")" -eq 2
while read -r _ command usage; do
  case $command in COMMAND | --*) continue ;; esac
  all=
  case $usage in *CONTROL*) all=$options_of_all ;; esac
  { options_of "$command"; echo "$all"; } | sed '/^$/d' | sort -u >"$tmp/manual"
  "$nbdclone" "$command" --help | sed -n 's/^  \(--[a-z-]*\).*/\1/p' |
    sort -u >"$tmp/options"
  diff "$tmp/manual" "$tmp/options"
done <"$tmp/help"
