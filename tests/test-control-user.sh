#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that with nbdkit's --user and --group the control socket belongs to
# that user, who can use it and, at the end, remove it, in the foreground and in
# the background; that no process is left beside nbdkit; and that without --user
# it belongs to root.

. "$(dirname "$0")/functions.sh"

[ "$(id -u)" -eq 0 ] || skip "needs root, to change the user"
not_under asan tsan valgrind "reports belong to root"
requires_command runuser
user=nobody
group=$(id -gn $user) || skip "needs the user $user"

# A directory like /tmp: everybody can create files, and remove their own.
chmod 1777 "$tmp"
make_disk "$tmp/src" 1M
socket_is () { test "$(stat -c '%U:%G %a' "$tmp/clone.ctl")" = "$1 600"; }
# (The pattern does not match itself.)
processes () { grep -l -s "$tmp/clone[.]ctl" /proc/[0-9]*/cmdline | wc -l; }
is_alone () { [ "$(processes)" -eq 1 ]; }

nbdkit_args=(--user $user --group "$group")
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
eventually socket_is "$user:$group"
runuser -u $user -- curl -sS --unix-socket "$tmp/clone.ctl" \
        http://localhost/status | jq -e '.size == 1048576'
eventually is_alone
stop clone
test ! -e "$tmp/clone.ctl"

# A socket that a killed server left behind, which belongs to the user.
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
eventually socket_is "$user:$group"
kill9 clone
test -S "$tmp/clone.ctl"
rm "$tmp/clone.sock"
nbdkit "${nbdkit_args[@]}" -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
       "$tmp/src" destination="$tmp/dest" control="$tmp/clone.ctl"
eventually test -s "$tmp/clone.pid"
daemon=$(cat "$tmp/clone.pid")
at_exit () { kill -9 "$daemon" 2>/dev/null; }
eventually socket_is "$user:$group"
wait_complete
kill -TERM "$daemon"
eventually has_ended "$daemon"
test ! -e "$tmp/clone.ctl"
test ! -e "$tmp/clone.ctl.lock"

nbdkit_args=()
serve_clone "$tmp/src" destination="$tmp/dest"
socket_is root:root
eventually is_alone
stop clone
test ! -e "$tmp/clone.ctl"
