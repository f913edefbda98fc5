#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a destination on the source's XFS shares the source's blocks; that
# clients' writes before, during and after hydration are in the destination and
# not in the source, and survive SIGKILL and a file system shutdown, which is
# like a power cut; and that the destination does not need the source in the
# end.

# In a mount namespace of its own: another test's namespace would keep a copy of
# this mount, and with it a file system that is shut down, when this one unmounts
# it.
if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -m true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -m bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires test -n "${CLONE_IN_NAMESPACE:-}"
requires_command mkfs.xfs xfs_io mount filefrag
# mkfs.xfs makes none smaller than 300M.
truncate -s 400M "$tmp/xfs"
mkfs.xfs -q "$tmp/xfs"
mkdir "$tmp/fs"
mount -o loop "$tmp/xfs" "$tmp/fs" 2>/dev/null || skip "cannot mount an XFS"
at_exit () { umount "$tmp/fs"; }

nbdclone=$(program tools/nbdclone)
src=$tmp/fs/src dest=$tmp/fs/dest
# The last block is not whole.
make_disk "$src" $(((64 << 20) + 1536))
# A hole.
fallocate -p -o 16M -l 8M "$src"
sync -f "$src"
cp "$src" "$tmp/model"
cp "$src" "$tmp/untouched"

begin_anew ()
{
  rm "$dest" "$dest.clone"
  cp "$tmp/untouched" "$tmp/model"
}

ends_well ()
{
  wait_complete
  stop clone
  same "$dest" "$tmp/model"
  same "$src" "$tmp/untouched"
}

# shares START BYTES: at least BYTES bytes of the destination are shared from
# START on.
shares ()
{
  local bytes
  bytes=$(filefrag -v "$dest" |
    awk -v start=$(($1 / 4096)) '
      /shared/ {
        gsub(/[.:]/, " ")
        first = $2 > start ? $2 : start
        if ($3 >= first) n += ($3 + 1 - first) * 4096
      }
      END { print n + 0 }')
  [ "$bytes" -ge "$2" ] || fail "only $bytes bytes are shared from $1 on"
}

# A client writes before hydration begins.
serve_clone "$src" destination="$dest" hydration=off
$python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50
control POST /resume
ends_well
# The client's requests, and with them what is left to share, are the same in
# each run.
shares 0 $((16 << 20))

# The clone is killed while hydration shares blocks and clients write to the
# disk's first half.  How much of that half is shared depends on who came first,
# but the second half is shared as a whole.
half=$((32 << 20))
fua=("$python" "$srcdir/fua-kill.py" "$tmp/half" "$(uri clone)")
args=("$src" destination="$dest" hydration-batch-size=256K)
for region_size in 4K 512K; do
  begin_anew
  head -c $half "$tmp/model" >"$tmp/half"
  for round in 1 2 3; do
    serve_clone "${args[@]}" region-size=$region_size hydration-rate=4M
    "${fua[@]}" check
    "${fua[@]}" kill "$(cat "$tmp/clone.pid")" $((40 * round)) --seed $round
    kill9 clone
  done
  serve_clone "${args[@]}"
  "${fua[@]}" check
  dd if="$tmp/half" of="$tmp/model" bs=1M conv=notrunc status=none
  ends_well
  shares $half $half
done

# The file system loses everything that is not durable.
for round in 1 2 3; do
  begin_anew
  serve_clone "$src" destination="$dest" hydration-rate=8M
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 50 --seed $round
  $python -m nbd -u "$(uri clone)" -c 'h.flush()'
  xfs_io -x -c shutdown "$tmp/fs"
  kill9 clone
  umount "$tmp/fs"
  mount -o loop "$tmp/xfs" "$tmp/fs"
  "$nbdclone" check "$dest.clone"
  serve_clone "$src" destination="$dest"
  ends_well
done

# The destination is right without the source.
rm "$src"
same "$dest" "$tmp/model"
