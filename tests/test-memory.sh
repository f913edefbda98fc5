#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that memory grows by at most 2.5 bits for each region (P10), by
# comparing two empty disks that differ by 2^28 regions.

. "$(dirname "$0")/functions.sh"

not_under asan tsan valgrind "it measures memory"

requires truncate -s 4T "$tmp/dest-would-fit"
rm -f "$tmp/dest-would-fit"

# memory_of SIZE REGION-SIZE HYDRATION: sets kb to the memory of a clone in KiB;
# with hydration on, of a complete one.
memory_of ()
{
  serve src null "$1"
  serve_clone "$(uri src)" destination="$tmp/dest" region-size="$2" \
              hydration="$3"
  if [ "$3" = on ]; then wait_complete; fi
  nbdinfo --size "$(uri clone)"
  kb=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' \
           "/proc/$(cat "$tmp/clone.pid")/status")
  stop clone
  stop src
  rm "$tmp/dest" "$tmp/dest.clone"
}

for hydration in off on; do
  memory_of 1G 4K $hydration
  small=$kb
  memory_of 1T 4K $hydration
  large=$kb
  regions=$(((1 << 28) - (1 << 18)))
  # A megabyte for other allocations.
  test $((large - small)) -le $((regions * 5 / 2 / 8 / 1024 + 1024))
done
