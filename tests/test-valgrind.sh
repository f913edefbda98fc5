#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that valgrind finds no error and no lost memory in one whole clone,
# with requests of all kinds.

tool_wanted=valgrind
. "$(dirname "$0")/functions.sh"

requires_command valgrind
size=$(((4 << 20) + 1536))
make_disk "$tmp/src" $size
cp "$tmp/src" "$tmp/model"
truncate -s $size "$tmp/d"
serve src file "$tmp/src"
serve dest file "$tmp/d"

# Files, and NBD on both sides.
for args in "source=$tmp/src destination=$tmp/dest" \
            "source=$(uri src) destination=$(uri dest) metadata=$tmp/meta"; do
  cp "$tmp/src" "$tmp/model"
  # shellcheck disable=SC2086
  serve_clone $args region-size=64K hydration=off
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 60
  control POST /resume
  set_settings '{"hydration-rate": 0}'
  http_code PATCH /settings -d x
  wait_complete
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 30 --seed 2
  stop clone
  # Again, complete, and one that is refused.
  # shellcheck disable=SC2086
  serve_clone $args
  stop clone
done
same "$tmp/d" "$tmp/model"
refused region-size "$tmp/src" destination="$tmp/dest" region-size=1M
