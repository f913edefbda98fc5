#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone watch shows the progress of one clone and of several, on
# a terminal (of two widths, which may change, with and without colours) and in
# a file, and that its exit status says how the clones have ended.

. "$(dirname "$0")/functions.sh"
requires_command tmux

nbdclone=$(program tools/nbdclone)
export LC_ALL=C.UTF-8
unset NO_COLOR

# start NAME KEY=VALUE...: a clone, paused, with the control socket
# $tmp/NAME.ctl.
start ()
{
  local name=$1
  shift
  rm -f "$tmp/$name.ctl"
  server "$name" nbdkit -f -P "$tmp/$name.pid" -U "$tmp/$name.sock" "$plugin" \
         control="$tmp/$name.ctl" "$tmp/src" region-size=64K hydration=off "$@"
}

make_disk "$tmp/src" 4M
cd "$tmp"
start a destination="$tmp/a.dest"
start b destination="$tmp/b.dest"

# ---- in a file

# One line for each change of percent or state, whole, and no escape sequences.
"$nbdclone" watch --interval=0.1 a.ctl b.ctl >out 2>err & watcher=$!
pids+=("$watcher")
has_line () { grep -q -E -e "$1" out; }
eventually has_line '^a.ctl: 0% paused  0 bytes of 4 MiB'
eventually has_line '^b.ctl: 0% paused'
qemu-io -f raw -c 'write 0 1M' "$(uri a)"
eventually has_line '^a.ctl: 25% paused  1 MiB of 4 MiB'
"$nbdclone" resume b.ctl
eventually has_line '^b.ctl: 100% complete  4 MiB of 4 MiB$'
kill -0 "$watcher"
"$nbdclone" resume a.ctl
wait "$watcher" || fail "exit status $?"
has_line '^a.ctl: 100% complete  4 MiB of 4 MiB$'
test ! -s err
fails grep -v -E '^[ab].ctl: [0-9]+% [a-z]+  .* of 4 MiB' out
test "$(sort out | sed 's/  .*//' | uniq -d | wc -l)" -eq 0

# A dead server, and a clone that fails, while others go on.
start c destination="$tmp/c.dest"
mkdir files
echo '{"size": 1, "durable": 0, "state": "failed", "mode": "ro"}' \
  >files/status.json
server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
       "$tmp/fake.pid" files "$tmp/files"
"$nbdclone" watch --interval=0.1 c.ctl fake.sock >out 2>err & watcher=$!
pids+=("$watcher")
eventually has_line '^fake.sock: 0% failed .* mode ro'
eventually has_line '^c.ctl: 0% paused'
kill -0 "$watcher"
"$nbdclone" resume c.ctl
rc=0; wait "$watcher" || rc=$?
test $rc -eq 1
grep -q '^nbdclone: fake.sock: hydration has failed$' err
rc=0; "$nbdclone" watch a.ctl nothing >out 2>err || rc=$?
test $rc -eq 4
has_line '^a.ctl: 100% complete'
grep -q '^nbdclone: nothing: cannot connect: No such file' err
for args in "" "--interval=0 a.ctl" "--interval=x a.ctl" "--nonsense a.ctl"; do
  rc=0
  # shellcheck disable=SC2086 # words
  "$nbdclone" watch $args >out 2>err || rc=$?
  test $rc -eq 2
done

# ---- on a terminal

rm -f a.dest* b.dest*
stop a
stop b
start a destination="$tmp/a.dest"
start b destination="$tmp/b.dest"

terminals=0
tm () { tmux -S "$tmp/tmux-$terminals" -f /dev/null "$@"; }
at_exit () { tm kill-server 2>/dev/null || :; }
# terminal COLUMNS COMMAND: a new terminal, on which the command runs.
terminal ()
{
  at_exit
  terminals=$((terminals + 1))
  tm new-session -d -x "$1" -y 10 "cd '$tmp'; $2; echo status \$?; exec cat"
}
screen () { tm capture-pane -p "$@"; }
shows () { screen | grep -q -E -e "$1"; }

# wide COLUMNS: each row fits, and the bar has a third of the width.
wide ()
{
  local columns=$1 bar
  shows '^a.ctl \[> *\]   0.0% paused '
  shows '^b.ctl \[> *\]   0.0% paused '
  test "$(screen | grep -c ctl)" -eq 2
  test "$(screen | wc -L)" -lt "$columns"
  bar=$(screen | sed -n 's/^a.ctl \(\[.*\]\).*/\1/p')
  test ${#bar} -eq $((columns / 3))
}
is_wide () { (wide "$1") 2>/dev/null; }

watch="$nbdclone watch --interval=0.1 a.ctl b.ctl"
terminal 100 "$watch"
eventually is_wide 100
# The state has a colour.
screen -e | grep -q $'\033\\[33mpaused'
# The terminal becomes narrower, and wider again.
tm resize-window -x 60
eventually is_wide 60
tm resize-window -x 120
eventually is_wide 120
# Rows are drawn again in place until the end.
qemu-io -f raw -c 'write 0 1M' "$(uri a)"
eventually shows '^a.ctl \[=+> *\]  25.0% paused'
"$nbdclone" resume a.ctl
eventually shows '^a.ctl \[=+\] 100.0% complete$'
"$nbdclone" resume b.ctl
eventually shows '^status 0$'
shows '^b.ctl \[=+\] 100.0% complete$'
test "$(screen | grep -c ctl)" -eq 2

rm -f b.dest*
stop b
start b destination="$tmp/b.dest"
terminal 60 "NO_COLOR=1 $nbdclone watch --interval=0.1 b.ctl"
eventually shows '^b.ctl \[> *\]   0.0% paused'
fails grep -q $'\033' <(screen -e)
"$nbdclone" stop b.ctl
eventually shows '^status 4$'
# More clones than rows.
terminal 60 "$nbdclone watch --interval=0.1 $(printf 'a.ctl %.0s' {1..20})"
eventually shows '^status 0$'
shows 'and 12 more'
