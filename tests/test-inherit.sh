#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a crash of the program is not a power cut where the destination is
# a file or a block device.  Everything that was acknowledged to four clients
# that never flush is there after kill -9 at random moments, with and without
# commits, amid hydration and copy-on-read, and no valid region is read from the
# source again.  The same as another user.  A clone goes on without this where
# shared memory has no room, says so once, and does not trust what another
# process has left there.
#
# ROUNDS is the number of crashes, SEED determines them, and arguments are the
# parts to run.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
not_under asan tsan valgrind "it would take too long to start again and again"
rounds=${ROUNDS:-$(long_or_short 200 12)}
seed=${SEED:-1}
RANDOM=$seed
mkdir "$tmp/progress"

loop=
at_exit () { [ -z "$loop" ] || losetup -d "$loop"; }

# With more threads, nbdkit before 1.34 can abort when its client, the clone,
# vanishes.
start_src ()
{
  serve src -t 1 --filter=log file "$tmp/src" logfile="$tmp/src.requests"
}

# Run after each crash: no region that was valid at the last crash has been read
# from the source since then.  Then it remembers which regions are valid now.
# The source's connections are numbered, which tells the old process's last
# requests from those of the new one.
cat >"$tmp/check-reads.py" <<'PY'
import json, os, re, sys
decoded, bits, log, state = sys.argv[1:]
with open(decoded) as f:
    store = json.load(f)
valid = set()
for run in store["runs"]:
    valid.update(range(run["first"], run["first"] + run["count"]))
durable = len(valid)
if os.path.exists(bits):
    with open(bits, "rb") as f:
        words = f.read()[4096:]
    valid.update(r for r in range(store["regions"])
                 if words[r // 8] >> r % 8 & 1)
size = store["region_size"]

reads = []
last = 0
with open(log) as f:
    for m in re.finditer(r"connection=(\d+) (\w+) (.*)", f.read()):
        last = max(last, int(m.group(1)))
        if m.group(2) == "Read":
            at = re.match(r"id=\d+ offset=(\S+) count=(\S+)", m.group(3))
            if at:
                reads.append((int(m.group(1)), int(at.group(1), 0),
                              int(at.group(2), 0)))
again = 0
if os.path.exists(state):
    with open(state) as f:
        before = json.load(f)
    was_valid = set(before["valid"])
    for connection, offset, count in reads:
        if connection > before["last"]:
            for r in range(offset // size, (offset + count - 1) // size + 1):
                if r in was_valid:
                    print("region %d was valid, and is read again: %d+%d"
                          % (r, offset, count))
                    again += 1
with open(state, "w") as f:
    json.dump({"last": last, "valid": sorted(valid)}, f)
print("%d valid, %d of them durable" % (len(valid), durable))
sys.exit(again > 0)
PY
check_reads ()
{
  $python "$srcdir/metadata.py" decode "$meta" >"$tmp/decoded"
  $python "$tmp/check-reads.py" "$tmp/decoded" "$(bits_of "$meta")" \
          "$tmp/src.requests" "$tmp/reads.state" >"$tmp/check-reads.out" 2>&1 ||
    fail "$(cat "$tmp/check-reads.out")"
  cat "$tmp/check-reads.out"
  if ! grep -q '^\([0-9]*\) valid, \1 of' "$tmp/check-reads.out"; then
    not_durable=$((not_durable + 1))
  fi
}

flush_clone () { $python -m nbd -u "$(uri clone)" -c 'h.flush()'; }
flusher=

# crashes NAME DESTINATION METADATA REGION-SIZE ROUNDS
not_durable=0
crashes ()
{
  local name=$1 dest=$2 area=65536 requests=200 round rc=0 size
  meta=$3
  size=$(((16 << 20) + 1536))
  # With large regions everything would soon be valid.
  if [ "$4" = 1M ]; then
    area=$((1 << 20)) requests=10 size=$(((48 << 20) + 1536))
  fi
  make_disk "$tmp/src" $size
  rm -f "$meta" "$tmp/stop" "$tmp/reads.state" "$tmp/expected"
  start_src
  # Slow, so that hydration has something to do in all rounds, even if the
  # machine is so busy that a round takes many times longer.
  start_clone ()
  {
    serve_clone "$(uri src)" destination="$dest" metadata="$meta" \
                create=always region-size="$region_size" source-check=false \
                copy-on-read=true hydration-batch-size=64K \
                hydration-rate=$((size / $1 / 16)) \
                commit-interval=$interval "${@:2}"
    interval=$((RANDOM % 3))
  }
  region_size=$4
  # In the first round nothing is hydrated and nothing is committed but by
  # clients' flushes, so that there is something to lose.
  interval=0
  start_clone "$5" hydration=off
  $python "$srcdir/kill-all.py" "$(uri clone)" "$tmp/src" "$tmp/expected" \
          "$tmp/progress" "$tmp/stop" --seed "$seed" --crash "$area" --ahead 400 \
          >"$tmp/kill-all.out" 2>&1 &
  clients=$!
  pids+=("$clients")
  for ((round = 1; round <= $5; round++)); do
    : "$name, regions of $region_size, round $round of $5"
    progress_begins
    # In some rounds there was a commit before, or one is under way.
    case $((round > 1 ? RANDOM % 3 : 2)) in
      0) flush_clone ;;
      1) flush_clone 2>/dev/null & flusher=$! ;;
    esac
    eventually have_answered $((1 + RANDOM % requests))
    kill9 clone
    [ -z "$flusher" ] || wait "$flusher" || :
    flusher=
    check_reads
    # At the end the clients read everything, which must leave regions to
    # hydrate.
    if [ "$round" -eq "$5" ]; then
      start_clone "$5" copy-on-read=false
    else
      start_clone "$5"
    fi
  done
  touch "$tmp/stop"
  wait $clients || rc=$?
  cat "$tmp/kill-all.out"
  test $rc -eq 0

  # A large read may include small valid gaps, so its regions are not checked.
  rm "$tmp/reads.state"
  kill9 clone
  check_reads
  start_clone "$5" hydration=off copy-on-read=false
  export_to clone "$tmp/out"
  same "$tmp/out" "$tmp/expected"
  kill9 clone
  rm "$tmp/reads.state"
  check_reads
  start_clone "$5"
  set_settings '{"hydration-rate": 0}'
  eventually status_is '.state == "complete"'
  test ! -e "$(bits_of "$meta")"
  kill9 clone
  check_reads
  stop src
  cmp -n $size "$dest" "$tmp/expected" || fail "the destination alone is wrong"
  echo "inherit: $name, regions of $region_size: $5 crashes, seed $seed;" \
       "$(cat "$tmp/kill-all.out")"
}

file_destination ()
{
  rm -f "$tmp/dest"
  crashes file "$tmp/dest" "$tmp/dest.clone" 4K $(((rounds + 3) / 4))
  rm -f "$tmp/dest"
  crashes file "$tmp/dest" "$tmp/dest.clone" 1M $(((rounds + 3) / 4))
}

block_device ()
{
  if [ "$(id -u)" -ne 0 ] || ! command -v losetup >/dev/null; then
    echo "inherit: no block device: needs root and losetup"
    return 0
  fi
  truncate -s 50M "$tmp/disk"
  loop=$(losetup -f --show "$tmp/disk" 2>/dev/null) || loop=
  if [ -z "$loop" ]; then
    echo "inherit: no block device: cannot make a loop device"
    return 0
  fi
  crashes "block device" "$loop" "$tmp/disk.clone" 4K $(((rounds + 3) / 4))
  crashes "block device" "$loop" "$tmp/disk.clone" 1M $(((rounds + 3) / 4))
}

# Two writes, the first of which is flushed.
write_two ()
{
  $python - "$(uri clone)" <<'PY'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"1" * 65536, 65536)
h.flush()
h.pwrite(b"2" * 65536, 131072)
os._exit(0) # a client that disconnects may flush
PY
}

# is_there FIRST [SECOND]: these regions have what was written; others read as
# the source.
is_there ()
{
  cp "$tmp/small" "$tmp/model"
  for i; do
    head -c 65536 /dev/zero | tr '\0' "$i" |
      dd of="$tmp/model" bs=64K seek="$i" conv=notrunc status=none
  done
  export_to clone "$tmp/out"
  same "$tmp/out" "$tmp/model"
}

make_disk "$tmp/small" 1M
simple=("$tmp/small" destination="$tmp/simple" region-size=64K hydration=off
        commit-interval=0)

# When the status comes, the clone has started and logged its messages.
has_started () { status_is '.size == 1048576'; }
start_simple ()
{
  serve_clone "${simple[@]}"
  has_started
}

# The process has dropped its privileges.
another_user ()
{
  if [ "$(id -u)" -ne 0 ]; then
    echo "inherit: no other user: needs root"
    return 0
  fi
  rm -f "$tmp/simple" "$tmp/simple.clone"
  chmod 777 "$tmp"
  nbdkit_args=(-u nobody -g nogroup)
  start_simple
  write_two
  test "$(stat -c '%U %a' "$(bits_of "$tmp/simple.clone")")" = "nobody 600"
  kill9 clone
  start_simple
  grep '1 regions that were valid and not durable are taken over' \
       "$tmp/clone.log"
  is_there 1 2
  kill9 clone
  # Another user's shared memory is not used, and does no harm.
  nbdkit_args=()
  : >"$tmp/clone.log"
  start_simple
  grep 'not taken over: the shared memory has another owner or mode' \
       "$tmp/clone.log"
  is_there 1
  stop clone
}

# with_shm OPTIONS: the clone in a mount namespace whose /dev/shm is a tmpfs of
# its own.
with_shm ()
{
  rm -f "$tmp/clone.ctl"
  : >"$tmp/clone.log"
  server clone in_namespace "$1"
  has_started
}

in_namespace ()
{
  # shellcheck disable=SC2016 # the inner shell expands these
  exec unshare -m --propagation private sh -c '
    mount -t tmpfs -o "$0" tmpfs /dev/shm && exec "$@"' "$1" \
    nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
    control="$tmp/clone.ctl" "${simple[@]}"
}

# No room, or no shared memory at all: a crash is then like a power cut, and
# what was flushed is there.
no_room ()
{
  local options
  if [ "$(id -u)" -ne 0 ] ||
       ! unshare -m mount -t tmpfs tmpfs /dev/shm 2>/dev/null; then
    echo "inherit: no small /dev/shm: needs root and mount namespaces"
    return 0
  fi
  for options in size=4k ro; do
    rm -f "$tmp/simple" "$tmp/simple.clone"
    with_shm $options
    test "$(messages 'no shared memory of 8192 bytes: .*like a power cut')" -eq 1
    write_two
    is_there 1 2
    kill9 clone
    with_shm $options
    test "$(messages 'taken over')" -eq 0
    is_there 1
    stop clone
  done

  # Another process serves the clone in between.  Neither of the two sees the
  # other's shared memory.
  rm -f "$tmp/simple" "$tmp/simple.clone"
  start_simple
  write_two
  kill9 clone
  with_shm size=1M
  test "$(messages 'taken over')" -eq 0
  is_there 1
  kill9 clone
  : >"$tmp/clone.log"
  start_simple
  grep 'not taken over: another process has served the clone since' \
       "$tmp/clone.log"
  is_there 1
  stop clone
}

if [ $# -eq 0 ]; then
  set -- file_destination block_device another_user no_room
fi
for part; do
  : "$part"
  $part
  if [[ $part = *_d* ]]; then
    # A crash may find that a flush has just made everything durable.  If all
    # have, nothing was proved yet.
    for again in 1 2 3 4; do
      [ $not_durable -eq 0 ] || break
      : "$again more, until something is not durable"
      $part
    done
    test $not_durable -gt 0
  fi
done
is_all || left_to_all "188 of 200 crashes"
