#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a clone that was stopped goes on where it was with the same
# command, and that a command which names another disk is refused (I12).

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M 1
make_disk "$tmp/other" 8M 2
make_disk "$tmp/longer" $(((8 << 20) + 512)) 1
head -c $(((8 << 20) - 1)) "$tmp/src" >"$tmp/shorter"
cp "$tmp/src" "$tmp/model"
model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")

serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K hydration=off
"${model[@]}" --writes 30 --max-length 100000
hydrated=$(status .hydrated)
test "$hydrated" -gt 0
stop clone

args=(destination="$tmp/dest" hydration=off)
refused 'fingerprint|another|differ' "$tmp/other" "${args[@]}"
refused size "$tmp/longer" "${args[@]}"
refused size "$tmp/shorter" "${args[@]}"
refused region-size "$tmp/src" "${args[@]}" region-size=4K
refused region-size "$tmp/src" "${args[@]}" region-size=128K
refused 'source.*destination|same|both' "$tmp/dest" "${args[@]}"
ln -s dest "$tmp/symlink"
ln "$tmp/dest" "$tmp/hardlink"
refused 'source.*destination|same|both' "$tmp/symlink" "${args[@]}"
refused 'source.*destination|same|both' "$tmp/hardlink" "${args[@]}" \
        metadata="$tmp/dest.clone"
rm "$tmp/symlink" "$tmp/hardlink"
# The same on a first start, where there is no metadata to compare with.
refused 'source.*destination|same|both' "$tmp/src" destination="$tmp/src"
refused 'source.*metadata|same|both' "$tmp/src" destination="$tmp/new" \
        metadata="$tmp/src"
refused 'destination.*metadata|metadata.*destination|same|both' "$tmp/src" \
        destination="$tmp/dest" metadata="$tmp/dest"
# The metadata of a destination that is gone: there is nothing in a new one.
mv "$tmp/dest" "$tmp/moved"
refused destination "$tmp/src" "${args[@]}"
mv "$tmp/moved" "$tmp/dest"
# And of one that has been cut.
cp "$tmp/dest" "$tmp/whole"
truncate -s -1 "$tmp/dest"
refused 'destination.*small' "$tmp/src" "${args[@]}"
mv "$tmp/whole" "$tmp/dest"

# The same disk, under another name; region-size may be given or not.
serve src file "$tmp/src"
for source in "$tmp/src" "$(uri src)"; do
  for region_size in auto 64K; do
    serve_clone source="$source" destination="$tmp/dest" hydration=off \
                region-size=$region_size
    status_is ".region_size == 65536 and .hydrated == $hydrated and
               .durable == $hydrated"
    "${model[@]}"
    stop clone
  done
done

# On demand the fingerprint is not compared; the size always is.
serve_clone "$tmp/other" "${args[@]}" source-check=false
stop clone
refused size "$tmp/longer" "${args[@]}" source-check=false

serve_clone "$tmp/src" destination="$tmp/dest"
wait_complete
"${model[@]}"
stop clone
same "$tmp/dest" "$tmp/model"
