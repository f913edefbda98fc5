#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the plugin accepts exactly the keys that its manual page and
# --help describe.

. "$(dirname "$0")/functions.sh"

code=$srcdir/../plugin/parameters.c
pod=$srcdir/../plugin/nbdkit-clone-plugin.pod

sed -n 's/.*strcmp (key, "\([a-z-]*\)") == 0.*/\1/p' "$code" |
  sort >"$tmp/code"
sed -n 's/^=item B<\([a-z-]*\)=.*/\1/p' "$pod" | sort -u >"$tmp/manual"
nbdkit --help "$plugin" |
  sed -n 's/^\[\(source\)=\].*/\1/p; s/^\([a-z-]*\)=[^ ].*/\1/p' |
  sort -u >"$tmp/help"
test "$(wc -l <"$tmp/code")" -ge 17
diff "$tmp/code" "$tmp/manual"
diff "$tmp/code" "$tmp/help"

# The synopsis has all of them.
sed -n '/^=head1 SYNOPSIS/,/^=head1 DESCRIPTION/p' "$pod" >"$tmp/synopsis"
while read -r key; do
  grep -q "$key=" "$tmp/synopsis"
  # The plugin accepts the key: its error is about something else.
  nbdkit -f -U "$tmp/x.sock" "$plugin" "$key=%" nonsense=1 \
         >"$tmp/out" 2>&1 </dev/null || :
  fails grep -i -q "unknown parameter '$key'" "$tmp/out"
done <"$tmp/code"
