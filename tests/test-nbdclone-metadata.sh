#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone-metadata(5) is enough to read a store: a reader that was
# written from it alone agrees with nbdclone on stores of both versions that the
# plugin has made, and on the manual page's own example.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)
pod=$srcdir/../tools/nbdclone-metadata.pod
reader=("$python" "$srcdir/metadata.py")

# compare FILE: both readers agree.
compare ()
{
  "$nbdclone" dump --json "$1" >"$tmp/json"
  "${reader[@]}" decode "$1" >"$tmp/expected"
  jq -S 'del (.superblocks, .damaged_bitmap_sectors, .unknown, .damaged)' \
     "$tmp/json" >"$tmp/a"
  jq -S . "$tmp/expected" >"$tmp/b"
  diff "$tmp/a" "$tmp/b" || fail "nbdclone and the reader differ: $1"
}

"${reader[@]}" example "$pod" >"$tmp/example"
compare "$tmp/example"
jq -e '.uuid == "6ba7b810-9dad-11d1-80b4-00c04fd430c8" and .size == 37864 and
       .regions == 10 and .valid == 4 and .generation == 3 and .flags.clean and
       .version == 2 and .features == {compat: 0, ro_compat: 0, incompat: 0} and
       .destination == {inode: 131073, birth_seconds: 1767323045,
                        birth_nanoseconds: 123456789} and
       .runs == [{first: 0, count: 3, state: "valid"},
                 {first: 9, count: 1, state: "valid"}]' "$tmp/json"

# has_fingerprint WHAT: the store compared last has the fingerprint of $tmp/src.
has_fingerprint ()
{
  [ "$(jq -c .fingerprint "$tmp/json")" = \
    "$("${reader[@]}" fingerprint "$tmp/src" | jq -c .)" ] ||
    fail "another fingerprint: $1"
}

# Disks of several sizes, with 1 to 3 bitmap sectors, written to and not;
# with each rule for the samples of the fingerprint.
for size in 1 4097 131072 131073 1M 1114113 9000001 40000001; do
  make_disk "$tmp/src" $size
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$tmp/src" destination="$tmp/dest" region-size=4K hydration=off
  if [ "$size" = 9000001 ] || [ "$size" = 40000001 ]; then
    cp "$tmp/src" "$tmp/model"
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --writes 60
  fi
  stop clone
  compare "$tmp/dest.clone"
  jq -e ".version == 2 and .destination.inode == $(stat -c %i "$tmp/dest")" \
     "$tmp/json"
  has_fingerprint "size $size"
  "${reader[@]}" version-1 "$tmp/dest.clone"
  compare "$tmp/dest.clone"
  jq -e ".version == 1 and .destination == null" "$tmp/json"
  "$nbdclone" check "$tmp/dest.clone"
done

# Disks with partition tables: MBR with and without logical partitions, GPT with
# sectors of 512 and of 4096 bytes.
for kind in mbr logical gpt gpt-4096; do
  make_disk "$tmp/src" 64M
  $python "$srcdir/partitions.py" $kind "$tmp/src"
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$tmp/src" destination="$tmp/dest" region-size=4K hydration=off
  stop clone
  compare "$tmp/dest.clone"
  has_fingerprint "$kind"
  # The partitions are part of the fingerprint.
  [ "$("${reader[@]}" fingerprint "$tmp/src")" != \
    "$("${reader[@]}" old-fingerprint "$tmp/src")" ]
done

# Regions of another size, and a complete clone.
rm "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest" region-size=16K
wait_complete
stop clone
compare "$tmp/dest.clone"
jq -e '.flags.complete and .valid == .regions and .regions == 4096' "$tmp/json"

# Features: compat are ignored, ro_compat can be read, incompat are not.
cp "$tmp/dest.clone" "$tmp/good"
for copy in 0 1; do
  "${reader[@]}" superblock "$tmp/dest.clone" $copy 192 8 0x8000000100000002
  "${reader[@]}" superblock "$tmp/dest.clone" $copy 300 8 0x1234
done
compare "$tmp/dest.clone"
jq -e '.features == {compat: 2, ro_compat: 2147483649, incompat: 0}' "$tmp/json"
"${reader[@]}" superblock "$tmp/dest.clone" 1 200 4 4
fails "${reader[@]}" decode "$tmp/dest.clone"
fails "$nbdclone" check "$tmp/dest.clone"
cp "$tmp/good" "$tmp/dest.clone"

# The reader refuses what nbdclone refuses.
"${reader[@]}" flip "$tmp/dest.clone" 8200
fails "${reader[@]}" decode "$tmp/dest.clone"
fails "$nbdclone" check "$tmp/dest.clone"
