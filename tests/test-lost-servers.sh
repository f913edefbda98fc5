#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the server of the destination or the metadata may be lost at the
# worst moment.  If it is lost during the last flush of hydration, the clone
# becomes complete all the same.  If it is lost between a commit's flush of the
# destination and its write of the metadata, each client is told once, by its
# next flush, that writes are lost.  When both servers work again the clone
# becomes writable by itself, even with nothing to commit.  All connections come
# back after one of them could not be made again.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 1M
nr=16 # regions

# new_clone KEY=VALUE...: destination and metadata are on devices of their own.
new_clone ()
{
  rm -f "$tmp/d" "$tmp/m" "$tmp/clone.log"
  truncate -s 1M "$tmp/d" "$tmp/m"
  serve_device dest "$tmp/d"
  serve_device meta "$tmp/m"
  start_clone "$@"
}

start_clone ()
{
  serve_clone "$tmp/src" destination="$(device dest)" \
              metadata="$(device meta)" region-size=64K "$@"
}

end ()
{
  stop clone
  stop dest
  stop meta
}

# The destination is lost in the last flush of hydration.
last_flush ()
{
  new_clone hydration=off commit-interval=3600
  start_client a "$tmp/src"
  client a write 3 a flush
  remember "$tmp/d"
  hold_device dest flush
  control POST /resume >/dev/null
  eventually is_held dest flush
  status_is ".hydrated == $nr and .state != \"complete\""
  lose dest "$tmp/d"
  let_device_go dest flush
  serve_device dest "$tmp/d"
  eventually status_is '.state == "complete" and .mode == "rw"'
  # No client's write was lost.
  client a read 3 a read 15 source flush write 4 b flush
  end_client a
  {
    head -c 196608 "$tmp/src"
    head -c 65536 /dev/zero | tr '\0' a
    head -c 65536 /dev/zero | tr '\0' b
    tail -c +327681 "$tmp/src"
  } >"$tmp/expected"
  end
  same "$tmp/d" "$tmp/expected"
}

# The metadata cannot be written, then the destination is lost.  The metadata
# works again before the destination does, or after it.
told ()
{
  local again
  for again in before after; do
    new_clone hydration=off commit-interval=1
    start_client a "$tmp/src"
    start_client b "$tmp/src"
    client a write 1 a flush
    fault meta write
    client a write 2 b
    eventually status_is '.mode == "ro"'
    status_is '.hydrated == 2 and .durable == 1'
    kill9 dest
    eventually grep -q 'destination .* is lost' "$tmp/clone.log"
    if [ $again = before ]; then no_fault meta write; fi
    serve_device dest "$tmp/d"
    no_fault meta write
    client a EIO flush flush read 1 a
    client b EIO flush flush read 2 source
    # What was lost can be written again, and is durable then.
    eventually status_is '.mode == "rw"'
    client a write 2 c write 3 d flush
    kill9 clone
    end_client a
    end_client b
    start_clone hydration=off
    start_client a "$tmp/src"
    client a read 1 a read 2 c read 3 d read 4 source
    end_client a
    end
  done
}

# The same, but no client sends a request: the mode becomes rw by itself.
by_itself ()
{
  new_clone hydration=off commit-interval=1
  start_client a "$tmp/src"
  client a write 1 a flush
  fault meta write
  client a write 2 b
  eventually status_is '.mode == "ro"'
  kill9 dest
  serve_device dest "$tmp/d"
  no_fault meta write
  eventually status_is '.mode == "rw"'
  client a write 4 d EIO flush read 1 a read 4 d flush write 5 e flush
  control POST /resume >/dev/null
  eventually status_is '.state == "complete"'
  client a read 1 a read 2 source read 4 d read 5 e read 6 source
  end_client a
  end
}

# Of four connections, two can be made again at once and two later.
connections_are () { [ "$(proxy "$1" open)" = "$2" ]; }
has_dropped () { [ "$(proxy "$1" dropped)" -ge 1 ]; }
topped_up ()
{
  local net
  rm -f "$tmp/d" "$tmp/m" "$tmp/clone.log"
  truncate -s 1M "$tmp/d"
  serve src file "$tmp/src"
  serve dest file "$tmp/d"
  start_proxy far src
  start_proxy near dest
  serve_clone "$(uri far)" destination="$(uri near)" metadata="$tmp/m" \
              region-size=64K hydration=off
  start_client a "$tmp/src"
  for net in far near; do
    connections_are $net 4
    proxy $net limit 2
    proxy $net cut
    eventually has_dropped $net
    # The clone goes on with two.
    client a part 8 a read 9 source
    proxy $net normal
    eventually connections_are $net 4
  done
  eventually status_is '.source.connections == 4'
  client a maybe flush flush
  control POST /resume >/dev/null
  eventually status_is '.state == "complete"'
  end_client a
  stop clone
}

parts=(last_flush told by_itself topped_up)
run_parts "$@"
