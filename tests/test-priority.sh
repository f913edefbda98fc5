#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that with hydration-priority=access, the default, regions that a client
# reads from the source are hydrated next, together with those that follow them;
# that with `sequential' they are hydrated in order of the disk; and that
# hydration reads nothing twice in either case.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 16M
serve src --filter=log file "$tmp/src" logfile="$tmp/src.requests"

# All reads longer than the client's: offset and length in KiB.
hydration_reads ()
{
  awk '$2 > 4096 { print $1 / 1024, $2 / 1024 }'
}
reads_after_client ()
{
  reads src | sed '1,/^8388608 4096$/d' | hydration_reads
}
are_read () { [ "$(reads_after_client | wc -l)" -ge "$1" ]; }

for priority in '' access sequential; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  # So slow that it is far from the client's places when that reads.
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K \
              hydration-rate=128K hydration-batch-size=64K \
              ${priority:+hydration-priority=$priority}
  : >"$tmp/src.requests"
  $python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 12 << 20)
h.pread(4096, 8 << 20)
PY
  # Some were under way when the client read.
  eventually are_read 4
  reads_after_client | head -n 4 >"$tmp/reads"
  cat "$tmp/reads"
  if [ "$priority" = sequential ]; then
    fails grep -E '^(8192|12288) ' "$tmp/reads"
  else
    # What follows comes as a piece of its own.
    reads src | hydration_reads | grep '^12288 '
    grep '^8192 ' "$tmp/reads"
  fi
  set_settings '{"hydration-rate": 0}'
  wait_complete
  reads src | hydration_reads | awk '{ n += $2 } END { exit n > 16384 }'
  stop clone
  same "$tmp/src" "$tmp/dest"
done
