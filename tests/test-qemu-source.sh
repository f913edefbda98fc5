#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source may be a qcow2 image behind qemu-nbd, which by default
# serves one client with one connection, and that the image is only read.

. "$(dirname "$0")/functions.sh"

requires_command qemu-img qemu-nbd
make_disk "$tmp/raw" 8M
fallocate -p -o 2M -l 1M "$tmp/raw" || skip "no holes in this file system"
qemu-img convert -f raw -O qcow2 "$tmp/raw" "$tmp/src.qcow2"
before=$(md5sum <"$tmp/src.qcow2")

for share in 1 0; do
  for readonly in -r ''; do
    : "shared: $share, $readonly"
    rm -f "$tmp/dest" "$tmp/dest.clone"
    cp "$tmp/raw" "$tmp/model"
    serve_qemu src -f qcow2 -e $share $readonly "$tmp/src.qcow2"
    serve_clone "$(uri src)" destination="$tmp/dest" hydration-rate=2M
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 100
    set_settings '{"hydration-rate": 0}'
    wait_complete
    stop clone
    stop src
    same "$tmp/dest" "$tmp/model"
    test "$(md5sum <"$tmp/src.qcow2")" = "$before"
  done
done
