#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a clone is served at once and writable, becomes real in the
# background, and that the finished one needs neither its source nor, for the
# destination to be a plain disk, this program.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 20M
cp "$tmp/src" "$tmp/src.orig"
cp "$tmp/src" "$tmp/model"

# The source is a path, given without its key.
serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K
nbdinfo "$(uri clone)"
test "$(nbdinfo --size "$(uri clone)")" -eq $((20 << 20))
printf 'written by a client' |
  dd of="$tmp/model" bs=1 seek=1000001 conv=notrunc status=none
qemu-io -f raw -c "write -P 0xa5 5000000 70000" "$(uri clone)"
qemu-io -f raw -c "write -P 0xa5 5000000 70000" "$tmp/model"
$python -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"written by a client", 1000001)
h.shutdown()
' "$(uri clone)"
export_to clone "$tmp/out"
same "$tmp/out" "$tmp/model"

wait_complete
status_is '.hydrated == .regions and .durable == .regions'
export_to clone "$tmp/out"
same "$tmp/out" "$tmp/model"
stop clone
same "$tmp/dest" "$tmp/model"
same "$tmp/src" "$tmp/src.orig"
test -f "$tmp/dest.clone"

# The same command again, with the source gone.
rm "$tmp/src"
serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K
status_is '.state == "complete"'
status_is '.source.connected == false and .source.connections == 0'
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50
stop clone
same "$tmp/dest" "$tmp/model"
