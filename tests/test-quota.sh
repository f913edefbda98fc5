#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a quota that is used up in the middle is a full destination:
# clients get ENOSPC, hydration stops and says why, nothing acknowledged is lost,
# and all goes on when there is more room.

# In a mount namespace of its own, see test-share.sh.
if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -m true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -m bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires test -n "${CLONE_IN_NAMESPACE:-}"
requires_command mkfs.btrfs btrfs mount
truncate -s 400M "$tmp/btrfs"
mkfs.btrfs -q "$tmp/btrfs"
mkdir "$tmp/fs"
mount -o loop "$tmp/btrfs" "$tmp/fs" 2>/dev/null || skip "cannot mount a btrfs"
at_exit () { umount "$tmp/fs"; }
btrfs subvolume create "$tmp/fs/limited"
btrfs quota enable "$tmp/fs" || skip "no quotas"

# A btrfs knows how much is used some time after the last write.
allow ()
{
  sync -f "$tmp/fs"
  btrfs qgroup limit "$1" "$tmp/fs/limited"
}

make_disk "$tmp/src" 32M
dest=$tmp/fs/limited/dest
allow 12M

args=("$tmp/src" destination="$dest" metadata="$tmp/meta" region-size=64K)
serve_clone "${args[@]}" hydration=off
cp "$tmp/src" "$tmp/model"
"$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)" --writes 20 \
          --max-length 100000
control POST /resume
eventually status_is '.state == "failed"'
status_is '.hydrated > 0 and .hydrated < .regions'
grep 'hydration stopped: cannot write to destination.*No space' "$tmp/clone.log"

# A client's write to what is not there yet fails; what is there can be read.
$python - "$(uri clone)" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
failed = 0
for offset in range(0, h.get_size(), 1 << 20):
    try:
        h.pwrite(h.pread(1 << 20, offset), offset)
        h.flush()
    except nbd.Error as e:
        if e.errnum != errno.ENOSPC:
            # A flush that has lost data says so once.
            if e.errnum != errno.EIO:
                sys.exit("not ENOSPC: %s" % e)
        failed += 1
if failed == 0:
    sys.exit("nothing failed")
h.shutdown()
PY
export_to clone "$tmp/out"
same "$tmp/out" "$tmp/model"
stop clone || : "nothing more can be committed"

allow 100m
serve_clone "${args[@]}"
wait_complete
stop clone
same "$dest" "$tmp/model"
