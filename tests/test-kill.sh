#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that no write that was acknowledged with FUA is lost, and that no byte
# becomes wrong, when the server is killed with SIGKILL amid writes and
# hydration, five times.  In the end the destination alone is right.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" $(((24 << 20) + 1536))
# With more threads, nbdkit before 1.34 can abort when its client, the clone,
# vanishes.
serve src -t 1 file "$tmp/src"

for region_size in 4K 256K; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  cp "$tmp/src" "$tmp/model"
  fua=("$python" "$srcdir/fua-kill.py" "$tmp/model" "$(uri clone)")
  for round in 1 2 3 4 5; do
    : "region size $region_size, round $round"
    serve_clone source="$(uri src)" destination="$tmp/dest" \
                region-size=$region_size hydration-rate=1M
    "${fua[@]}" check
    "${fua[@]}" kill "$(cat "$tmp/clone.pid")" $((40 * round)) --seed $round
    kill9 clone
  done
  serve_clone source="$(uri src)" destination="$tmp/dest"
  "${fua[@]}" check
  wait_complete
  stop clone
  same "$tmp/dest" "$tmp/model"
done
