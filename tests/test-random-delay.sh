#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that each sector stays a linearizable register (consistency/main.c)
# where the source answers each request after a random delay, so that replies
# overtake each other.  Clients and hydration share one connection to it, or
# have several.

. "$(dirname "$0")/functions.sh"

tester=$(program tests/consistency/consistency)
make_disk "$tmp/src" 8M
fallocate -p -o 5M -l 1M "$tmp/src" || skip "no holes in this file system"

make_finisher "$tmp/finish"

seed=1
for options in "" "--no-multi-conn --no-structured" "--reads chunks"; do
  : "source: $options"
  # shellcheck disable=SC2086
  serve_odd src "$tmp/src" --delay 30 $options
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K \
              copy-on-read=$([ -n "$options" ] && echo false || echo true) \
              hydration-rate=4M hydration-batch-size=64K
  "$tester" "$(uri clone)" source="$tmp/src" finally="sh $tmp/finish" \
            ops="$(fewer 3000)" round=200 in-flight=16 seed=$seed
  status_is '.state == "complete"'
  export_to clone "$tmp/out"
  stop clone
  same "$tmp/dest" "$tmp/out"
  stop src
  tail -n 1 "$tmp/src.log"
  test "$(sed -n '$s/.*overtaken: //p' "$tmp/src.log")" -gt 20
  fails grep violation "$tmp/src.log"
  seed=$((seed + 1))
done
