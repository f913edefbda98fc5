#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that requests of every kind, at unaligned offsets and in random order,
# do what they do to a plain disk while the clone hydrates: read, write, zero,
# fast zero, trim, flush, FUA, cache and block status.  The source has holes
# and zeroes, which hydration treats specially.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" $(((16 << 20) + 777))
fallocate -p -o 2M -l 3M "$tmp/src" || skip "no holes in this file system"
dd if=/dev/zero of="$tmp/src" bs=1M seek=8 count=2 conv=notrunc status=none
serve src file "$tmp/src"

seed=0
for region_size in 4K 64K 1M; do
  for source in "$(uri src)" "$tmp/src"; do
    seed=$((seed + 1))
    : "region size $region_size, source $source"
    rm -f "$tmp/dest" "$tmp/dest.clone"
    cp "$tmp/src" "$tmp/model"
    model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")

    serve_clone source="$source" destination="$tmp/dest" \
                region-size=$region_size hydration=off
    "${model[@]}" --ops 250 --seed $seed
    set_settings '{"hydration-rate": 2000000}'
    control POST /resume
    "${model[@]}" --ops 250 --seed $((100 + seed))
    set_settings '{"hydration-rate": 0}'
    "${model[@]}" --ops 100 --seed $((200 + seed))
    wait_complete
    "${model[@]}" --ops 250 --seed $((300 + seed))
    stop clone
    same "$tmp/dest" "$tmp/model"
  done
done
