#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that with hydration-priority=access, the default, what a client reads
# from the source is hydrated next, with a batch of what follows, and with
# `sequential' when its turn comes; and that hydration reads nothing twice in
# either case.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 16M
serve src --filter=log file "$tmp/src" logfile="$tmp/src.requests"

# Where hydration has read: all reads longer than the client's, offset and
# length in KiB.
hydration_reads ()
{
  reads src | awk '$2 > 4096 { print $1 / 1024, $2 / 1024 }'
}

# hydrated_more_than REGIONS
hydrated_more_than ()
{
  status_is ".hydrated > $1"
}

for priority in '' access sequential; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  # Slow enough to be far from the client's place when that reads.
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K \
              hydration-rate=512K hydration-batch-size=64K \
              ${priority:+hydration-priority=$priority}
  : >"$tmp/src.requests"
  eventually hydrated_more_than 16
  $python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 12 << 20)
h.pread(4096, 8 << 20)
PY
  before=$(status .hydrated)
  eventually hydrated_more_than $((before + 96))
  hydration_reads >"$tmp/reads"
  if [ "$priority" = sequential ]; then
    fails grep -E '^(8192|12288) ' "$tmp/reads"
  else
    # What follows comes as a piece of its own.
    grep -qx '8192 64' "$tmp/reads"
    grep -qx '12288 64' "$tmp/reads"
    test "$(awk '$1 >= 4096' "$tmp/reads" | head -n 1)" = "8192 64" ||
      test "$(awk '$1 >= 4096' "$tmp/reads" | head -n 1)" = "12288 64"
  fi
  set_settings '{"hydration-rate": 0}'
  wait_complete
  hydration_reads | awk '{ n += $2 } END { exit n > 16384 }'
  stop clone
  same "$tmp/src" "$tmp/dest"
done
