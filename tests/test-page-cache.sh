#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that hydration leaves the page cache as it was, as far as a local
# source is concerned: pages that were not cached are not cached when the clone is
# complete, and pages that were cached, also by a client's read through the
# clone, still are.

. "$(dirname "$0")/functions.sh"
[ "$(stat -f -c %T "$tmp")" != tmpfs ] || skip "$tmp is in memory"

# pages COMMAND: about $tmp/src.  drop: drop all from the page cache.  warm:
# then read some.  list: print the numbers of those that are cached.
pages ()
{
  $python - "$tmp/src" "$1" <<'PY'
import ctypes, mmap, os, sys

fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
if sys.argv[2] == "list":
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                          ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                             ctypes.c_char_p]
    start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    vec = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    if libc.mincore(start, size, vec) != 0:
        sys.exit("mincore: " + os.strerror(ctypes.get_errno()))
    for page, flags in enumerate(vec.raw):
        if flags & 1:
            print("%06d" % page)
else:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if sys.argv[2] == "warm":
        # Without reading ahead.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for count, offset in (4 << 20, 8 << 20), (4096, 30 << 20), \
                             (100, 40 << 20), (4096, 63 << 20):
            os.pread(fd, count, offset)
PY
}

make_disk "$tmp/src" 64M
for warm in drop warm; do
  rm -f "$tmp"/dest*
  pages $warm
  # Opening the source reads some samples of it, as a client would.
  serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
  qemu-io -f raw -c 'read 50M 1M' "$(uri clone)"
  pages list >"$tmp/before"
  # There are pages of both kinds.
  cached=$(wc -l <"$tmp/before")
  test "$cached" -ge 256
  test "$cached" -lt 12000
  control POST /resume
  wait_complete
  pages list >"$tmp/after"
  comm -13 "$tmp/before" "$tmp/after" >"$tmp/new"
  [ ! -s "$tmp/new" ] || fail "new in the page cache: $(cat "$tmp/new")"
  # The kernel may drop a page at any time.
  test "$(comm -23 "$tmp/before" "$tmp/after" | wc -l)" -le $((cached / 20))
  stop clone
  same "$tmp/dest" "$tmp/src"
done
