#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a clone works when nbdkit has gone to the background, and so to
# the root directory: relative names, hydration, the control socket and the last
# commit.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M
cp "$tmp/src" "$tmp/model"

cd "$tmp"
nbdkit -P clone.pid -U clone.sock "$plugin" src destination=dest \
       control=clone.ctl
cd /
eventually test -s "$tmp/clone.pid"
daemon=$(cat "$tmp/clone.pid")
at_exit () { kill -9 "$daemon" 2>/dev/null; }
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50
wait_complete
kill -TERM "$daemon"
eventually has_ended "$daemon"
same "$tmp/dest" "$tmp/model"
test -e "$tmp/dest.clone"
test ! -e "$tmp/clone.ctl"

# nbdkit's --run hangs with ThreadSanitizer.
[ "$tool" != tsan ] || exit 0

# With --run, nbdkit's exit status is that of the command.
rm "$tmp/dest" "$tmp/dest.clone"
nbdkit -U - "$plugin" "$tmp/src" destination="$tmp/dest" --run '
  nbdcopy "$uri" "'"$tmp/out"'"'
same "$tmp/out" "$tmp/src"
rc=0
nbdkit -U - "$plugin" "$tmp/src" destination="$tmp/dest" --run 'exit 7' ||
  rc=$?
test $rc -eq 7
