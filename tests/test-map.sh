#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that GET /map tells the truth while clients write and hydration copies:
# the cells cover the disk, and agree with /status; the runs cover what was
# asked for, in order, with "next" where there are too many; what a client has
# flushed is durable; and at the end everything is.  And that the map of a
# terabyte with regions of 4K is answered.

. "$(dirname "$0")/functions.sh"

# check_map FILE: the cells, as documented.
check_map ()
{
  jq -e '
    . as $m | .cells | length <= 1024 and
    .[0].offset == 0 and (map (.length) | add) == $m.size and
    all (.[:-1][]; .length == $m.cell) and
    ($m.cell % $m.region_size) == 0 and
    all (range (1; length) as $i |
         .[$i].offset == .[$i-1].offset + $m.cell; .) and
    all (.[]; .durable + .dirty + .invalid == .length and
              .in_flight + .bad <= .invalid)' "$1" >/dev/null ||
    fail "cells: $(cat "$1")"
}

# check_runs FILE: the runs, as documented.
check_runs ()
{
  jq -e '
    (.runs | map (.length) | add) as $sum |
    .runs[0].offset == .offset and (.runs | length) <= 16384 and
    .next == (if $sum == .length then null else .offset + $sum end) and
    (.runs | all (range (1; length) as $i |
                  .[$i].offset == .[$i-1].offset + .[$i-1].length and
                  .[$i].state != .[$i-1].state; .))' "$1" >/dev/null ||
    fail "runs: $(head -c 1000 "$1")"
}

make_disk "$tmp/src" 8M
serve src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K \
            hydration=off commit-interval=0

control GET /map >"$tmp/map"
check_map "$tmp/map"
jq -e 'all (.cells[]; .invalid == .length and .in_flight == 0)' "$tmp/map"

# Every second region of the first 64K is dirty, and then durable.
for i in 0 2 4 6 8 10 12 14; do
  qemu-io -f raw -c "write -P 7 $((i * 4))k 4k" "$(uri clone)"
done >"$tmp/qemu-io.log"
# Closing the disk flushes it.
control GET '/map?length=64K' >"$tmp/runs"
check_runs "$tmp/runs"
jq -e '.runs | length == 16 and
       all (.[]; .state == (if .offset % 8192 == 0 then "durable"
                            else "invalid" end))' "$tmp/runs"

# While hydration copies and a client writes, each map is consistent.
set_settings '{"hydration-rate": 4000000, "hydration-batch-size": 65536}'
nbdcopy "$tmp/src" "$(uri clone)" &
copy=$!
pids+=("$copy")
control POST /resume >/dev/null
for i in $(seq 20); do
  control GET /map >"$tmp/map"
  check_map "$tmp/map"
  control GET "/map?offset=$((i * 100000))" >"$tmp/runs"
  check_runs "$tmp/runs"
done
wait "$copy"
set_settings '{"hydration-rate": 0}'
wait_complete
control GET '/map?offset=0' >"$tmp/runs"
jq -e '.runs == [{"offset": 0, "length": 8388608, "state": "durable"}] and
       .next == null' "$tmp/runs"
control GET /map | jq -e 'all (.cells[]; .durable == .length)'
stop clone
stop src

# A large disk: at most 1024 cells; a fragmented one: 16384 runs, then more.
serve src null 1T
serve_clone "$(uri src)" destination="$tmp/large" region-size=4K hydration=off
control GET /map >"$tmp/map"
check_map "$tmp/map"
jq -e '.cells | length == 1024' "$tmp/map"
cat >"$tmp/write.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(9000):
    h.zero(4096, i * 8192)
PY
$python "$tmp/write.py" "$(uri clone)"
control GET '/map?offset=0' >"$tmp/runs"
check_runs "$tmp/runs"
jq -e '(.runs | length == 16384) and .next == 16384 * 4096' "$tmp/runs"
control GET "/map?offset=$(jq .next "$tmp/runs")" >"$tmp/runs"
check_runs "$tmp/runs"
jq -e '.next == null and (.runs | length == (18000 - 16384))' "$tmp/runs"
stop clone
