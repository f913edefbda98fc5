#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the plugin needs no /proc, which a chroot may not have: it creates
# its destination, serves it, answers the control interface, refuses a second
# process, and completes the clone.

. "$(dirname "$0")/functions.sh"
not_under asan tsan valgrind "the tools themselves need /proc"
# A mount namespace of its own, so that no root is needed.
requires unshare -rm mount -t tmpfs none /proc

mkdir "$tmp/bin"
cat >"$tmp/bin/nbdkit" <<'SH'
#!/bin/sh
exec unshare -rm sh -c 'mount -t tmpfs none /proc && ! [ -e /proc/self ] &&
  exec "$@"' nbdkit "$NBDKIT" "$@"
SH
chmod +x "$tmp/bin/nbdkit"
NBDKIT=$(command -v nbdkit)
export NBDKIT
PATH=$tmp/bin:$PATH

make_disk "$tmp/src" 16M
cp "$tmp/src" "$tmp/model"
# Nothing but the refused process may change a file.
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off commit-interval=0
test "$(stat -c %a "$tmp/dest") $(stat -c %a "$tmp/dest.clone")" = "600 600"
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50
refused 'lock|in use|another process' "$tmp/src" destination="$tmp/dest"

# It goes on where it was, with files that are there.  No /proc tells one boot
# from another: what has not been flushed may be lost with the process.
qemu-io -f raw -c flush "$(uri clone)"
kill9 clone
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
status_is '.hydrated < .regions'
control POST /resume
wait_complete
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50
stop clone
same "$tmp/dest" "$tmp/model"
