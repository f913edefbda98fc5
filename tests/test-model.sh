#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that 200 random unaligned writes on a disk of 32 MiB + 1536 bytes are
# read back before, while and after the disk hydrates, and from the destination
# alone; for small, middle and large regions.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" $(((32 << 20) + 1536))
serve src file "$tmp/src"

for region_size in 4K 64K 1M 1G; do
  : "region size $region_size"
  rm -f "$tmp/dest" "$tmp/dest.clone"
  cp "$tmp/src" "$tmp/model"
  model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")

  serve_clone source="$(uri src)" destination="$tmp/dest" \
              region-size=$region_size hydration=off
  "${model[@]}" --writes 200 --seed 1
  # The writes alone may have made all of few regions valid.
  status_is '.state == "paused" or .hydrated == .regions'

  # Slowly, so that the comparisons happen while it hydrates, and 100 more.
  set_settings '{"hydration-rate": 4194304}'
  control POST /resume
  "${model[@]}" --writes 100 --seed 2
  "${model[@]}"
  set_settings '{"hydration-rate": 0}'
  wait_complete
  "${model[@]}"

  stop clone
  same "$tmp/dest" "$tmp/model"
done
