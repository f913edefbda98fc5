#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source that breaks the protocol in the middle of its work, or
# shuts down, causes no wrong byte, neither for a client nor in the destination.
# Reads return right bytes or an error meanwhile, the clone lives on, it ends
# with SIGTERM, and a source that works completes it.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 3145000
fallocate -p -o 1M -l 256K "$tmp/src" || skip "no holes in this file system"

# Whatever is read is right, and there is an answer to each request.
read_all ()
{
  $python - "$tmp/src" "$(uri clone)" <<'PY'
import nbd, sys
disk = open(sys.argv[1], "rb").read()
h = nbd.NBD()
h.connect_uri(sys.argv[2])
failed = 0
for offset in range(0, len(disk), 50000):
    n = min(50000, len(disk) - offset)
    try:
        if h.pread(n, offset) != disk[offset:offset + n]:
            sys.exit("wrong bytes at %d" % offset)
    except nbd.Error as e:
        failed += 1
print("reads that failed:", failed)
h.shutdown()
PY
}

# survives SOURCE-OPTION...
survives ()
{
  local args=("$(uri src)" destination="$tmp/dest" region-size=4K)
  : "source: $*"
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/src.log"
  serve_odd src "$tmp/src" "$@"
  serve_clone "${args[@]}" hydration-batch-size=64K hydration-rate=1M
  read_all
  set_settings '{"hydration-rate": 0}'
  read_all
  stop clone
  stop src
  cat "$tmp/src.log"
  fails grep violation "$tmp/src.log"
  case $1 in --fault) fails grep 'faults: 0,' "$tmp/src.log" ;; esac

  serve src file "$tmp/src"
  serve_clone "${args[@]}"
  wait_complete
  stop clone
  stop src
  same "$tmp/dest" "$tmp/src"
}

# The first 32 reads are those of the fingerprint, and so are those of each
# connection that is made again.
for fault in magic cookie cut twice beyond gap less type shutdown garbage; do
  survives --fault $fault --after 40 --every 75
done
survives --fault cut --after 40 --every 75 --no-structured --no-multi-conn
survives --fault shutdown --after 40 --every 75 --no-structured
# Block status without an extent, and with half of one.
survives --extents none
survives --extents odd
