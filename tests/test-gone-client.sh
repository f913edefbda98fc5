#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a write, zeroing or copy of a client that left while it waited for
# a lost source does not overwrite what another client has written since then,
# when the source is back.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # of nbdkit's
requires "$python" -c 'import nbd'
make_disk "$tmp/src" 1M
serve src file "$tmp/src"
# nbdkit before 1.34 can abort when it answers a client that has vanished,
# unless each connection has only one thread.
nbdkit_args=(-t 1 --filter=log)
serve_clone "$(uri src)" destination="$tmp/d" region-size=64K hydration=off \
            logfile="$tmp/clone.requests"

# The log line of the latest request of this type, which is the old client's.
latest () { grep -E " $1 id=[0-9]+ offset=" "$tmp/clone.requests" | tail -n 1; }
has_begun () { [ "$(latest "$1")" != "$before" ]; }
has_ended_too () { grep -q -E "$ended" "$tmp/clone.requests"; }
is_lost () { status_is '.source.connected == false'; }
is_connected () { status_is '.source.connected'; }

start_client new "$tmp/src"
region=2
for request in part:Write zero_part:Zero cache:Cache; do
  type=${request#*:} request=${request%:*}
  region=$((region + 1))
  client new read $region source
  start_client old "$tmp/src"
  kill9 src
  eventually is_lost
  before=$(latest "$type" || :)
  case $request in
    part) tell_client old part $region o ;;
    *) tell_client old $request $region ;;
  esac
  eventually has_begun "$type"
  # A line such as "TIME connection=2 Write id=1 offset=...".
  ended=$(latest "$type" |
            sed -E 's/.*(connection=[0-9]+) ([A-Za-z]+ id=[0-9]+) .*/\1 \\.\\.\\.\2 /')
  # It waits by now: the other client has been served again and again.
  for i in 1 2 3 4 5; do client new write 1 "$i" read 1 "$i"; done
  fails has_ended_too
  kill_client old
  client new write $region n flush read $region n
  # It fails; or nbdkit does not notice that the client is gone, and it is done
  # later.
  for ((i = 0; i < ${tool:+10 *} 400; i++)); do
    if has_ended_too; then break; fi
    sleep 0.05
  done
  serve src file "$tmp/src"
  eventually is_connected
  # These need the source, and come after the old client's request.
  client new part 9 b read 10 source
  eventually has_ended_too
  client new read $region n
done
client new flush
end_client new
stop clone
