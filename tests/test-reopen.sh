#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the same command goes on with a clone that was stopped, with
# metadata of either version, and that a command that names another disk is
# refused (I12): another source, or a destination that was deleted and created
# again.

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
refused 'other differs from what it was in bytes 0..4095' "$tmp/other" \
        "${args[@]}"
# The message has details that help to find out why.
refused "inode is $(stat -c %i "$tmp/other"), and .*$(date -u +%Y)" \
        "$tmp/other" "${args[@]}"
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
# The metadata's destination is gone: a new one would be empty.
mv "$tmp/dest" "$tmp/moved"
refused destination "$tmp/src" "${args[@]}"
mv "$tmp/moved" "$tmp/dest"
# The destination was truncated.
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

# With source-check=false the fingerprint is not compared; the size always is.
serve_clone "$tmp/other" "${args[@]}" source-check=false
stop clone
refused size "$tmp/longer" "${args[@]}" source-check=false

# The first bytes of each partition are in the fingerprint.  Metadata of version
# 1, which does not have them, is used with the same source, and stays as it is.
metadata=("$python" "$srcdir/metadata.py")
args3=(destination="$tmp/dest3" hydration=off)
make_disk "$tmp/parts" 64M
$python "$srcdir/partitions.py" logical "$tmp/parts"
cp "$tmp/parts" "$tmp/mkfs"
printf xyz | dd of="$tmp/mkfs" bs=1 seek=$((5001216 + 1080)) conv=notrunc
serve_clone "$tmp/parts" "${args3[@]}"
stop clone
refused 'differs .* bytes 5001216..5005311' "$tmp/mkfs" "${args3[@]}"
serve_clone "$tmp/parts" "${args3[@]}"
stop clone

"${metadata[@]}" version-1 "$tmp/dest3.clone"
i=0
for crc in $("${metadata[@]}" old-fingerprint "$tmp/parts" | jq -r '.[]'); do
  for copy in 0 1; do
    "${metadata[@]}" superblock "$tmp/dest3.clone" $copy $((64 + 4 * i)) 4 \
                     $((16#$crc))
  done
  i=$((i + 1))
done
fields='del (.generation, .superblock, .flags)'
"${metadata[@]}" decode "$tmp/dest3.clone" | jq -S "$fields" >"$tmp/before"
cp "$tmp/parts" "$tmp/other3"
printf xyz | dd of="$tmp/other3" bs=1 seek=30M conv=notrunc
refused 'differs .* bytes 31457280..31461375' "$tmp/other3" "${args3[@]}"
for source in parts mkfs; do # what was never compared, still is not
  serve_clone "$tmp/$source" "${args3[@]}"
  stop clone
done
"${metadata[@]}" decode "$tmp/dest3.clone" | jq -S "$fields" >"$tmp/after"
diff "$tmp/before" "$tmp/after"
jq -e '.version == 1 and .destination == null' "$tmp/after"

# The metadata knows its destination: one that was deleted and created again is
# empty, and refused.  One with content was moved or copied, which is logged
# once.
said='another file than the one that metadata'
times_said () { grep -c "$said" "$tmp/clone.log" || :; }
inode () { "${metadata[@]}" decode "$tmp/dest.clone" | jq .destination.inode; }
test "$(times_said)" -eq 1 # the copy above
mv "$tmp/dest" "$tmp/moved"
truncate -s 8M "$tmp/dest"
refused "made anew; bring .*inode $(inode)" "$tmp/src" "${args[@]}"
refused "made anew" "$tmp/src" "${args[@]}" create=always
mv "$tmp/moved" "$tmp/dest"
serve_clone "$tmp/src" "${args[@]}"
stop clone
test "$(times_said)" -eq 1
cp "$tmp/dest" "$tmp/copy"
mv "$tmp/copy" "$tmp/dest"
for i in 1 2; do
  serve_clone "$tmp/src" "${args[@]}"
  "${model[@]}"
  stop clone
  test "$(times_said)" -eq 2
  test "$(inode)" -eq "$(stat -c %i "$tmp/dest")"
done
# Where no region is valid nothing can be lost.
rm -f "$tmp"/dest3*
serve_clone "$tmp/parts" "${args3[@]}"
stop clone
truncate -s 64M "$tmp/copy"
mv "$tmp/copy" "$tmp/dest3"
serve_clone "$tmp/parts" "${args3[@]}"
stop clone
test "$(times_said)" -eq 2

serve_clone "$tmp/src" destination="$tmp/dest"
wait_complete
"${model[@]}"
stop clone
same "$tmp/dest" "$tmp/model"

# The same for a complete clone.
mv "$tmp/dest" "$tmp/moved"
truncate -s 8M "$tmp/dest"
refused 'made anew' "${args[@]}"
cp "$tmp/moved" "$tmp/dest"
serve_clone "${args[@]}"
stop clone
test "$(times_said)" -eq 3
test "$(inode)" -eq "$(stat -c %i "$tmp/dest")"
