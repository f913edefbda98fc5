#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone finds every kind of damage and says where it is, that
# scripts can rely on its exit statuses, that it never changes the store it
# reads, and that repair writes what it promises: a store that the plugin
# serves, with the right bytes, and that claims nothing false.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)
edit=("$python" "$srcdir/metadata.py")
meta=$tmp/m
new=$tmp/new

# expect STATUS COMMAND...: nbdclone has this exit status, its output is in
# $tmp/out and $tmp/err, and $meta is as before.
expect ()
{
  local status=$1 rc=0 before
  shift
  before=$(md5sum "$meta" 2>&1 || :)
  "$nbdclone" "$@" >"$tmp/out" 2>"$tmp/err" || rc=$?
  cat "$tmp/out" "$tmp/err"
  [ $rc -eq "$status" ] || fail "exit status $rc, not $status: nbdclone $*"
  [ "$(md5sum "$meta" 2>&1 || :)" = "$before" ] || fail "$meta was changed"
  fails grep -v '^nbdclone: ' "$tmp/err"
  # Status 2 comes with one message, and nothing else.
  if [ $rc -ge 2 ]; then test "$(wc -l <"$tmp/err")" -eq 1; fi
}

# said WORDS...: each of them is in the output of the last nbdclone.
said ()
{
  local word
  for word; do
    grep -q -F -e "$word" "$tmp/out" "$tmp/err" || fail "it does not say $word"
  done
}

# runs FILE: the runs of a store, as FIRST+COUNT STATE.
runs ()
{
  { "$nbdclone" dump --json "$1" 2>/dev/null || :; } |
    jq -r '[.runs[] | "\(.first)+\(.count) \(.state)"] | join (", ")'
}

has_runs ()
{
  local found
  found=$(runs "$1")
  [ "$found" = "$2" ] || fail "runs of $1: $found"
}

json ()
{
  { "$nbdclone" dump --json "$1" 2>/dev/null || :; } | jq -e "$2" ||
    fail "$1: not true: $2"
}

# fresh STORE: make a copy of it to damage.
fresh ()
{
  rm -f "$new"
  cp "$1" "$meta"
}

# ---- a store to damage

# 10240 regions of 4K, three bitmap sectors; clients write to regions 0 to 15,
# 4031 and 4032 on both sides of a sector's end, and the last.
make_disk "$tmp/src" 40M
serve_clone "$tmp/src" destination="$tmp/dest" metadata="$meta" \
            region-size=4K hydration=off
qemu-io -f raw -c 'write -P 1 0 64k' -c 'write -P 2 16510976 8k' \
        -c 'write -P 3 41938944 4k' "$(uri clone)"
# A store in use: it is refused, and not written to.
expect 3 check "$meta"
said 'in use'
expect 3 dump "$meta"
said 'in use'
expect 3 repair --unknown=valid "$meta" "$new"
said 'in use'
test ! -e "$new"
stop clone
cp "$meta" "$tmp/good"
all='0+16 valid, 4031+2 valid, 10239+1 valid'

# ---- clean

expect 0 check "$meta"
said 'clean: 19 of 10240 regions'
expect 0 check --all "$meta"
expect 0 dump "$meta"
said '10240: 19 valid, 10221 invalid, 0 unknown' '0..15 valid' '10239 valid'
expect 0 dump --json "$meta"
json "$meta" '.valid == 19 and .unknown == 0 and .regions == 10240 and
              .region_size == 4096 and .size == 41943040 and .flags.clean and
              (.flags.complete or .damaged | not)'
has_runs "$meta" "$all"
# A repaired copy is the same, except for the UUID.  It is for its owner only.
expect 0 repair "$meta" "$new"
test "$(stat -c %a "$new")" = 600
said 'written: 19 of 10240'
expect 0 check "$new"
has_runs "$new" "$all"
json "$new" '.flags.clean'
test "$(json "$new" .uuid)" != "$(json "$meta" .uuid)"
# Repair never overwrites: a file, its input, a dangling link.
cp "$new" "$tmp/new-before"
expect 3 repair "$meta" "$new"
same "$new" "$tmp/new-before"
expect 3 repair "$meta" "$meta"
ln -s "$tmp/nowhere" "$tmp/link"
expect 3 repair "$meta" "$tmp/link"
test ! -e "$tmp/nowhere"
expect 3 repair "$meta" "$tmp/no-directory/new"
expect 3 repair "$meta" "nbd+unix:///?socket=$tmp/x"
# Over NBD, and from a longer device.
serve meta -r file "$meta"
expect 0 check "$(uri meta)"
rm "$new"
expect 0 repair "$(uri meta)" "$new"
has_runs "$new" "$all"
stop meta
truncate -s 1M "$meta"
expect 0 check "$meta"
# Unused bytes that are not zero are noted and do no harm, and so is an older
# superblock, as after a crash.
fresh "$tmp/good"
for offset in 600 4700 12000; do "${edit[@]}" flip "$meta" $offset; done
expect 0 check "$meta"
test "$(grep -c 'note: .* not used' "$tmp/out")" -eq 3
for copy in 0 1; do
  fresh "$tmp/good"
  "${edit[@]}" superblock "$meta" $copy 32 8 0xffffffffffffffff
  expect 0 check "$meta"
  said 'generation' "$(echo BA | cut -c $((copy + 1)))"
  json "$meta" ".superblock == \"$(echo AB | cut -c $((copy + 1)))\""
  "$nbdclone" dump --json "$meta" | grep -F 18446744073709551615
done

# ---- one superblock

# serves STORE: the plugin serves it, and clients read what they wrote.
serves ()
{
  serve_clone "$tmp/src" destination="$tmp/dest" metadata="$1" hydration=off
  qemu-io -f raw -c 'read -P 1 0 64k' -c 'read -P 2 16510976 8k' \
          -c 'read -P 3 41938944 4k' "$(uri clone)" >"$tmp/qemu-io.out"
  fails grep -i -E 'fail|error' "$tmp/qemu-io.out"
  stop clone
}

for damage in 'flip 0' 'flip 20' 'flip 511' 'zero 0 512' \
              'flip 4096' 'flip 4160' 'zero 4096 512'; do
  fresh "$tmp/good"
  # shellcheck disable=SC2086
  "${edit[@]}" "${damage%% *}" "$meta" ${damage#* }
  expect 1 check "$meta"
  offset=$(echo "$damage" | cut -d' ' -f2)
  said 'superblock' "offset $((offset / 4096 * 4096))"
  has_runs "$meta" "$all"
  expect 1 dump "$meta"
  expect 0 repair "$meta" "$new"
  expect 0 check "$new"
  has_runs "$new" "$all"
done
serves "$new"

# ---- the bitmap

for s in 0 1 2; do
  first=$((s * 4032))
  last=$((s == 2 ? 10239 : first + 4031))
  for damage in "flip $((8192 + 512 * s + 100))" \
                "flip $((8192 + 512 * s + 505))" \
                "flip $((8192 + 512 * s + 511))" \
                "zero $((8192 + 512 * s)) 512"; do
    fresh "$tmp/good"
    # shellcheck disable=SC2086
    "${edit[@]}" "${damage%% *}" "$meta" ${damage#* }
    expect 1 check "$meta"
    said "bitmap sector $s at offset $((8192 + 512 * s))" \
         "regions $first..$last" \
         "bytes $((first * 4096))..$((last * 4096 + 4095))" \
         "state of $((last - first + 1)) of 10240 regions is unknown"
    json "$meta" ".unknown == $((last - first + 1)) and .damaged and
                  .damaged_bitmap_sectors == 1"
    expect 1 repair "$meta" "$new"
    said 'nothing was written' '--unknown=invalid' '--unknown=valid'
    test ! -e "$new"
  done
done
# A sector in another's place, one of another store, and a bit past the end with
# a right CRC.
fresh "$tmp/good"
dd if="$tmp/good" of="$meta" bs=512 skip=16 seek=17 count=1 conv=notrunc
expect 1 check "$meta"
said 'sector 1 '
fresh "$tmp/good"
dd if="$tmp/new-before" of="$meta" bs=512 skip=16 seek=16 count=3 conv=notrunc
expect 1 check "$meta"
said 'sectors 0..2 ' 'offsets 8192..9216' 'regions 0..10239'
fresh "$tmp/good"
"${edit[@]}" bitmap "$meta" 2 280 255
"${edit[@]}" bitmap "$meta" 2 272 1
expect 1 check "$meta"
said 'sector 2 ' 'past the end of the disk'

# The user decides about the middle sector, which has region 4032, which a
# client wrote, and 4033, which none did.
fresh "$tmp/good"
"${edit[@]}" flip "$meta" 8800
expect 0 repair --unknown=invalid "$meta" "$new"
said 'given up' '4032 regions' 'invalid now' 'written: 18 of 10240'
expect 0 check "$new"
has_runs "$new" '0+16 valid, 4031+1 valid, 10239+1 valid'
json "$new" '.flags == {clean: false, complete: false}'
serve_clone "$tmp/src" destination="$tmp/dest" metadata="$new" hydration=off
export_to clone "$tmp/image"
cmp -n 4096 -i 16510976:0 "$tmp/image" <(yes | tr 'y\n' '\2\2' | head -c 4096)
cmp -n $((4032 * 4096)) -i 16515072 "$tmp/image" "$tmp/src"
stop clone
rm "$new"
expect 0 repair --unknown=valid "$meta" "$new"
said 'given up' '4032 regions' 'valid now' 'written: 4050 of 10240'
has_runs "$new" '0+16 valid, 4031+4033 valid, 10239+1 valid'
serve_clone "$tmp/src" destination="$tmp/dest" metadata="$new" hydration=off
export_to clone "$tmp/image"
cmp -n $((4033 * 4096)) -i 16510976 "$tmp/image" "$tmp/dest"
cmp -n 4096 -i 16515072:0 "$tmp/image" <(yes | tr 'y\n' '\2\2' | head -c 4096)
stop clone
serves "$new"
# Where the bitmap is unknown, assuming it valid does not make the store
# complete.
fresh "$tmp/good"
"${edit[@]}" zero "$meta" 8192 1536
expect 0 repair --unknown=valid "$meta" "$new"
json "$new" '.valid == 10240 and (.flags.complete | not)'

# ---- not repairable

for damage in 'flip 20' 'flip 4' 'zero 0 512'; do
  fresh "$tmp/good"
  # shellcheck disable=SC2086
  "${edit[@]}" "${damage%% *}" "$meta" ${damage#* }
  "${edit[@]}" flip "$meta" 4116
  for command in "check" "dump" "dump --json"; do
    # shellcheck disable=SC2086
    expect 2 $command "$meta"
    said 'both superblocks are damaged' 'offset 0' 'offset 4096'
    test ! -s "$tmp/out"
  done
  expect 2 repair --unknown=valid "$meta" "$new"
  test ! -e "$new"
done
fresh "$tmp/good"
"${edit[@]}" superblock "$meta" 1 16 1 0x55
expect 2 check "$meta"
said 'different stores'
for version in 0 3; do
  fresh "$tmp/good"
  for copy in 0 1; do
    "${edit[@]}" superblock "$meta" $copy 8 4 $version
    # Not even with a good copy in the other superblock.
    expect 2 check "$meta"
    said "format version $version" 'not damaged' 'newer'
    expect 2 dump "$meta"
    expect 2 repair --unknown=valid "$meta" "$new"
  done
done
test ! -e "$new"
fresh "$tmp/good"
"${edit[@]}" zero "$meta" 0 8192
expect 2 check "$meta"
said 'all zeroes'
expect 2 check "$tmp/src"
said 'not a clone'\''s metadata'

# ---- features

# set_features COMPAT RO_COMPAT INCOMPAT: in both superblocks.
set_features ()
{
  local copy
  fresh "$tmp/good"
  for copy in 0 1; do
    "${edit[@]}" superblock "$meta" $copy 192 4 "$1"
    "${edit[@]}" superblock "$meta" $copy 196 4 "$2"
    "${edit[@]}" superblock "$meta" $copy 200 4 "$3"
    # The feature's bytes.
    "${edit[@]}" superblock "$meta" $copy 500 4 0x12345678
  done
}

json "$tmp/good" ".version == 2 and
                  .features == {compat: 0, ro_compat: 0, incompat: 0} and
                  .destination.inode == $(stat -c %i "$tmp/dest")"
# Bytes of the feature area without a feature.
set_features 0 0 0
expect 2 check "$meta"
said 'should be zero'
# compat: served, noted, kept by the plugin, dropped by repair.
set_features 0x80000001 0 0
expect 0 check "$meta"
said 'note: it has compat features' 0x80000001
json "$meta" '.features.compat == 2147483649'
serves "$meta"
expect 0 check "$meta"
json "$meta" '.features.compat == 2147483649 and .generation > 2'
test "$(od -An -tx4 -j500 -N4 "$meta")" = ' 12345678'
rm -f "$new"
expect 0 repair "$meta" "$new"
said 'given up: compat features' 0x80000001 'written: 19 of 10240'
expect 0 check "$new"
json "$new" ".features.compat == 0 and
             .destination.inode == $(stat -c %i "$tmp/dest")"
rm "$new"
# ro_compat: read, not written, not served.
set_features 0 0x10 0
expect 0 check "$meta"
said 'note: it has ro_compat features' 0x10
has_runs "$meta" "$all"
expect 3 repair "$meta" "$new"
said 0x10
test ! -e "$new"
refused 'ro_compat features 0x10.*newer' "$tmp/src" destination="$tmp/dest" \
        metadata="$meta"
# incompat: not read.
set_features 1 1 0x40
for command in check dump 'dump --json'; do
  # shellcheck disable=SC2086
  expect 2 $command "$meta"
  said 'incompat features 0x40' 'not damaged' 'newer'
  test ! -s "$tmp/out"
done
refused 'incompat features 0x40.*newer' "$tmp/src" destination="$tmp/dest" \
        metadata="$meta"

# ---- version 1

fresh "$tmp/good"
"${edit[@]}" version-1 "$meta"
expect 0 check "$meta"
expect 0 dump "$meta"
said 'version:        1' 'destination:    unknown'
json "$meta" '.version == 1 and .destination == null'
has_runs "$meta" "$all"
cp "$meta" "$tmp/good-1"
for damage in 'flip 20' 'zero 0 512' 'flip 4160' 'flip 500'; do
  fresh "$tmp/good-1"
  # shellcheck disable=SC2086
  "${edit[@]}" "${damage%% *}" "$meta" ${damage#* }
  expect 1 check "$meta"
  expect 0 repair "$meta" "$new"
  expect 0 check "$new"
  json "$new" '.version == 1'
  has_runs "$new" "$all"
done
serves "$new"
json "$new" '.version == 1 and .generation > 1'
# Byte 192 is unused in this version.
fresh "$tmp/good-1"
for copy in 0 1; do "${edit[@]}" superblock "$meta" $copy 192 1 1; done
expect 2 check "$meta"
said 'should be zero'

# ---- complete

fresh "$tmp/good"
cp --sparse=always "$tmp/dest" "$tmp/dest2"
serve_clone "$tmp/src" destination="$tmp/dest2" metadata="$meta"
wait_complete
stop clone
cp "$meta" "$tmp/complete"
expect 0 check "$meta"
said 'complete'
has_runs "$meta" '0+10240 valid'
# Every bit must have been 1.
"${edit[@]}" flip "$meta" 8800
"${edit[@]}" zero "$meta" 9216 512
expect 1 check "$meta"
said 'sector 1 ' 'sector 2 ' 'every region is known'
expect 0 repair "$meta" "$new"
said 'written: 10240 of 10240 regions are valid, complete'
expect 0 check "$new"
json "$new" '.flags.complete and .valid == 10240'
# A complete store needs no source.
serve_clone destination="$tmp/dest2" metadata="$new"
export_to clone "$tmp/image"
stop clone
same "$tmp/image" "$tmp/dest2"
# A sector with a right CRC contradicts the flag: neither can be trusted.
fresh "$tmp/complete"
"${edit[@]}" flip "$meta" 8800
"${edit[@]}" bitmap "$meta" 2 2 0xfe
expect 1 check "$meta"
said 'says that the clone is complete' 'region 8080' \
     'state of 4033 of 10240 regions is unknown'
runs='0+4032 valid, 4032+4032 unknown, 8064+16 valid, 8080+1 unknown'
has_runs "$meta" "$runs, 8081+2159 valid"
expect 1 repair "$meta" "$new"
expect 0 repair --unknown=invalid "$meta" "$new"
said 'not complete any more' 'written: 6207 of 10240'
json "$new" '.valid == 6207 and (.flags.complete | not)'
expect 0 check "$new"
rm "$new"
expect 0 repair --unknown=valid "$meta" "$new"
json "$new" '.valid == 10240 and .flags.complete'
expect 0 check "$new"

# ---- cut

used=$((8192 + 3 * 512))
for length in 0 1 7 191 228 511 512 4095 4096 4200 4607 4608 8191 8192 8703 \
              8704 9215 9216 $((used - 1)) $used 12287; do
  fresh "$tmp/good"
  truncate -s $length "$meta"
  if [ $length -lt 228 ]; then
    expect 2 check "$meta"
    continue
  fi
  expect 1 check "$meta"
  said "cut: it has $length bytes and should have 12288"
  lost=$((length < 8704 ? 10240 : length < 9216 ? 6208 :
          length < used ? 2176 : 0))
  json "$meta" ".unknown == $lost"
  expect 0 repair --unknown=invalid "$meta" "$new"
  expect 0 check "$new"
done
has_runs "$new" "$all"

# ---- anything at all

# A change of any byte of superblocks and bitmap is found.  Files of garbage,
# and stores with much of it, never crash nbdclone or make it print bad JSON.
one_of=$(long_or_short 1 5)
[ -z "$tool" ] || one_of=10
[ "$one_of" -eq 1 ] || left_to_all "all but one of $one_of damaged stores"
$python - "$nbdclone" "$tmp/good" "$tmp/fuzz" "$one_of" <<'PY'
import json, random, subprocess, sys
nbdclone, good, path = sys.argv[1:4]
slow = int(sys.argv[4])
good = open(good, "rb").read()
r = random.Random(1)

def run(data, *command):
    with open(path, "wb") as f:
        f.write(data)
    p = subprocess.run([nbdclone, *command, path], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
    assert p.returncode in (0, 1, 2), (p, command)
    return p.returncode, p.stdout

for at in [*range(0, 512, 3), *range(4096, 4608, 3),
           *range(8192, 9728, 3)][::slow]:
    data = bytearray(good)
    data[at] ^= 1 << r.randrange(8)
    status, _ = run(data, "check")
    assert status == 1, (at, status)

for i in range(300 // slow):
    if i % 3 == 0:
        data = r.randbytes(r.choice((0, 1, 511, 512, 4608, 9000, 12288)))
        if i % 2:
            data = b"NBDCLONE" + data
    else:
        data = bytearray(good)
        for _ in range(r.choice((1, 5, 50))):
            at = r.randrange(len(data))
            data[at] = r.randrange(256)
        data = data[:r.choice((len(data), r.randrange(len(data))))]
    checked, _ = run(data, "check")
    dumped, text = run(data, "dump", "--json")
    assert checked == dumped, (i, checked, dumped)
    assert checked == 2 or json.loads(text)
    run(data, "dump")
PY

# ---- usage

fresh "$tmp/good"
expect 3
expect 3 chek "$meta"
expect 3 check
expect 3 check "$meta" "$meta"
expect 3 check --json "$meta"
expect 3 check --all=yes "$meta"
expect 3 check -zx "$meta"
expect 3 dump --unknown=valid "$meta"
expect 3 repair "$meta"
expect 3 repair --unknown "$meta" "$new"
expect 3 repair --unknown=all "$meta" "$new"
expect 3 repair "$meta" "$new" --unknown
expect 3 check "$tmp/none"
said 'No such file'
expect 3 check "$tmp"
said 'directory'
expect 3 check "nbd+unix:///?socket=$tmp/none"
expect 3 check http://localhost/
expect 0 --help
said check dump repair
expect 0 check --help
expect 0 --version
test ! -e "$new"
rc=0
"$nbdclone" dump --json "$meta" >/dev/full 2>"$tmp/err" || rc=$?
test $rc -eq 3
grep stdout "$tmp/err"

# ---- errors of devices

# They say nothing about the store, and leave no file behind.
serve meta -r --filter=error file "$meta" error-pread=EIO \
      error-pread-rate=100% error-pread-file="$tmp/broken"
expect 0 check "$(uri meta)"
touch "$tmp/broken"
for command in check dump 'dump --json'; do
  # shellcheck disable=SC2086
  expect 3 $command "$(uri meta)"
  said 'cannot read' 'Input/output error'
done
expect 3 repair "$(uri meta)" "$new"
test ! -e "$new"
rm "$tmp/broken"
expect 0 check "$(uri meta)"
stop meta
rc=0
bash -c 'trap "" XFSZ; ulimit -f 8; exec "$@"' - \
     "$nbdclone" repair "$meta" "$new" 2>&1 | cat >"$tmp/err" || rc=$?
test $rc -eq 3
said 'cannot create' 'File too large'
test ! -e "$new"

# ---- valgrind

if [ -z "$tool" ] && command -v valgrind >/dev/null; then
  valgrind=(valgrind -q --error-exitcode=99 --leak-check=full
            --errors-for-leak-kinds=all --show-leak-kinds=all)
  "${edit[@]}" flip "$meta" 8800
  "${edit[@]}" flip "$meta" 20
  rc=0; "${valgrind[@]}" "$nbdclone" check "$meta" || rc=$?
  test $rc -eq 1
  rc=0; "${valgrind[@]}" "$nbdclone" dump --json "$meta" || rc=$?
  test $rc -eq 1
  rc=0; "${valgrind[@]}" "$nbdclone" repair "$meta" "$new" || rc=$?
  test $rc -eq 1
  "${valgrind[@]}" "$nbdclone" repair --unknown=valid "$meta" "$new"
  "${valgrind[@]}" "$nbdclone" dump "$new"
  rc=0; "${valgrind[@]}" "$nbdclone" repair "$meta" "$new" || rc=$?
  test $rc -eq 1
  rc=0; "${valgrind[@]}" "$nbdclone" check "$tmp/src" || rc=$?
  test $rc -eq 2
fi
