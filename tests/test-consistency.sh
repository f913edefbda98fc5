#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that each sector of a clone is a linearizable register for clients on
# several connections while it hydrates (consistency/main.c): with small and
# large regions, with a file and a server as the destination, with and without
# copy-on-read.  When the clone is complete each sector has a legal last value,
# and the destination alone has the bytes that the clone returned.
#
# With --all it also proves that the tester finds a broken clone: it must catch
# each build in which one party does not look at a region again after it took
# ownership.  test-crash.sh catches these builds in each run.
#
# OPS is the number of requests for each clone, SEED determines them.

. "$(dirname "$0")/functions.sh"

size=32M
ops=${OPS:-$(fewer 4000)}
seed=${SEED:-1}
[ -x "$builddir/tests/consistency/consistency" ] || fail "it is not built"
tester=$(program tests/consistency/consistency)

# A slow source, so that much can happen between the first look at a region and
# the second.  A part of the disk is a hole.
make_disk "$tmp/src" $size
fallocate -p -o 20M -l 2M "$tmp/src"
serve src --filter=delay file "$tmp/src" rdelay=20ms

# Run when the clients have finished.
make_finisher "$tmp/finish"

# start_clone KEY=VALUE...: the destination is a file, or the server dest, as
# the variable $dest says (file, nbd).
start_clone ()
{
  local args=()
  rm -f "$tmp/dest" "$tmp/dest.clone"
  case $dest in
    file) args=(destination="$tmp/dest") ;;
    nbd) truncate -s $size "$tmp/dest"
         serve dest file "$tmp/dest"
         args=(destination="$(uri dest)" metadata="$tmp/dest.clone") ;;
  esac
  serve_clone "$(uri src)" "${args[@]}" "$@"
}

stop_clone ()
{
  stop clone
  if [ $dest = nbd ]; then stop dest; fi
}

# start_and_test TESTER-ARGUMENT...: the result is the tester's status.  The
# rate is chosen so that hydration takes about the same time as the clients.
start_and_test ()
{
  start_clone region-size=$region_size copy-on-read=$copy_on_read \
              hydration-rate=8M hydration-batch-size=64K
  "$tester" "$(uri clone)" source="$tmp/src" finally="sh $tmp/finish" \
            ops=$ops round=200 in-flight=16 "$@"
}

for config in "4K file true" "1M file false" "4K nbd false" "1M nbd true"; do
  read -r region_size dest copy_on_read <<<"$config"
  start_and_test seed=$seed
  status_is '.state == "complete"'
  export_to clone "$tmp/out"
  stop_clone
  same "$tmp/dest" "$tmp/out"
  seed=$((seed + 1))
done

# A tool checks our own code, not broken builds.
[ -z "$tool" ] || exit 0
if ! is_all; then
  left_to_all "controls, which test-crash.sh catches"
  exit 0
fi
requires_command make patch
make_tests consistency-controls

# is_caught: does the tester find this build illegal?  One try may be too few,
# because the race has to happen.
is_caught ()
{
  local try status
  for try in {1..20}; do
    status=0
    start_and_test seed=$((seed + try)) >"$tmp/out" 2>"$tmp/history" ||
      status=$?
    stop_clone
    case $status in
      0) ;;
      1) grep '^illegal: ' "$tmp/history"
         grep '^allowed: ' "$tmp/history"
         echo "caught in try $try: $(cat "$tmp/out")"
         return 0 ;;
      *) cat "$tmp/history"
         fail "status $status" ;;
    esac
  done
  return 1
}

dest=file region_size=4K
controls=(hydration-looks-once client-looks-once copy-looks-once)
for control in "${controls[@]}"; do
  plugin=$builddir/tests/consistency/.libs/control-$control.so
  [ -f "$plugin" ] || fail "$plugin is not built"
  copy_on_read=false
  # This bug is in copies after reads.
  if [ $control = copy-looks-once ]; then copy_on_read=true; fi
  is_caught || fail "$control: not caught"
done
echo "consistency: controls caught: ${#controls[@]}"
