#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that SIGTERM ends the process while it waits for a server that is lost,
# or for a source that is silent: during clients' requests, the periodic commit,
# hydration, and the flush that ends hydration.  The process waits for a silent
# destination, and ends when that has answered.  What was flushed before is
# there at the next start.  No freed memory is used if a flush at the end takes
# long.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # nbdkit leaks if it ends while a client is connected
requires "$python" -c 'import nbd'
# Let malloc overwrite freed memory, so that its use is noticed.  A tool notices
# it by itself.
[ -n "$tool" ] || export MALLOC_PERTURB_=165
make_disk "$tmp/src" 1M
no_deadline

# new_clone KEY=VALUE...: source, destination and metadata are each an NBD
# server, the source behind a proxy.
new_clone ()
{
  rm -f "$tmp/d" "$tmp/m" "$tmp/clone.log"
  truncate -s 1M "$tmp/d" "$tmp/m"
  serve_device src "$tmp/src"
  start_proxy far src
  serve_device dest "$tmp/d"
  serve_device meta "$tmp/m"
  start_clone "$@"
}

start_clone ()
{
  serve_clone "nbd+unix:///dest?socket=$tmp/far.sock" \
              destination="$(device dest)" metadata="$(device meta)" \
              region-size=64K "$@"
}

# Kill all servers, and forget which requests are to be held.
end ()
{
  local name
  for name in far src dest meta; do
    if [ -s "$tmp/$name.pid" ]; then kill9 $name; fi
  done
  rm -rf "$tmp"/*.faults
}

# After a restart region 1 has what client a had flushed.
flushed_is_there ()
{
  end
  serve_device src "$tmp/src"
  start_proxy far src
  serve_device dest "$tmp/d"
  serve_device meta "$tmp/m"
  start_clone hydration=off
  start_client a "$tmp/src"
  client a read 1 a read 9 source
  end_client a
  ends_soon clone
  end
}

# SIGTERM comes when the periodic commit has flushed the destination and waits
# for the metadata's server, which is lost.
lost_metadata ()
{
  local before
  new_clone hydration=off commit-interval=1
  start_client a "$tmp/src"
  client a write 1 a flush
  kill9 meta
  eventually grep -q 'metadata .* is lost' "$tmp/clone.log"
  before=$(flushes dest)
  client a write 2 b
  has_flushed () { [ "$(flushes dest)" -gt "$before" ]; }
  eventually has_flushed
  leave a
  ends_soon clone
  end_client a
  flushed_is_there
}

# A client waits for a server that is lost and does not come back.
lost ()
{
  local who
  for who in src dest meta; do
    new_clone hydration=off commit-interval=3600
    start_client a "$tmp/src"
    start_client b "$tmp/src"
    client a write 1 a flush
    kill9 $who
    eventually grep -q 'is lost' "$tmp/clone.log"
    case $who in
      src) tell_client a part 2 b
           client b write 5 b ;;
      dest) tell_client a read 1 a
            client b read 9 source ;;
      meta) client a write 2 b
            tell_client a flush
            client b read 9 source write 5 b ;;
    esac
    leave a
    leave b
    ends_soon clone
    end_client a
    end_client b
    flushed_is_there
  done
}

# A client waits for a reply that does not come, on a connection that stays
# open.
silent ()
{
  local who what
  for who in src:read dest:read; do
    what=${who#*:} who=${who%:*}
    new_clone hydration=off commit-interval=3600
    start_client a "$tmp/src"
    client a write 1 a flush
    hold_device $who $what
    case $who in
      src) tell_client a part 2 b ;;
      dest) tell_client a read 1 a ;;
    esac
    eventually is_held $who $what
    leave a
    if [ $who = src ]; then
      ends_soon clone
    else
      # The process waits until the destination answers, and then ends.
      kill -TERM "$(cat "$tmp/clone.pid")"
      let_device_go $who $what
      ends_soon clone
    fi
    end_client a
    flushed_is_there
  done
}

# A server is lost during hydration's copies, or during the flush that ends
# hydration.
hydration ()
{
  local who
  for who in src dest meta flush; do
    new_clone hydration=off commit-interval=3600
    start_client a "$tmp/src"
    client a write 1 a flush
    case $who in
      src) hold_device src read ;;
      dest) hold_device dest write ;;
      meta) hold_device meta flush ;;
      flush) hold_device dest flush ;;
    esac
    control POST /resume >/dev/null
    case $who in
      src) eventually is_held src read ;;
      dest) eventually is_held dest write ;;
      meta) eventually is_held meta flush ;;
      flush) eventually is_held dest flush ;;
    esac
    case $who in
      flush) kill9 dest ;;
      *) kill9 $who ;;
    esac
    eventually grep -q 'is lost' "$tmp/clone.log"
    leave a
    ends_soon clone
    end_client a
    flushed_is_there
  done
}

# The first, second or third flush after SIGTERM is held until the process has
# given up the source, where a client's read is held, and has answered the read.
is_held_or_over () { is_held dest flush || has_ended "$1"; }
slow_flush ()
{
  local n pid
  for n in 0 1 2; do
    new_clone hydration=off commit-interval=3600
    start_client a "$tmp/src"
    client a write 1 a flush write 2 b read 9 source
    hold_device src read
    tell_client a read 9 source
    eventually is_held src read
    leave a
    pid=$(cat "$tmp/clone.pid")
    hold_device dest flush $n
    kill -TERM "$pid"
    eventually is_held_or_over "$pid"
    eventually has_ended "${client_pid[a]}"
    let_device_go dest flush
    eventually has_ended "$pid"
    reap clone "$pid"
    end_client a
    # A normal end commits everything.
    end
    serve_device src "$tmp/src"
    start_proxy far src
    serve_device dest "$tmp/d"
    serve_device meta "$tmp/m"
    start_clone hydration=off
    status_is '.durable == 2'
    stop clone
    end
  done
}

parts=(lost_metadata lost silent hydration slow_flush)
run_parts "$@"
