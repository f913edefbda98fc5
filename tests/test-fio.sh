#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that fio jobs that verify what they wrote find no error while the clone
# hydrates.  Neighbouring jobs share a region, and block sizes are 512 bytes to
# 64K.

. "$(dirname "$0")/functions.sh"

requires_command fio
fio --enghelp | grep -q -w nbd || skip "fio has no nbd engine"
make_disk "$tmp/src" 64M
serve src file "$tmp/src"

for region_size in 4K 1M; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$(uri src)" destination="$tmp/dest" \
              region-size=$region_size hydration-rate=32M
  # Eight areas of 3M + 512K: their neighbours share a region of 1M.
  (cd "$tmp" && fio --name=verify --ioengine=nbd --uri="$(uri clone)" \
      --rw=randwrite --bssplit=512/40:4k/30:20k/20:64k/10 --blockalign=512 \
      --numjobs=4 --offset_increment=3584k --size=3584k --iodepth=16 \
      --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 \
      --fsync=64 --thread=0 --group_reporting --output-format=terse \
      >"$tmp/fio.log")
  set_settings '{"hydration-rate": 0}'
  wait_complete
  export_to clone "$tmp/out"
  stop clone
  same "$tmp/dest" "$tmp/out"
  # What fio did not touch is the source's.
  cmp -i $((4 * 3584 * 1024)) "$tmp/dest" "$tmp/src"
done
