#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that with copy-on-read=true each byte that clients read is read from
# the source once, is kept, becomes durable, and completes the clone; that a
# write that overtakes a slow read does not wait for the read and is not
# overwritten by its copy (nbdkit's cow filter with cow-on-read loses such a
# write); and that a read does not fail because its data cannot be kept.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
make_disk "$tmp/src" 8M
fallocate -p -o 2M -l 1M "$tmp/src" || skip "no holes in this file system"
truncate -s $(((8 << 20) + 1536)) "$tmp/src"
serve_pausable src file "$tmp/src"

# Bytes that were read from the source since its server started.
source_bytes ()
{
  $python - "$tmp/src.requests" <<'PY'
import re, sys
print(sum(int(n, 0) for n in re.findall(r" Read id=\d+ offset=\S+ count=(\S+)",
                                        open(sys.argv[1]).read())))
PY
}

for region_size in 4K 256K; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$(uri src)" destination="$tmp/dest" hydration=off \
              region-size=$region_size copy-on-read=true
  : >"$tmp/src.requests" # forget the fingerprint's reads

  # The regions that were read are kept, and no others.
  qemu-io -r -f raw -c 'read 1000 10' -c 'read 1M 1M' "$(uri clone)"
  status_is ".hydrated * .region_size <= $(((1 << 20) + (256 << 10)))"
  # After a flush they survive a crash.
  qemu-io -f raw -c 'flush' "$(uri clone)"
  status_is '.durable == .hydrated'
  kill9 clone
  serve_clone "$(uri src)" destination="$tmp/dest" hydration=off \
              copy-on-read=true
  hold src
  qemu-io -r -f raw -c 'read 1000 10' -c 'read 1M 1M' "$(uri clone)"
  let_go src

  # Reading the rest, in requests of odd sizes, completes the clone.
  $python - "$(uri clone)" "$tmp/src" <<'PY'
import nbd, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
disk = open(sys.argv[2], "rb").read()
r = random.Random(1)
pos = 0
while pos < len(disk):
    n = min(r.choice([1, 512, 700, 4096, 65536, 300000, 1 << 20]),
            len(disk) - pos)
    if h.pread(n, pos) != disk[pos:pos + n]:
        sys.exit("wrong bytes at %d" % pos)
    pos += n
h.flush()
h.shutdown()
PY
  wait_complete
  # This includes the reads for the fingerprint at the restart.
  test "$(source_bytes)" -le $(((8 << 20) + 1536 + (128 << 10)))
  stop clone
  same "$tmp/dest" "$tmp/src"
  # The hole did not become zeroes.
  test "$(stat -c %b "$tmp/dest")" -lt $(((8 << 20) / 512))
done

# The source holds a read while a client writes, zeroes and trims the same
# regions, and answers it then.
for region_size in 4K 1M; do
  rm -f "$tmp/dest" "$tmp/dest.clone"
  serve_clone "$(uri src)" destination="$tmp/dest" hydration=off \
              region-size=$region_size copy-on-read=true
  cp "$tmp/src" "$tmp/model"
  hold src
  : >"$tmp/src.requests"
  qemu-io -r -f raw -c 'read 0 8M' "$(uri clone)" >"$tmp/read.log" 2>&1 &
  reader=$!
  pids+=("$reader")
  read_arrived () { [ "$(requests src Read)" -ge 1 ]; }
  eventually read_arrived
  for f in "$(uri clone)" "$tmp/model"; do
    qemu-io -f raw -d unmap -c 'write -P 1 0 1M' -c 'write -z 3M 2M' \
            -c 'discard 6M 1M' "$f"
  done
  kill -0 "$reader"
  let_go src
  wait "$reader"
  status_is ".hydrated * .region_size >= $((8 << 20))"
  qemu-io -f raw -c 'flush' "$(uri clone)"
  export_to clone "$tmp/out"
  same "$tmp/out" "$tmp/model"
  control POST /resume
  wait_complete
  stop clone
  same "$tmp/dest" "$tmp/model"
done

# The destination is full: the client's reads succeed.
mkdir "$tmp/small"
if mount -t tmpfs -o size=3m tmpfs "$tmp/small"; then
  at_exit () { umount "$tmp/small"; }
  serve_clone "$(uri src)" destination="$tmp/small/dest" hydration=off \
              metadata="$tmp/small.clone" copy-on-read=true
  export_to clone "$tmp/out"
  same "$tmp/out" "$tmp/src"
  status_is '.hydrated < .regions and .mode == "rw"'
  stop clone
fi
