#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a sparse disk of 5 TiB with data beyond 4 TiB works: no bits of
# offsets and region numbers are lost, holes are not copied, and the automatic
# region size keeps the bitmap within 32 MiB.  And that a disk of 1 PiB completes.

# In a mount namespace of its own, see test-share.sh.
if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -m true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -m bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires truncate -s 5T "$tmp/dest-would-fit"
rm -f "$tmp/dest-would-fit"

serve src data size=5T data='
  @0 "first" @512 "the first sectors"
  @0x3fffffffff0 "across the end of 4T"
  @0x40000123456 "beyond 4T"
  @0x4fffffffffa "at end"'

serve_clone source="$(uri src)" destination="$tmp/dest" hydration=off
status_is '.region_size == 32768 and .size == 5497558138880'

cat >"$tmp/look.py" <<'PY'
import nbd, sys
T = 1 << 40
expect = {
    0: b"first\0", 512: b"the first sectors\0",
    4 * T - 17: b"\0across the end of 4T\0", 4 * T + 0x123456: b"beyond 4T\0",
    5 * T - 6: b"at end",
    4 * T + 5000001: b"", 3 * T + 77: b"", 4 * T + (1 << 39): b"",
}
if sys.argv[2] != "before":
    expect[4 * T + 5000001] = b"a client's"
    expect[3 * T + 77] = b"another"
    # 2 ^ 32 bytes, sectors and regions further on nothing appeared.
    for o in (5000001, 77, (4 * T + 5000001) % (1 << 32)):
        expect[o] = bytes(100)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
if sys.argv[2] == "write":
    h.pwrite(b"a client's", 4 * T + 5000001)
    h.pwrite(b"another", 3 * T + 77)
    h.zero(1 << 31, 4 * T + (1 << 39) + 5)
    h.trim(1 << 31, 2 * T + 3)
    h.flush()
for offset, data in expect.items():
    n = min(4096, 5 * T - offset)
    got = h.pread(n, offset)
    if not got.startswith(data) or (not data and any(got)):
        sys.exit("at %d: %r instead of %r" % (offset, got[:64], data))
h.shutdown()
PY

$python "$tmp/look.py" "$(uri clone)" before
$python "$tmp/look.py" "$(uri clone)" write
control POST /resume
$python "$tmp/look.py" "$(uri clone)" during
wait_complete
$python "$tmp/look.py" "$(uri clone)" after
stop clone
test "$(stat -c %s "$tmp/dest")" -eq $((5 << 40))
# Only the data takes space, for which 64 MiB is plenty.
test "$(stat -c %b "$tmp/dest")" -le $((64 << 11))
# The bitmap, two superblocks, and a margin.
test "$(stat -c %s "$tmp/dest.clone")" -le $((33 << 20))

serve file file "$tmp/dest"
$python "$tmp/look.py" "$(uri file)" after

# 1 PiB, for which most file systems have no files.
mkdir "$tmp/fs"
if [ -n "${CLONE_IN_NAMESPACE:-}" ] &&
   mount -t tmpfs none "$tmp/fs" 2>/dev/null; then
  at_exit () { umount "$tmp/fs"; }
  truncate -s 1P "$tmp/fs/huge"
  printf first | dd of="$tmp/fs/huge" conv=notrunc status=none
  printf 'at end' | dd of="$tmp/fs/huge" bs=1 seek=$(((1 << 50) - 6)) \
                       conv=notrunc status=none
  serve huge file "$tmp/fs/huge"
  serve_clone "$(uri huge)" destination="$tmp/fs/dest" \
              metadata="$tmp/fs/dest.clone"
  status_is '.size == 1125899906842624 and .region_size == 4194304'
  wait_complete
  stop clone
  test "$(head -c 5 "$tmp/fs/dest")" = first
  test "$(tail -c 6 "$tmp/fs/dest")" = "at end"
  test "$(stat -c %b "$tmp/fs/dest")" -le $((16 << 11))
fi
