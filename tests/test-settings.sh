#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that PATCH /settings changes a running clone: with a new source-timeout
# a request that waits for a lost source fails already, and a source that does
# not reply is given up; copy-on-read keeps what clients read, and stops doing
# so; hydration-priority decides what is copied first.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # of nbdkit's
requires "$python" -c 'import nbd'
make_disk "$tmp/src" 1M

new_clone ()
{
  rm -f "$tmp/d" "$tmp/d.clone" "$tmp/clone.log"
  serve_clone "$(uri src)" destination="$tmp/d" region-size=64K "$@"
}

source_timeout ()
{
  serve src -t 1 file "$tmp/src"
  new_clone hydration=off
  start_client a "$tmp/src"
  client a read 3 source
  kill9 src
  eventually grep -q 'source .* is lost' "$tmp/clone.log"
  # By default it waits for ever.
  tell_client a EIO read 4 source
  set_settings '{"source-timeout": 1}'
  client_is_done a
  status_is '.settings."source-timeout" == 1'
  set_settings '{"source-timeout": 0}'
  tell_client a read 4 source
  serve src -t 1 file "$tmp/src"
  client_is_done a

  end_client a
  ends_soon clone
  stop src

  # A source that holds its replies is given 30 seconds by default.
  serve_pausable src file "$tmp/src"
  new_clone hydration=off
  start_client a "$tmp/src"
  client a read 3 source
  hold src
  tell_client a EIO read 4 source
  read_arrived () { [ "$(requests src Read)" -ge 1 ]; }
  eventually read_arrived
  set_settings '{"source-timeout": 1}'
  client_is_done a
  grep 'source .* is lost: no reply for 1 seconds' "$tmp/clone.log"
  let_go src
  end_client a
  ends_soon clone
  kill9 src
}

copy_on_read ()
{
  serve src file "$tmp/src"
  new_clone hydration=off
  start_client a "$tmp/src"
  client a read 3 source
  status_is '.hydrated == 0 and .settings."copy-on-read" == false'
  set_settings '{"copy-on-read": true}'
  client a read 4 source
  status_is '.hydrated == 1 and .settings."copy-on-read" == true'
  set_settings '{"copy-on-read": false}'
  client a read 5 source
  status_is '.hydrated == 1'
  end_client a
  stop clone
  stop src
}

# With a rate of nearly nothing one range after the other is copied.  What
# clients have read comes next, or does not.
priority ()
{
  local order
  serve src file "$tmp/src"
  for order in sequential access; do
    new_clone hydration-threshold=0 hydration-batch-size=64K
    set_settings "{\"hydration-priority\": \"$order\"}"
    status_is ".settings.\"hydration-priority\" == \"$order\""
    start_client a "$tmp/src"
    client a read 9 source
    set_settings '{"hydration-threshold": 65536, "hydration-rate": 1}'
    has_copied () { status_is '.hydrated >= 1'; }
    eventually has_copied
    set_settings '{"hydration-threshold": 0}'
    # The first region, or the tenth: the destination has its bytes.
    if [ $order = access ]; then first=9; else first=0; fi
    cmp -i $((first * 65536)) -n 65536 "$tmp/d" "$tmp/src"
    fails cmp -s -i $(((9 - first) * 65536)) -n 65536 "$tmp/d" "$tmp/src"
    end_client a
    stop clone
  done
  stop src
}

parts=(source_timeout copy_on_read priority)
run_parts "$@"
