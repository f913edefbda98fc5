#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a destination whose flush fails because it is full recovers.  The
# client's flush fails with ENOSPC, also where a quota is exceeded, because NBD
# has no other error for it.  Each client is told once that writes may be lost.
# Then the clone is writable as before, what is written again is kept, and the
# clone becomes complete.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 1M

# goes_on COMMAND...: tests the running clone; the command makes its destination
# full.
goes_on ()
{
  start_client a "$tmp/src"
  start_client b "$tmp/src"
  client a write 1 a flush write 2 b
  client b write 3 c
  "$@"
  client a ENOSPC flush
  # Neither client can know which writes were lost.
  client a maybe flush
  client b EIO flush flush
  client a flush flush
  status_is '.mode == "rw"'
  client a write 2 d flush read 1 a read 2 d
  client b write 3 e fua 4 f read 3 e
  # The same with FUA.
  client a write 5 g
  "$@"
  client a ENOSPC fua 6 h
  client a maybe flush
  client a write 5 g fua 6 h flush
  client b EIO flush flush
  status_is '.mode == "rw"'
  # A client that connects later is not told.
  start_client c "$tmp/src"
  client c flush
  # Hydration meets the full destination, for example in its last flush.
  "$@"
  control POST /resume >/dev/null
  eventually was_full
  control POST /resume >/dev/null
  eventually status_is '.state == "complete" and .mode == "rw"'
  client a read 1 a read 2 d read 3 e read 4 f read 5 g read 6 h read 7 source
  client a maybe flush flush
  for name in a b c; do end_client $name; done
  kill9 clone
  head -c 65536 "$tmp/src" | cmp -n 65536 - "$tmp/d"
  for region in 1:a 2:d 3:e 4:f 5:g 6:h; do
    cmp -n 65536 <(head -c 65536 /dev/zero | tr '\0' "${region#*:}") \
        <(tail -c +$((${region%:*} * 65536 + 1)) "$tmp/d")
  done
  cmp <(tail -c +458753 "$tmp/src") <(tail -c +458753 "$tmp/d")
}

# An NBD server.
on_server ()
{
  rm -f "$tmp/d" "$tmp/m" "$tmp/clone.log"
  truncate -s 1M "$tmp/d"
  serve_device dest "$tmp/d"
  serve_clone "$tmp/src" destination="$(device dest)" metadata="$tmp/m" \
              region-size=64K hydration=off commit-interval=3600
  was_full () { [ ! -e "$tmp/dest.faults/dest.flush.once" ]; }
  goes_on fault dest flush.once ENOSPC
  stop dest
}

# A local file.
on_file ()
{
  local disk=$builddir/tests/.libs/failing-disk.so error
  [ -f "$disk" ] || fail "$disk is not built"
  # The tool's library is preloaded already.
  [ "$tool" != asan ] && [ "$tool" != tsan ] || return 0
  for error in 28 122; do # ENOSPC, EDQUOT
    rm -rf "$tmp/d" "$tmp/m" "$tmp/clone.log" "$tmp/rules"
    mkdir "$tmp/rules"
    LD_PRELOAD=$disk FAILING_DISK=$tmp/d FAILING_DISK_RULES=$tmp/rules \
      serve_clone "$tmp/src" destination="$tmp/d" metadata="$tmp/m" \
                  region-size=64K hydration=off commit-interval=3600
    was_full () { [ ! -e "$tmp/rules/fdatasync" ]; }
    goes_on eval "echo $error >'$tmp/rules/fdatasync'"
  done
}

parts=(on_server on_file)
run_parts "$@"
