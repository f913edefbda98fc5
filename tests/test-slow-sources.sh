#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source that is slow to read can come back after a loss; and that
# a source that sends one byte from time to time is given up, and holds up
# neither clients nor the end of the process.  DEADLINE is in milliseconds.

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

is_back () { [ "$(messages 'source [^ ]* is back after ')" -ge 1 ]; }

# comes_back COMMAND...: the source is lost, and comes back, slow, by this
# command.
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

# All samples together take longer than the deadline; then each of them does.
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

  # SIGTERM during such a request, and during such a reconnection.
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
  # A client waits for the source, too.
  start_client a "$tmp/src"
  tell_client a EIO read 3 source
  leave a
  ends_soon clone
  end_client a
  kill9 src
}

parts=(slow_reads trickle)
run_parts "$@"
