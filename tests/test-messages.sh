#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves what the log says, one line for each event and nothing else: what is
# cloned and how much of it is left, tenths of the disk, pauses, the end, lost
# servers that come back, and changes of the mode with their reasons.  The
# end of nbdkit is no error.  The journal gets the news with their priority.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 8M

# log_is: the log of `clone' has the lines on standard input, and no others but
# tenths of the disk, whose number depends on the speed of the machine.  T is a
# time, and R a rate.
log_is ()
{
  grep -v ' % is valid, ' "$tmp/clone.log" |
    sed -E -e 's,^nbdkit: clone: ,,' -e "s,$tmp/,,g" \
        -e 's# in [^,]*, [^ ]* [A-Za-z]*/s$# in T, R#' >"$tmp/log"
  diff - "$tmp/log"
}

# said TEXT [N]: the log has this N times, once by default.
said () { [ "$(grep -c -F -e "$1" "$tmp/clone.log")" = "${2:-1}" ]; }

local_clone ()
{
  rm -f "$tmp/clone.log"
  serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K \
              hydration=off "$@"
}

# From the beginning to the end, in three processes.
progress ()
{
  local_clone
  qemu-io -f raw -c 'write -P 1 0 2M' "$(uri clone)"
  # It is paused already.
  control POST /pause
  eventually said ' 20 % is valid, 2 MiB of 8 MiB'
  said ' 10 % ' 0
  stop clone
  log_is <<END
cloning src to dest: 8 MiB, 0 bytes of it valid (0 %), 8 MiB left; hydration is paused
shutting down: making everything durable
END

  local_clone
  control POST /resume
  # Once more does nothing.
  control POST /resume
  wait_complete
  control POST /pause
  stop clone
  said ' 20 % ' 0
  log_is <<END
cloning src to dest: 8 MiB, 2 MiB of it valid (25 %), 6 MiB left; hydration is paused
hydration goes on
hydration is complete: destination dest stands alone; 6 MiB in T, R
shutting down: making everything durable
END

  local_clone
  stop clone
  log_is <<END
destination dest is complete: 8 MiB; the source is not needed
shutting down: making everything durable
END
  rm "$tmp/dest" "$tmp/dest.clone"
}

# Pauses, by request and by a setting.
pauses ()
{
  local_clone hydration-rate=64K
  control POST /resume
  control POST /pause
  set_settings '{"hydration-threshold": 0}'
  control POST /resume
  set_settings '{"hydration-threshold": 0}'
  set_settings '{"hydration-threshold": "1M"}'
  stop clone
  log_is <<END
cloning src to dest: 8 MiB, 0 bytes of it valid (0 %), 8 MiB left; hydration is paused
hydration goes on
hydration is paused
hydration goes on
shutting down: making everything durable
END
  rm "$tmp/dest" "$tmp/dest.clone"
}

# The end is no error, whatever ends nbdkit.
ends ()
{
  local signal
  for signal in INT QUIT HUP TERM; do
    local_clone
    kill -$signal "$(cat "$tmp/clone.pid")"
    reap clone "$(cat "$tmp/clone.pid")"
    log_is <<END
cloning src to dest: 8 MiB, 0 bytes of it valid (0 %), 8 MiB left; hydration is paused
shutting down: making everything durable
END
  done

  # A filter, without a signal.
  nbdkit_args=(--filter=exitlast)
  local_clone
  nbdkit_args=()
  qemu-io -f raw -c 'read 0 64k' "$(uri clone)"
  reap clone "$(cat "$tmp/clone.pid")"
  log_is <<END
cloning src to dest: 8 MiB, 0 bytes of it valid (0 %), 8 MiB left; hydration is paused
shutting down: making everything durable
END

  # POST /stop.
  local_clone
  control POST /stop
  reap clone "$(cat "$tmp/clone.pid")"
  log_is <<END
cloning src to dest: 8 MiB, 0 bytes of it valid (0 %), 8 MiB left; hydration is paused
stopping: making everything durable
END
  rm "$tmp/dest" "$tmp/dest.clone"
}

# says MESSAGE: the log has this line, a regular expression, once.  Errors on a
# client's thread begin with its name.
says ()
{
  [ "$(grep -c -E "^nbdkit: (clone[.][0-9]+: )?$1$" "$tmp/clone.log")" -eq 1 ] ||
    fail "not once in the log: $1"
}

serve_again ()
{
  case $1 in
    src) serve_device src "$tmp/src" ;;
    dest) serve_device dest "$tmp/d" ;;
    meta) serve_device meta "$tmp/m" ;;
  esac
}

# write_and_flush REGION
write_and_flush ()
{
  qemu-io -f raw -c "write -P 1 $((64 * $1))k 64k" -c flush "$(uri clone)"
}

# Servers that are lost, and devices that fail.
servers ()
{
  local who again="is back after [0-9][^;]*" wait="requests that need it wait"
  rm -f "$tmp/clone.log"
  truncate -s 8M "$tmp/d"
  truncate -s 64K "$tmp/m"
  for who in src dest meta; do serve_again $who; done
  serve_clone "$(device src)" destination="$(device dest)" \
              metadata="$(device meta)" region-size=64K hydration=off \
              commit-interval=3600
  for who in src:source dest:destination meta:metadata; do
    kill9 ${who%:*}
    eventually grep "${who#*:} .* is lost" "$tmp/clone.log"
    serve_again ${who%:*}
    eventually grep "${who#*:} .* is back" "$tmp/clone.log"
  done
  for who in source metadata; do
    says "error: $who [^ ]* is lost: [^;]*; $wait"
    says "clone: $who [^ ]* $again"
  done
  says "error: destination [^ ]* is lost: [^;]*; $wait; the mode is fail"
  says "clone: destination [^ ]* $again; the mode is rw"

  fault meta write
  fails write_and_flush 1
  says "error: metadata [^ ]*: cannot write: .*; the mode is ro"
  no_fault meta write
  qemu-io -f raw -c flush "$(uri clone)"
  says "clone: metadata [^ ]*: can be written again; the mode is rw"

  fault dest flush.once ENOSPC
  fails write_and_flush 3
  eventually status_is '.mode == "rw"'
  says "error: destination [^ ]*: flush failed: .* room there; the mode is ro"
  says "clone: destination [^ ]*: flushes can succeed again; the mode is rw"
  fault dest flush.once
  fails write_and_flush 4
  status_is '.mode == "ro"'
  says "error: destination [^ ]*: flush failed: .* start again; the mode is ro"
  stop clone || :
  for who in src dest meta; do kill9 $who; done
  # Nothing is said twice.
  test -z "$(grep -v ' cannot be reached again: ' "$tmp/clone.log" |
               sort | uniq -d)"
}

# The journal gets a priority and adds the program's name.
in_journal ()
{
  JOURNAL_STREAM=$1 exec nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" \
    "$plugin" "$tmp/src" destination="$tmp/dest" control="$tmp/clone.ctl"
}

journal ()
{
  local begin
  rm -f "$tmp/clone.log" "$tmp/dest" "$tmp/dest.clone"
  : >"$tmp/clone.log"
  server clone in_journal "$(stat -c %d:%i "$tmp/clone.log")"
  wait_complete
  stop clone
  for begin in cloning hydration shutting; do
    grep "^<6>clone: $begin" "$tmp/clone.log"
  done
  fails grep '^nbdkit: ' "$tmp/clone.log"

  # Another program's journal.
  : >"$tmp/clone.log"
  server clone in_journal 1:1
  stop clone
  says "clone: destination .* is complete: 8 MiB; the source is not needed"
  fails grep '^<' "$tmp/clone.log"
}

parts=(progress pauses ends servers journal)
run_parts "$@"
