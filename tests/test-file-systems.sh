#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves, on each file system that this machine has, that a sparse source makes
# a sparse destination, whatever the file system and the destination's server
# can do: only data takes space.  That space which was allocated before stays
# allocated.  And that a trim of a disk that is empty allocates nothing.

# In a mount namespace of its own, see test-share.sh.
if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -m true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -m bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires test -n "${CLONE_IN_NAMESPACE:-}"
requires_command mount fallocate

mkdir "$tmp/fs"
mounted=
at_exit () { [ -z "$mounted" ] || umount "$tmp/fs"; }

# mount_fs NAME: a new file system of this kind.  Fails if there is none.
mount_fs ()
{
  rm -f "$tmp/image"
  truncate -s 400M "$tmp/image"
  case $1 in
    ext4) mkfs.ext4 -q "$tmp/image" ;;
    ext4-no-extents) mkfs.ext4 -q -O ^extents,^64bit "$tmp/image" ;;
    xfs) mkfs.xfs -q "$tmp/image" ;;
    btrfs) mkfs.btrfs -q "$tmp/image" ;;
    ntfs) mkntfs -q -F -Q "$tmp/image" ;;
    tmpfs) mount -t tmpfs -o size=400M none "$tmp/fs"; return ;;
  esac || return
  case $1 in
    ntfs) ntfs-3g "$tmp/image" "$tmp/fs" ;;
    *) mount -o loop "$tmp/image" "$tmp/fs" ;;
  esac
} &>>"$tmp/mount.log"

# 128M: 4 pieces of data of 1M, and 64 of 4K that lie in zeroes which are not a
# hole.
make_disk "$tmp/data" 4M
truncate -s 128M "$tmp/src"
for i in 0 1 2 3; do
  dd if="$tmp/data" of="$tmp/src" bs=1M skip=$i seek=$((i * 29)) count=1 \
     conv=notrunc status=none
done
dd if=/dev/zero of="$tmp/src" bs=1M seek=64 count=16 conv=notrunc status=none
for i in $(seq 0 63); do
  dd if="$tmp/data" of="$tmp/src" bs=4K seek=$((16384 + i * 64)) count=1 \
     conv=notrunc status=none
done
serve src file "$tmp/src"
serve plain --filter=noextents file "$tmp/src"

dest=$tmp/fs/dest
# The data, and what file systems need for themselves.
max=6M

# holds LEAST MOST: so many bytes are allocated to the destination.
holds ()
{
  local bytes
  sync -f "$dest"
  bytes=$(($(stat -c %b "$dest") * 512))
  test $bytes -ge "$(numfmt --from=iec "$1")"
  test $bytes -le "$(numfmt --from=iec "$2")"
}

begin_anew ()
{
  rm -f "$dest" "$tmp/meta"
  [ -z "${1:-}" ] || truncate -s "$1" "$dest"
}

# hydrate DESTINATION ARG...: ends with the source's content.
hydrate ()
{
  serve_clone "${source:-$(uri src)}" destination="$1" metadata="$tmp/meta" \
              "${@:2}"
  wait_complete
  stop clone
  same "$tmp/src" "$dest"
}

# serve_dest FILTER... -- ARG...: serve the destination, which exists.
serve_dest ()
{
  local filters=()
  while [ "$1" != -- ]; do filters+=("--filter=$1"); shift; done
  serve dest "${filters[@]}" file "$dest" "${@:2}"
}

try ()
{
  local source
  for source in "$(uri src)" "$(uri plain)" "$tmp/src"; do
    begin_anew
    hydrate "$dest"
    holds 4M $max
  done
  source=

  # Copies for clients are as sparse as hydration's.
  begin_anew
  serve_clone "$(uri plain)" destination="$dest" metadata="$tmp/meta" \
              hydration=off copy-on-read=true
  nbdcopy "$(uri clone)" null:
  nbdcopy --no-extents "$(uri clone)" null: 2>/dev/null ||
    export_to clone "$tmp/out"
  holds 0 $max
  stop clone

  # A server that can neither zero nor trim nor tell extents.
  begin_anew 128M
  serve_dest nozero noextents -- zeromode=none
  hydrate "$(uri dest)"
  stop dest
  holds 4M $max
  begin_anew 128M
  serve_dest nozero -- zeromode=emulate
  hydrate "$(uri dest)"
  stop dest
  holds 4M $max

  # The empty disk is trimmed, as mkfs does.
  begin_anew
  serve_clone "$(uri src)" destination="$dest" metadata="$tmp/meta" \
              hydration=off discard-passdown=false
  $python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.trim(h.get_size(), 0)
h.flush()
h.shutdown()
PY
  holds 0 $max
  stop clone

  # Allocated space stays allocated, and holds no old data.
  begin_anew 128M
  if fallocate -l 128M "$dest" 2>/dev/null; then
    for passdown in true false; do
      rm -f "$tmp/meta"
      hydrate "$dest" discard-passdown=$passdown create=always
      holds 128M 140M
    done
    # Under old data, too.
    dd if="$tmp/data" of="$dest" bs=1M seek=40 count=4 conv=notrunc status=none
    rm -f "$tmp/meta"
    hydrate "$dest" discard-passdown=false create=always
    holds 128M 140M
  fi
}

# Old data in a server's disk is overwritten, whatever the server can do.
for can in "nozero noextents -- zeromode=none" "nozero -- zeromode=none" \
           "nozero -- zeromode=emulate" "noextents --" "blocksize-policy -- \
           blocksize-minimum=4096 blocksize-error-policy=error" "noparallel --"
do
  for passdown in true false; do
    : "server: $can discard-passdown=$passdown"
    dest=$tmp/old
    rm -f "$dest" "$tmp/meta"
    make_garbage "$dest" 128M
    # shellcheck disable=SC2086
    serve_dest $can
    hydrate "$(uri dest)" create=always discard-passdown=$passdown
    stop dest
  done
done
rm "$dest"
dest=$tmp/fs/dest

tried=()
for fs in ext4 ext4-no-extents xfs btrfs ntfs tmpfs; do
  mount_fs $fs || continue
  : "file system: $fs"
  mounted=$fs
  try
  umount "$tmp/fs"
  mounted=
  tried+=($fs)
done
[ ${#tried[@]} -gt 0 ] || skip "cannot mount a file system"
echo "file systems: ${tried[*]}"
