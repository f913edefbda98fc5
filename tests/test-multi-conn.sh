#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that several clients at once, each with several connections, read and
# write the right data while the clone hydrates: nbdcopy, qemu-img and libnbd.

. "$(dirname "$0")/functions.sh"

requires_command qemu-img qemu-io
make_disk "$tmp/src" 64M
make_disk "$tmp/new" 64M 2
serve src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K \
            hydration-rate=16M
nbdinfo --json "$(uri clone)" >"$tmp/info"
jq -e '.exports[0] | .can_multi_conn and .can_flush and .can_fua and .can_zero
       and .can_fast_zero and .can_trim and .can_cache' "$tmp/info"

nbdcopy --connections=4 "$(uri clone)" "$tmp/out1" & a=$!
nbdcopy --connections=4 "$(uri clone)" "$tmp/out2" & b=$!
qemu-img convert -f raw -O raw "$(uri clone)" "$tmp/out3" & c=$!
wait $a; wait $b; wait $c
for i in 1 2 3; do same "$tmp/out$i" "$tmp/src"; done

# What one connection wrote and another one flushed, a third one reads.
$python - "$(uri clone)" <<'PY'
import nbd, sys
hs = []
for i in range(4):
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    hs.append(h)
for n in range(64):
    hs[n % 4].pwrite(bytes([n]) * 70001, n * 100003)
    hs[(n + 1) % 4].flush()
    if hs[(n + 2) % 4].pread(70001, n * 100003) != bytes([n]) * 70001:
        sys.exit("write %d is not seen" % n)
for h in hs:
    h.shutdown()
PY

# Several connections write the whole disk.
nbdcopy --connections=4 "$tmp/new" "$(uri clone)" & a=$!
qemu-img bench -q -c 200 -d 8 -s 64k -f raw "$(uri clone)" & b=$!
wait $a; wait $b
export_to clone "$tmp/out1"
same "$tmp/out1" "$tmp/new"
set_settings '{"hydration-rate": 0}'
wait_complete
stop clone
same "$tmp/dest" "$tmp/new"
