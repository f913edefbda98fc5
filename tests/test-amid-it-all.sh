#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nothing that was acknowledged with FUA is lost, and that no byte
# becomes wrong, when clients vanish, when the process gets SIGTERM, and when
# both happen at once, amid writes, trims, copies, commits and hydration.  The
# plugin is built with test points and delays every thread at each of them, so
# that there is always some operation half done; the points' counters show that
# every point was reached.

. "$(dirname "$0")/functions.sh"

not_under asan "nbdkit 1.32 leaks memory for a client that has vanished"
requires "$python" -c 'import nbd'
plugin=$builddir/tests/scenarios/.libs/clone-with-delays.so
[ -f "$plugin" ] || fail "$plugin is not built"
export CLONE_TEST_DELAY=2000 CLONE_TEST_COUNTS="$tmp/counts"

make_disk "$tmp/src" $(((16 << 20) + 1536))
serve src --filter=delay file "$tmp/src" rdelay=2ms

for region_size in 4K 256K; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  head -c 9000001 "$tmp/src" >"$tmp/model"
  fua=("$python" "$srcdir/fua-kill.py" "$tmp/model" "$(uri clone)")
  for round in 1:NONE:4 2:TERM:0 3:TERM:4; do
    IFS=: read -r seed signal vandals <<<"$round"
    # nbdkit before 1.34 can abort when a client vanishes with requests in
    # flight, unless each connection has only one thread.
    nbdkit_args=()
    if [ "$vandals" -gt 0 ]; then nbdkit_args=(-t 1); fi
    serve_clone source="$(uri src)" destination="$tmp/dest" \
                region-size=$region_size \
                hydration-rate=3M hydration-batch-size=16K
    "${fua[@]}" check
    "${fua[@]}" kill "$(cat "$tmp/clone.pid")" 250 --seed "$seed" \
                --signal "$signal" --vandals "$vandals"
    if [ "$signal" = NONE ]; then
      # The clone goes on, and nothing is lost.
      "${fua[@]}" check
      status_is '.mode == "rw"'
      stop clone
    else
      reap clone "$(cat "$tmp/clone.pid")"
    fi
  done

  serve_clone source="$(uri src)" destination="$tmp/dest"
  "${fua[@]}" check
  set_settings '{"hydration-rate": 0}'
  wait_complete
  export_to clone "$tmp/out"
  stop clone
  same "$tmp/dest" "$tmp/out"
  cmp -n 9000001 "$tmp/dest" "$tmp/model"
done

# Every point was reached.
awk '{ n[$1] += $2 } END { for (p in n) print p, n[p] }' "$tmp/counts" |
  sort >"$tmp/sums"
cat "$tmp/sums"
test "$(wc -l <"$tmp/sums")" -eq 19
fails grep ' 0$' "$tmp/sums"
