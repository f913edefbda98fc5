#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a full destination makes clients' writes fail with ENOSPC and does
# nothing worse: reads return right bytes, acknowledged writes are kept, and the
# clone goes on as soon as there is space.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 16M
cp "$tmp/src" "$tmp/model"
serve dest --filter=error memory 16M \
      error=ENOSPC error-rate=100% error-file="$tmp/is-full" \
      error-pread-rate=0 error-extents-rate=0 error-zero-rate=0 \
      error-trim-rate=0
args=("$tmp/src" destination="$(uri dest)" metadata="$tmp/meta"
      region-size=64K)
model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")

cat >"$tmp/enospc.py" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for offset, n in ((0, 65536), (100001, 5), (8 << 20, 1 << 20)):
    try:
        h.pwrite(b"?" * n, offset)
        h.flush()
    except nbd.Error as e:
        if e.errnum != errno.ENOSPC:
            sys.exit("not ENOSPC: %s" % e)
    else:
        sys.exit("a write of %d bytes succeeded" % n)
h.shutdown()
PY

# A client's writes.
serve_clone "${args[@]}" hydration=off
"${model[@]}" --writes 20 --max-length 100000
touch "$tmp/is-full"
$python "$tmp/enospc.py" "$(uri clone)"
# The failed writes were of b'?' (077): each byte is the old one or that.
export_to clone "$tmp/out"
cmp -l "$tmp/out" "$tmp/model" | awk '$2 != 77 { exit 1 }' ||
  fail "a failed write left something else"
rm "$tmp/is-full"
cp "$tmp/out" "$tmp/model"
"${model[@]}" --writes 20

# Hydration stops, and clients' reads do not fail.
touch "$tmp/is-full"
control POST /resume
"${model[@]}"
status_is '.state != "complete" and .hydrated < .regions'
is_running clone
rm "$tmp/is-full"
control POST /resume
wait_complete
"${model[@]}" --writes 5
stop clone
serve_clone "${args[@]}"
"${model[@]}"
stop clone
export_to dest "$tmp/out"
same "$tmp/out" "$tmp/model"
