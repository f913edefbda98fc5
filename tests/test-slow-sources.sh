#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source which needs long for each read can come back after it was
# lost; and that one which sends a byte from time to time is given up in time, and
# holds up neither a client nor the end.  DEADLINE is in milliseconds.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # of nbdkit's
requires "$python" -c 'import nbd'
deadline=${DEADLINE:-$((${tool:+5 *} 600))}
make_disk "$tmp/src" 1M

restart ()
{
  rm -f "$tmp/d" "$tmp/m" "$tmp"/*.log
  truncate -s 1M "$tmp/d"
  nbdkit_args=()
  deadline "$deadline"
}

is_back () { [ "$(messages 'source [^ ]* is back$')" -ge 1 ]; }

# comes_back COMMAND...: the source does, as a slow one, by this command.
comes_back ()
{
  restart
  serve src file "$tmp/src"
  serve_clone "$(uri src)" destination="$tmp/d" metadata="$tmp/m" \
              region-size=64K hydration=off
  kill9 src
  eventually grep -q ' is lost' "$tmp/clone.log"
  "$@"
  eventually is_back
  start_client a "$tmp/src"
  client a read 3 source
  end_client a
  ends_soon clone
  stop src
}

# Samples that take longer than the deadline together; and each of them.
slow_reads ()
{
  comes_back serve src -t 1 --filter=delay file "$tmp/src" \
             rdelay=$((deadline / 6))ms
  # nbdkit 1.32 may abort when its client gives a connection up.
  comes_back serve_odd src "$tmp/src" --wait $((deadline * 3 / 2))
}

# A byte each 10 ms, for ten minutes.
trickle ()
{
  restart
  serve_odd src "$tmp/src" --trickle 10 --when "$tmp/trickle"
  serve_clone "$(uri src)" destination="$tmp/d" metadata="$tmp/m" \
              region-size=64K hydration=off source-timeout=1
  start_client a "$tmp/src"
  client a read 3 source
  touch "$tmp/trickle"
  client a EIO read 3 source EIO part 4 b write 5 b
  eventually grep -q 'source .* is lost' "$tmp/clone.log"
  client a read 5 b flush
  rm "$tmp/trickle"
  eventually is_back
  client a read 3 source

  # SIGTERM amid such a request, and amid such a reconnection.
  touch "$tmp/trickle"
  tell_client a EIO read 3 source
  leave a
  ends_soon clone
  end_client a
  kill9 src

  restart
  rm "$tmp/trickle"
  serve_odd src "$tmp/src" --trickle 10 --when "$tmp/trickle"
  serve_clone "$(uri src)" destination="$tmp/d" metadata="$tmp/m" \
              region-size=64K hydration=off
  touch "$tmp/trickle"
  kill9 src
  eventually grep -q 'source .* is lost' "$tmp/clone.log"
  serve_odd src "$tmp/src" --trickle 10 --when "$tmp/trickle"
  eventually grep -q trickling "$tmp/src.log"
  # A client waits for it, too.
  start_client a "$tmp/src"
  tell_client a EIO read 3 source
  leave a
  ends_soon clone
  end_client a
  kill9 src
}

parts=(slow_reads trickle)
run_parts "$@"
