#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that one process has a destination and its metadata to itself, from
# before nbdkit goes to the background until the process ends, however it ends
# (I11).

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 1M
args=("$tmp/src" destination="$tmp/dest" hydration=off)
in_use='lock|in use|another process'

second_is_refused ()
{
  refused "$in_use" "${args[@]}"
  # The same destination with other metadata, and the other way round.
  refused "$in_use" "${args[@]}" metadata="$tmp/other.clone" create=always
  refused "$in_use" "$tmp/src" destination="$tmp/other" \
          metadata="$tmp/dest.clone" create=always
}

serve_clone "${args[@]}"
second_is_refused
# Several clones may have one source.
serve other "$plugin" "$tmp/src" destination="$tmp/dest2"
stop other
# The lock does not outlive its process, not even after SIGKILL.
kill9 clone
serve_clone "${args[@]}"
stop clone

# In the background, without -f.
nbdkit -P "$tmp/daemon.pid" -U "$tmp/daemon.sock" "$plugin" "${args[@]}"
eventually test -s "$tmp/daemon.pid"
daemon=$(cat "$tmp/daemon.pid")
# When it serves it has written its generation to the metadata.
eventually nbdinfo --size "$(uri daemon)"
at_exit () { kill -9 "$daemon" 2>/dev/null; }
second_is_refused
qemu-io -f raw -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' "$(uri daemon)"
kill -TERM "$daemon"
eventually has_ended "$daemon"
serve_clone "${args[@]}"
status_is '.durable == 16'
stop clone

# nbdkit's --run hangs with ThreadSanitizer.
[ "$tool" != tsan ] || exit 0

# With --run the lock is taken before the command runs.
nbdkit -U - "$plugin" "${args[@]}" --run '
  nbdinfo --size "$uri" &&
  ! nbdkit -f -U - "'"$plugin"'" source="'"$tmp/src"'" \
           destination="'"$tmp/dest"'" 2>"'"$tmp/run.out"'" --run true'
grep -E -i "$in_use" "$tmp/run.out"
