#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that bash completes the commands, options and settings of nbdclone,
# and that nbdkit's own completion finds the plugin's keys in its --help.

. "$(dirname "$0")/functions.sh"

program=$(program tools/nbdclone)
nbdclone () { "$program" "$@"; }
. "$srcdir/../tools/completions/nbdclone"
complete -p nbdclone | grep -q -e '-F _nbdclone nbdclone'

# completes WORD...: print the completions of the last word, sorted.
completes ()
{
  COMP_WORDS=("$@")
  COMP_CWORD=$(($# - 1))
  "_$1"
  printf '%s\n' "${COMPREPLY[@]}" | sort | paste -s -d ' '
}

test "$(completes nbdclone wa)" = 'wait watch'
test "$(completes nbdclone --v)" = --version
for command in $("$program" --help | sed -n 's/^  nbdclone \([a-z]*\) .*/\1/p')
do
  test "$(completes nbdclone "$command")" = "$command"
done
test "$(completes nbdclone map --)" = '--answer-timeout= --help --svg= --token='
test "$(completes nbdclone check --)" = '--all --help'
# The rest are names of files.
test -z "$(completes nbdclone status '')"
test -z "$(completes nbdclone set '')"

# The settings are those of the clone.
make_disk "$tmp/src" 1M
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
ctl=$tmp/clone.ctl
control GET /settings | jq -r 'keys[] | . + "="' | sort >"$tmp/settings"
test "$(wc -l <"$tmp/settings")" -ge 3
completes nbdclone set "$ctl" '' | tr ' ' '\n' | diff "$tmp/settings" -
test "$(completes nbdclone set "$ctl" hydration-r)" = hydration-rate=
test -z "$(completes nbdclone set "$ctl" hydration-rate = '')"
test -z "$(completes nbdclone set "$tmp/nothing" '')"

# nbdkit's completion, which needs one function of the package bash-completion.
_init_completion ()
{
  words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
  cur=${words[cword]} prev=${words[cword - 1]} split=false
}
# The name clone is ours.  (The completion has a variable `plugin'.)
our_plugin=$plugin
nbdkit ()
{
  if [ "$1" = clone ]; then set -- "$our_plugin" "${@:2}"; fi
  command nbdkit "$@"
}
file=/usr/share/bash-completion/completions/nbdkit
if [ -e "$file" ]; then
  # shellcheck source=/dev/null
  . "$file"
  test "$(completes nbdkit clone hydration-)" = "hydration-batch-size=\
 hydration-priority= hydration-rate= hydration-threshold="
  completes nbdkit clone '' | tr ' ' '\n' >"$tmp/keys"
  sed -n 's/^=item B<\([a-z-]*\)=.*/\1=/p' \
      "$srcdir/../plugin/nbdkit-clone-plugin.pod" |
    grep -v -x 'source=' | sort -u | diff - "$tmp/keys"
fi
