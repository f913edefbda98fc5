#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves what clients see of devices that fail (I8, and the manual page's "MODES
# AND ERRORS"): which requests fail and which go on, what the mode says and how
# the clone leaves it, that memory never goes back to the source's content, and
# what a power cut leaves after each failure.

. "$(dirname "$0")/functions.sh"

requires "$python" -c 'import nbd'
powercut=$builddir/tests/powercut/.libs/nbdkit-powercut-plugin.so
faults=$tmp/faults
size=$((1 << 20)) # 16 regions
mkdir "$faults"
make_disk "$tmp/src" $size
make_garbage "$tmp/garbage" $size

# New devices: a destination with old content, empty metadata.
new_devices ()
{
  cp "$tmp/garbage" "$tmp/dest"
  rm -f "$tmp/meta"
  truncate -s 64K "$tmp/meta"
}

# Power cuts are computed from the devices' content at the start.
serve_devices ()
{
  cp "$tmp/dest" "$tmp/dest.before"
  cp "$tmp/meta" "$tmp/meta.before"
  rm -f "$faults"/*
  serve devices "$powercut" dest="$tmp/dest" meta="$tmp/meta" \
        log="$tmp/recording" faults="$faults"
}

# Without periodic commits, unless a test sets commit-interval.
start ()
{
  serve_clone "$tmp/src" create=always region-size=64K hydration=off \
              destination="nbd+unix:///dest?socket=$tmp/devices.sock" \
              metadata="nbd+unix:///meta?socket=$tmp/devices.sock" \
              commit-interval=3600 "$@"
}

# power_cut KIND: KIND says whose data is kept where it is not durable: meta,
# dest, none or all.
power_cut ()
{
  kill9 clone
  kill9 devices
  $python "$srcdir/powercut/powercut.py" crash "$tmp/recording" \
          "$tmp/dest.before" "$tmp/meta.before" "$tmp/dest" "$tmp/meta" \
          --keep "$1"
}

end ()
{
  stop clone || :
  kill9 devices
}

# fault REQUEST [ERROR [START END]], see powercut-plugin.c
fault ()
{
  local name=$1
  shift
  echo "${*:-EIO}" >"$faults/$name.new"
  mv "$faults/$name.new" "$faults/$name"
}

no_fault ()
{
  rm -f "$faults/$1"
}

# client REQUEST...: send these on one connection, one after the other:
#   write REGION BYTE   zero REGION   trim REGION   cache REGION   flush
#   part REGION BYTE    512 bytes in the region's middle
#   fua REGION BYTE     as write, with FUA
#   read REGION BYTE    where BYTE fills the region, or is `source'
# and `EIO' or `ENOSPC' before a request that must fail with that.
cat >"$tmp/client.py" <<'PY'
import errno, nbd, sys
uri, source, words = sys.argv[1], sys.argv[2], sys.argv[3:]
R = 65536
h = nbd.NBD()
h.connect_uri(uri)
src = open(source, "rb").read()
while words:
    want = None
    word = words.pop(0)
    if word in ("EIO", "ENOSPC"):
        want, word = word, words.pop(0)
    said = word
    region = byte = None
    if word != "flush":
        region = int(words.pop(0))
        said += " %d" % region
    if word in ("write", "part", "fua", "read"):
        byte = words.pop(0)
        said += " " + byte
    got = None
    try:
        if word == "flush":
            h.flush()
        elif word == "write":
            h.pwrite(byte.encode() * R, region * R)
        elif word == "fua":
            h.pwrite(byte.encode() * R, region * R, nbd.CMD_FLAG_FUA)
        elif word == "part":
            h.pwrite(byte.encode() * 512, region * R + R // 2)
        elif word == "zero":
            h.zero(R, region * R)
        elif word == "trim":
            h.trim(R, region * R)
        elif word == "cache":
            h.cache(R, region * R)
        else:
            data = h.pread(R, region * R)
            if byte == "source":
                expected = src[region * R:(region + 1) * R]
            else:
                expected = byte.encode() * R
            if data != expected:
                sys.exit("%s: begins with %r" % (said, data[:16]))
    except nbd.Error as e:
        got = errno.errorcode[e.errnum]
    if got != want:
        sys.exit("%s: %s, and should be %s" % (said, got, want))
h.shutdown()
PY

client ()
{
  $python "$tmp/client.py" "$(uri clone)" "$tmp/src" "$@"
}

: "The destination's flush fails once, and works again."

# failed_flush REQUEST...: after regions 1 (durable) and 2 (dirty) have
# been written, the request fails with EIO.
failed_flush ()
{
  new_devices
  serve_devices
  start
  client write 1 a flush write 2 b
  fault dest.flush.once
  client EIO "$@"
  test ! -e "$faults/dest.flush.once"
  status_is '.mode == "ro" and .hydrated == 2 and .durable == 1'
  # Valid regions are read and written; no other region becomes valid.
  client read 1 a read 2 b read 3 source \
         write 1 c part 2 b read 1 c read 2 b \
         EIO write 3 d EIO part 3 d EIO zero 3 EIO trim 3 EIO cache 3 \
         trim 2 write 2 b zero 1 write 1 c read 3 source
  # The destination's flush works again, but proves nothing about region 2.
  client EIO flush EIO fua 2 b read 2 b
  status_is '.mode == "ro" and .hydrated == 2 and .durable == 1'
  # Hydration cannot go on either, even if it is told to.
  control POST /resume >/dev/null
  eventually status_is '.state == "failed"'
  status_is '.hydrated == 2'
  client read 2 b EIO flush
}

for kind in meta dest none all; do
  failed_flush flush
  power_cut $kind
  serve_devices
  start
  # Region 2 is not durable and reads as the source again.  Region 1 is, and
  # what was written to it and not flushed may be lost.
  status_is '.mode == "rw" and .hydrated == 1'
  client read 2 source read 3 source
  client read 1 c || { [ $kind != all ] && client read 1 a; }
  # A new start is the way out.
  client write 2 e flush write 3 f flush
  status_is '.mode == "rw" and .durable == 3'
  end
done

# A normal end must not commit what the failure forbids.
failed_flush flush
stop clone || :
kill9 devices
serve_devices
start
status_is '.hydrated == 1'
client read 1 c read 2 source
end

# FUA in a region that is durable must not hide the error from the next commit,
# as it does in servers that answer FUA with fdatasync.
failed_flush fua 1 a
end

: "The metadata cannot be written or flushed for a while."

for request in write flush; do
  for kind in meta dest none all; do
    new_devices
    serve_devices
    start commit-interval=1 hydration-rate=64K hydration-batch-size=64K
    client write 1 a flush
    fault meta.$request
    client write 2 b EIO flush
    status_is '.mode == "ro" and .hydrated >= 2 and .durable == 1'
    client read 1 a read 2 b read 3 source write 2 c part 2 c read 2 c \
           EIO write 3 d EIO part 3 d EIO zero 3 EIO trim 3 EIO fua 2 c \
           EIO flush
    control POST /resume >/dev/null
    eventually status_is '.state == "failed"'
    client read 2 c read 3 source
    if [ $kind = none ]; then   # the power is cut before it works again
      power_cut none
      serve_devices
      start
      client read 1 a read 2 source read 3 source
      end
      continue
    fi
    no_fault meta.$request
    # The periodic commit finds that it works, and hydration goes on by itself.
    eventually status_is '.mode == "rw" and .hydrated > 2'
    client read 1 a read 2 c write 3 d flush
    power_cut $kind
    serve_devices
    start
    client read 1 a read 2 c read 3 d read 15 source
    end
  done
done

: "A flush fails where all valid regions are durable."

new_devices
serve_devices
start
client write 1 a flush write 1 b
fault dest.flush.once
# Which writes were lost is not known, so no client's flush succeeds again.
client EIO flush EIO flush EIO fua 1 c EIO write 2 d read 1 c
status_is '.mode == "ro" and .durable == 1'
power_cut none
serve_devices
start
client read 1 a read 2 source write 2 d flush
end

: "The metadata fails in the last commit."

new_devices
serve_devices
start commit-interval=1
client write 1 a flush
fault meta.flush
control POST /resume >/dev/null
eventually status_is '.state == "failed" and .mode == "ro"'
client read 1 a read 15 source write 1 b EIO flush
no_fault meta.flush
eventually status_is '.mode == "rw" and .state == "complete"'
client flush
power_cut none
serve_devices
start
status_is '.state == "complete"'
client read 1 b read 15 source
end

: "The destination is full."

new_devices
serve_devices
start
client write 1 a flush
fault dest.write ENOSPC
client ENOSPC write 2 b ENOSPC part 2 b read 2 source read 1 a flush
status_is '.mode == "rw" and .hydrated == 1'
control POST /resume >/dev/null
eventually status_is '.state == "failed"'
status_is '.mode == "rw" and .hydrated == 1 and .hydrating == 0'
client read 1 a read 2 source read 15 source flush
no_fault dest.write
client write 2 c
status_is '.state == "failed"'
control POST /resume >/dev/null
wait_complete
client read 1 a read 2 c read 3 source
power_cut none
# Complete means that the destination can stand alone, even now.
{
  head -c 65536 "$tmp/src"
  head -c 65536 /dev/zero | tr '\0' a
  head -c 65536 /dev/zero | tr '\0' c
  tail -c +196609 "$tmp/src"
} >"$tmp/expected"
same "$tmp/dest" "$tmp/expected"
serve_devices
start
client read 1 a read 3 source read 15 source
end

: "A write fails in the middle of a batch."

# One region of a batch of hydration cannot be written.  Because some of its
# regions are valid the batch needs several writes.
new_devices
serve_devices
start hydration-batch-size=1M
client write 2 a write 5 b flush
fault dest.write EIO $((6 * 65536)) $((7 * 65536))
control POST /resume >/dev/null
eventually status_is '.state == "failed"'
status_is '.mode == "rw" and .hydrating == 0'
client read 2 a read 5 b read 6 source read 0 source read 15 source \
       EIO write 6 c write 2 d read 2 d flush
power_cut none
serve_devices
start
client read 0 source read 2 d read 5 b read 6 source read 15 source
control POST /resume >/dev/null
wait_complete
client read 0 source read 2 d read 5 b read 6 source
end

# A client's write of valid and invalid regions, of which the second part fails.
new_devices
serve_devices
start
client write 4 a flush
fault dest.write EIO $((5 * 65536)) $((6 * 65536))
cat >"$tmp/long.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pwrite(b"b" * (4 * 65536), 3 * 65536)
    sys.exit("the write should fail")
except nbd.Error:
    pass
h.shutdown()
PY
$python "$tmp/long.py" "$(uri clone)"
status_is '.mode == "rw"'
client read 3 b read 4 b read 5 source flush
no_fault dest.write
client part 5 c
power_cut all
serve_devices
start
client read 3 b read 4 b read 6 source
end

: "One client's request does not fail for another's error."

# Two clients want to write to one region.  The first owns it and is held in the
# destination; the second waits for it.  The first fails, the second is done.
cat >"$tmp/two.py" <<'PY'
import nbd, os, sys, time
uri, faults = sys.argv[1:]
R = 65536
a, b = nbd.NBD(), nbd.NBD()
for h in a, b:
    h.connect_uri(uri)

def wait(*handles, until):
    end = time.monotonic() + 60
    while not until():
        if time.monotonic() > end:
            sys.exit("timeout")
        for h in handles:
            h.poll(10)

open(faults + "/dest.write.hold", "w").close()
one = a.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"1" * R)), 7 * R)
wait(a, until=lambda: os.path.exists(faults + "/dest.write.held"))
two = b.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"2" * 512)), 7 * R)
end = time.monotonic() + 0.3  # the second arrives, and waits
while time.monotonic() < end:
    b.poll(10)
if b.aio_command_completed(two):
    sys.exit("the second did not wait")
with open(faults + "/dest.write.once", "w") as f:
    f.write("EIO")
os.unlink(faults + "/dest.write.hold")

def completed(h, cookie):
    return h.aio_peek_command_completed() == cookie
try:
    wait(a, b, until=lambda: completed(a, one))
    a.aio_command_completed(one)
    sys.exit("the first should fail")
except nbd.Error as e:
    if e.errnum != 5:
        raise
wait(b, until=lambda: completed(b, two))
b.aio_command_completed(two)  # raises where it failed
data = b.pread(R, 7 * R)
with open(sys.argv[0].replace("two.py", "src"), "rb") as f:
    f.seek(7 * R)
    src = f.read(R)
if data != b"2" * 512 + src[512:]:
    sys.exit("the region reads %r" % data[:16])
b.flush()
PY
new_devices
serve_devices
start
$python "$tmp/two.py" "$(uri clone)" "$faults"
status_is '.mode == "rw" and .durable == 1'
end

: "The metadata device fails, is full or read-only at the start."

# does_not_start WORD [METADATA]: one message, which matches WORD.
does_not_start ()
{
  local rc=0
  timeout 300 nbdkit -f -U "$tmp/refused.sock" "$plugin" "$tmp/src" \
          create=always region-size=64K \
          destination="nbd+unix:///dest?socket=$tmp/devices.sock" \
          metadata="${2:-nbd+unix:///meta?socket=$tmp/devices.sock}" \
          >"$tmp/refused.out" 2>&1 </dev/null || rc=$?
  cat "$tmp/refused.out"
  test $rc -eq 1
  test "$(wc -l <"$tmp/refused.out")" -eq 1
  grep -E -e "error: .*$1" "$tmp/refused.out"
  rm -f "$tmp/refused.sock"
}

for f in "meta.write EIO" "meta.write ENOSPC" "meta.flush EIO"; do
  new_devices
  serve_devices
  # shellcheck disable=SC2086
  fault $f
  does_not_start "metadata .*: cannot create it: "
  # A failed creation leaves no store, and does no harm.
  kill9 devices
  serve_devices
  start
  client read 0 source write 1 a flush
  # The first write after a normal end marks the store as in use.
  stop clone
  # shellcheck disable=SC2086
  fault $f
  does_not_start "metadata .*: cannot write: "
  kill9 devices
  serve_devices
  start
  client read 0 source read 1 a
  end
done

new_devices
serve_devices
serve readonly -r memory 1M
does_not_start "metadata .*read-only" "$(uri readonly)"
# The destination was not touched.
same "$tmp/dest" "$tmp/garbage"
