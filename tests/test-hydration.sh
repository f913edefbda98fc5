#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that hydration=off, a threshold of 0 and /pause stop hydration and
# nothing else, that /resume and PATCH start it, and that clients' `cache'
# requests hydrate a range while it is stopped.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/model"
args=("$tmp/src" destination="$tmp/dest" region-size=64K)
model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")

# That hydration never starts cannot be proved; but a commit, a read of the
# whole disk and a second are enough time for it to start.
stays ()
{
  local hydrated
  hydrated=$(status .hydrated)
  "${model[@]}"
  sleep 1
  status_is ".hydrated == $hydrated and .state == \"paused\" and
             .hydrating == 0"
}

serve_clone "${args[@]}" hydration=off
status_is '.hydrated == 0'
stays
# A read does not hydrate; a write and a cache request do.
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(1 << 20, 0)
h.cache(1 << 20, 0)
PY
status_is '.hydrated == 16'
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.cache(2, (2 << 20) - 1)
PY
status_is '.hydrated == 18'
"${model[@]}" --writes 20 --max-length 3000
stays
stop clone

# The command line counts, not what the last process did.
serve_clone "${args[@]}" hydration=off
stays
control POST /resume
wait_complete
"${model[@]}"
stop clone
same "$tmp/dest" "$tmp/model"

rm "$tmp/dest" "$tmp/dest.clone"
cp "$tmp/src" "$tmp/model"
serve_clone "${args[@]}" hydration-threshold=0
status_is '.settings."hydration-threshold" == 0 and .hydrated == 0'
hydrated=0
"${model[@]}"
sleep 1
status_is '.hydrated == 0 and .hydrating == 0'
set_settings '{"hydration-threshold": 65536, "hydration-rate": 1048576}'
eventually status_is '.hydrated > 0'
control POST /pause
eventually status_is '.hydrating == 0 and .state == "paused"'
stays
# New settings do not resume.
set_settings '{"hydration-rate": 0, "hydration-threshold": 4194304}'
stays
control POST /resume
wait_complete
stop clone
same "$tmp/dest" "$tmp/model"

# Small batches and thresholds, and ones larger than the disk.
for s in "4K 4K" "64K 1M" "1M 64K" "32M 64M" "1M 1000000"; do
  for region_size in 4K 256K; do
    rm "$tmp/dest" "$tmp/dest.clone"
    serve_clone "$tmp/src" destination="$tmp/dest" region-size=$region_size \
                hydration-batch-size="${s% *}" hydration-threshold="${s#* }"
    wait_complete
    stop clone
    same "$tmp/dest" "$tmp/src"
  done
done
