#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves the same as test-full-destination.sh for a destination that is a file
# in a full file system.  Metadata that finds no room is refused at the start,
# and leaves nothing behind.

if [ "${1:-}" != --inside ]; then
  . "$(dirname "$0")/functions.sh"
  # A mount namespace of its own, so that no root is needed.
  requires unshare -rm mount -t tmpfs -o size=1M none "$tmp"
  set +e
  unshare -rm "$BASH" "$0" --inside
  exit $?
fi
. "$(dirname "$0")/functions.sh"

mkdir "$tmp/fs"
mount -t tmpfs -o size=20M none "$tmp/fs"
fallocate -l 12M "$tmp/fs/in-the-way"
mkdir "$tmp/tiny"
mount -t tmpfs -o size=8K none "$tmp/tiny"
at_exit () { umount "$tmp/fs" "$tmp/tiny"; }

make_disk "$tmp/src" 16M
cp "$tmp/src" "$tmp/model"
refused 'metadata.*space' "$tmp/src" destination="$tmp/dest" \
        metadata="$tmp/tiny/meta"
test -z "$(ls "$tmp/tiny")"
test ! -e "$tmp/dest"
serve_clone "$tmp/src" destination="$tmp/fs/dest" metadata="$tmp/meta" \
            region-size=64K
eventually grep -q -i 'space' "$tmp/clone.log"
is_running clone
status_is '.state != "complete" and .hydrated < .regions'
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)"
$python - "$(uri clone)" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
failed = 0
for offset in range(0, 16 << 20, 1 << 20):
    data = h.pread(1 << 20, offset)
    try:
        h.pwrite(data, offset)
    except nbd.Error as e:
        failed += 1
        if e.errnum != errno.ENOSPC:
            sys.exit("not ENOSPC: %s" % e)
if not failed:
    sys.exit("16M went into 8M")
h.shutdown()
PY
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)"
rm "$tmp/fs/in-the-way"
control POST /resume
wait_complete
stop clone
same "$tmp/fs/dest" "$tmp/model"
