#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a server's minimum block size is obeyed, for source, destination
# and metadata, while the clone itself stays byte granular.

. "$(dirname "$0")/functions.sh"

requires nbdkit --dump-plugin --filter=blocksize-policy null
size=$((8 << 20))
make_disk "$tmp/src" $size
truncate -s $size "$tmp/d"
truncate -s 1M "$tmp/m"

# A request that is not aligned fails there.
strict ()
{
  local name=$1 file=$2
  serve "$name" --filter=blocksize-policy file "$file" \
        blocksize-minimum=4096 blocksize-preferred=65536 \
        blocksize-maximum=1M blocksize-error-policy=error
}

for what in src dest; do
  : "minimum block size: $what"
  cp "$tmp/src" "$tmp/model"
  model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")
  if [ $what = src ]; then
    strict src "$tmp/src"
    args=("$(uri src)" destination="$tmp/dest")
  else
    strict dest "$tmp/d"
    strict meta "$tmp/m"
    args=("$tmp/src" destination="$(uri dest)" metadata="$(uri meta)")
  fi
  serve_clone "${args[@]}" region-size=4K hydration=off
  "${model[@]}" --ops 200 --seed 1
  set_settings '{"hydration-rate": 2097152}'
  control POST /resume
  "${model[@]}" --ops 200 --seed 2
  set_settings '{"hydration-rate": 0}'
  wait_complete
  "${model[@]}" --ops 50 --seed 3
  stop clone
  stop $what
done
same "$tmp/d" "$tmp/model"
