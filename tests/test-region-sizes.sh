#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that every region size from 4K to 1G works, and that any other is
# refused; and that the automatic one is the smallest.

. "$(dirname "$0")/functions.sh"

size=$(((5 << 20) + 12345))
make_disk "$tmp/src" $size

for ((r = 4096; r <= 1 << 30; r *= 2)); do
  : "region size $r"
  rm -f "$tmp/dest" "$tmp/dest.clone"
  cp "$tmp/src" "$tmp/model"
  serve_clone "$tmp/src" destination="$tmp/dest" region-size=$r hydration=off
  status_is ".region_size == $r and .regions == $(((size + r - 1) / r))"
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 40 --seed $r
  control POST /resume
  wait_complete
  stop clone
  same "$tmp/dest" "$tmp/model"
done

rm -f "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest" region-size=auto
status_is '.region_size == 4096'
stop clone
rm -f "$tmp/dest" "$tmp/dest.clone"

for r in 0 1 512 2K 4095 4097 12K 2G 1T -4096 4Q x ''; do
  refused region-size "$tmp/src" destination="$tmp/dest" region-size=$r
done
