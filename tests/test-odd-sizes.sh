#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that disks of any size in bytes work, down to one byte, and that the
# export has the source's exact size: before, while and after they hydrate.

. "$(dirname "$0")/functions.sh"

for region_size in 4K 64K; do
  r=$(numfmt --from=iec $region_size)
  for size in 1 511 512 513 4095 $((r - 1)) "$r" $((r + 1)) $((2 * r)) \
              $((4032 * 4096 + 1)) $(((32 << 20) + 1536)); do
    : "region size $region_size, size $size"
    rm -f "$tmp/dest" "$tmp/dest.clone"
    make_disk "$tmp/src" "$size"
    cp "$tmp/src" "$tmp/model"
    serve_clone source="$tmp/src" destination="$tmp/dest" \
                region-size=$region_size hydration=off
    test "$(nbdinfo --size "$(uri clone)")" -eq "$size"
    status_is ".size == $size and .hydrated == 0 and
               .regions == $(((size + r - 1) / r))"
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --ops 20 \
            --seed "$size"
    # The last byte alone.
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)" --writes 1 \
            --max-length 1
    control POST /resume
    wait_complete
    $python "$srcdir/model.py" "$tmp/model" "$(uri clone)"
    stop clone
    same "$tmp/dest" "$tmp/model"
  done
done

# A disk of no bytes is refused, or works: it does not crash.
: >"$tmp/empty"
rc=0
timeout 300 nbdkit -f -U "$tmp/e.sock" "$plugin" "$tmp/empty" \
        destination="$tmp/empty.dest" --run 'nbdinfo --size "$uri"' || rc=$?
test $rc -le 1
