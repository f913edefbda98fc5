#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source that does not answer, closes each connection, or sends
# without end, does little harm: the start fails in time, with an error that
# says what is wrong; reconnections have pauses, and the log stays short; memory
# is bounded; and extents of one byte each, which are allowed, are copied.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
make_disk "$tmp/src" 1M
refused_after=60 # seconds

restart ()
{
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp"/*.log
  nbdkit_args=()
}

is_complete () { status_is '.state == "complete"'; }

# A server that accepts connections and sends nothing; and one that answers no
# request.
no_answer ()
{
  restart
  deadline 1000
  serve_odd mute "$tmp/src" --handshake silent
  serve_odd deaf "$tmp/src" --silent
  for name in mute deaf; do
    refused 'source .*(answer|reply)' "$(uri $name)" destination="$tmp/dest"
  done
  nbdkit_args=()
  refused 'source .*(answer|reply)' "$(uri deaf)" destination="$tmp/dest" \
          source-timeout=1
  stop mute
  stop deaf
}

# A server that closes each connection at its start.
closing ()
{
  local check allowed begin=$SECONDS first
  for check in true false; do
    restart
    serve_odd src "$tmp/src"
    start_proxy far src
    serve_clone "$(uri far)" destination="$tmp/dest" region-size=64K \
                hydration=off source-timeout=1 source-check=$check
    start_client a "$tmp/src"
    kill9 src
    serve_odd src "$tmp/src" --handshake close
    proxy far cut
    first=$(proxy far accepted)
    # Each of these waits for a second.
    client a EIO read 1 source EIO read 2 source EIO read 3 source
    allowed=$((4 * (8 + SECONDS - begin)))
    test $(($(proxy far accepted) - first)) -le $allowed
    test "$(wc -l <"$tmp/clone.log")" -le $allowed
    # The server works again.
    kill9 src
    serve_odd src "$tmp/src"
    control POST /resume >/dev/null
    eventually is_complete
    end_client a
    stop clone
    stop far
    stop src
    same "$tmp/dest" "$tmp/src"
  done
}

# make_stripes FILE MIB: every other byte is zero.
make_stripes ()
{
  $python -c 'import sys
open(sys.argv[1], "wb").write(b"x\0" * (int(sys.argv[2]) << 19))' "$@"
}

# As many extents as there are bytes.
one_byte ()
{
  local region_size
  make_stripes "$tmp/stripes" 1
  serve_odd src "$tmp/stripes" --extents bytes
  for region_size in 4K 1M; do
    restart
    serve_clone "$(uri src)" destination="$tmp/dest" region-size=$region_size
    ends_soon clone
    serve_clone "$(uri src)" destination="$tmp/dest"
    eventually is_complete
    stop clone
    same "$tmp/dest" "$tmp/stripes"
  done
  stop src
}

# measure COMMAND...: run it with a memory limit of 2 GiB, for at most a minute.
# Sets rss to the memory that it used, in KiB, and rc to its exit status.
measure ()
{
  read -r rc rss < <($python - "$tmp/measured.out" "$@" <<'PY'
import os, resource, subprocess, sys
def limit():
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
with open(sys.argv[1], "wb") as out:
    p = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL,
                         stdout=out, stderr=out, preexec_fn=limit)
try:
    rc = p.wait(60)
except subprocess.TimeoutExpired:
    p.kill()
    rc = "timeout"
    p.wait()
print(rc, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
PY
)
  cat "$tmp/measured.out"
}

# Metadata contexts without end, which libnbd keeps all.
contexts ()
{
  [ -z "$tool" ] || return 0 # a tool needs memory of its own
  restart
  serve_odd src "$tmp/src" --handshake contexts
  measure nbdkit -f -U "$tmp/refused.sock" -D clone.deadline=300 "$plugin" \
          "$(uri src)" destination="$tmp/dest"
  test "$rc" = 1
  test "$rss" -le $((3 << 19))
  grep -E 'error: .*source .*(answer|too much)' "$tmp/measured.out"
  stop src
}

# Two replies of 64 MiB for a disk of 16 MiB.
huge_replies ()
{
  local rss
  [ -z "$tool" ] || return 0
  restart
  make_stripes "$tmp/stripes" 16
  serve_odd src "$tmp/stripes" --extents bytes
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K
  eventually status_is '.hydrated > 0'
  rss=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' \
          "/proc/$(cat "$tmp/clone.pid")/status")
  test "$rss" -le $((512 << 10))
  ends_soon clone
  stop src
}

parts=(no_answer closing one_byte contexts huge_replies)
run_parts "$@"
