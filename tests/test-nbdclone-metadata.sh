#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone-metadata(5) is enough to read a store: a reader that was
# written from it alone says the same as nbdclone of stores that the plugin has
# made, and of the manual page's own example.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)
pod=$srcdir/../tools/nbdclone-metadata.pod
reader=("$python" "$srcdir/metadata.py")

# compare FILE: both readers say the same.
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
       .runs == [{first: 0, count: 3, state: "valid"},
                 {first: 9, count: 1, state: "valid"}]' "$tmp/json"

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
  [ "$(jq -c .fingerprint "$tmp/json")" = \
    "$("${reader[@]}" fingerprint "$tmp/src" | jq -c .)" ] ||
    fail "another fingerprint: size $size"
done

# Regions of another size, and a complete clone.
rm "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest" region-size=16K
wait_complete
stop clone
compare "$tmp/dest.clone"
jq -e '.flags.complete and .valid == .regions and .regions == 2442' "$tmp/json"

# And the reader does not accept what nbdclone refuses.
"${reader[@]}" flip "$tmp/dest.clone" 8200
fails "${reader[@]}" decode "$tmp/dest.clone"
fails "$nbdclone" check "$tmp/dest.clone"
