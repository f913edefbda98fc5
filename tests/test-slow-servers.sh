#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a slow server is not taken for a lost one: a flush, zeroing or
# trimming that takes longer than the deadline for replies loses nothing, and
# neither does a local disk that stalls while the source's replies wait to be
# read.
#
# The time is measured by a client that reads from a source which takes a tenth
# of a second for each read.  DEADLINE is in milliseconds.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
deadline=${DEADLINE:-$((${tool:+5 *} 1500))}
make_disk "$tmp/src" 1M

# Regions 8 to 15 are always read from the source.
past_the_deadline ()
{
  local i
  for ((i = 0; i < deadline / 50; i++)); do
    client clock read $((8 + i % 8)) source
  done
}

restart ()
{
  rm -rf "$tmp/d" "$tmp/m" "$tmp/clone.log" "$tmp"/*.faults
  truncate -s 1M "$tmp/d"
  nbdkit_args=()
  deadline "$deadline"
}

is_complete () { status_is '.state == "complete"'; }

# The metadata's flush, and the destination's zeroing, trimming and flush.
long_flush ()
{
  local what
  restart
  truncate -s 1M "$tmp/m"
  serve src --filter=delay file "$tmp/src" rdelay=100ms
  serve_device dest "$tmp/d"
  serve_device meta "$tmp/m"
  serve_clone "$(uri src)" destination="$(device dest)" \
              metadata="$(device meta)" region-size=64K hydration=off \
              commit-interval=3600
  for what in clock flush zero trim; do start_client $what "$tmp/src"; done
  client flush write 1 a flush write 2 b write 3 c write 4 d
  hold_device meta flush
  tell_client flush flush read 2 b
  eventually is_held meta flush
  for what in zero trim; do
    hold_device dest $what
    tell_client $what $what 4 read 1 a
    eventually is_held dest $what
  done
  past_the_deadline
  let_device_go meta flush
  for what in zero trim; do let_device_go dest $what; done
  for what in flush zero trim; do client_is_done $what; done

  client flush write 3 e
  hold_device dest flush
  tell_client flush flush read 3 e
  eventually is_held dest flush
  past_the_deadline
  let_device_go dest flush
  client_is_done flush
  for what in clock flush zero trim; do
    client $what flush
    end_client $what
  done
  test "$(messages ' is lost')" -eq 0
  stop clone
  stop src
  stop dest
  stop meta
}

# A local disk stalls while the source's replies arrive.
stalled_disk ()
{
  local disk=$builddir/tests/.libs/failing-disk.so
  [ -f "$disk" ] || fail "$disk is not built"
  # The tool's library is preloaded already.
  [ "$tool" != asan ] && [ "$tool" != tsan ] || return 0
  restart
  mkdir "$tmp/rules"
  serve src --filter=delay file "$tmp/src" rdelay=100ms
  LD_PRELOAD=$disk FAILING_DISK=$tmp/d FAILING_DISK_RULES=$tmp/rules \
    serve_clone "$(uri src)" destination="$tmp/d" metadata="$tmp/m" \
                region-size=64K hydration=off hydration-batch-size=64K
  start_client clock "$tmp/src"
  touch "$tmp/rules/hold"
  control POST /resume >/dev/null
  eventually test -e "$tmp/rules/held"
  past_the_deadline
  rm "$tmp/rules/hold"
  eventually is_complete
  test "$(messages ' is lost')" -eq 0
  end_client clock
  stop clone
  # The source's server may be about to end: its client has gone.
  stop src
  same "$tmp/d" "$tmp/src"
}

parts=(long_flush stalled_disk)
run_parts "$@"
