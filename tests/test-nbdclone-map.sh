#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone map shows each cell of the map of a running clone and of
# metadata, that its picture is well-formed XML, and that the numbers of the
# legend are those of the status.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)
meta=$tmp/dest.clone

# blocks: the rows before the legend, as one.
blocks () { sed '/^. durable: /,$d' "$tmp/out" | tr -d '\n'; }

# legend FILE: the legend of a picture, as STATE=BYTES in one line.  Fails if it
# is not XML.
legend ()
{
  $python - "$1" <<'PY'
import re, sys
import xml.etree.ElementTree as tree
svg = "{http://www.w3.org/2000/svg}"
root = tree.parse(sys.argv[1]).getroot()
assert root.tag == svg + "svg"
for text in root.iter(svg + "text"):
    m = re.match(r"([a-z ]+): (\d+) bytes \(", text.text)
    if m:
        print("%s=%s" % (m.group(1).replace(" ", "-"), m.group(2)), end=" ")
PY
}

# ---- metadata

# 65 regions, the last of them 1000 bytes.
make_disk "$tmp/src" 4M
head -c 1000 /dev/urandom >>"$tmp/src"
serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K hydration=off
qemu-io -f raw -c 'write 0 1M' -c 'write 2M 64k' -c 'write 4194304 1000' \
        -c flush "$(uri clone)"
valid=$(status .bytes_hydrated)
test "$valid" -eq $(((17 << 16) + 1000))
nbdclone_exits 4 map "$meta"
stop clone
nbdclone_exits 0 map "$meta"
a='################' b='................'
test "$(blocks)" = "$a$b#${b:1}$b#"
grep -q '^# durable: 1.1 MiB$' "$tmp/out"
nbdclone_exits 0 map --svg="$tmp/svg" "$meta"
test ! -s "$tmp/out"
test "$(legend "$tmp/svg")" = "durable=$valid dirty=0 \
invalid=$((4195304 - valid)) in-flight=0 bad=0 unknown=0 "
nbdclone_exits 4 map "$tmp/nothing"
nbdclone_exits 4 map --svg="$tmp/nothing/svg" "$meta"
nbdclone_exits 4 map "$tmp/src"
nbdclone_exits 2 map
nbdclone_exits 2 map --nonsense "$meta"
# Damaged metadata: nothing is known of the regions.
cp "$meta" "$tmp/damaged"
printf x | dd of="$tmp/damaged" bs=1 seek=8200 conv=notrunc status=none
"$nbdclone" check "$tmp/damaged" >"$tmp/out" || test $? -eq 1
grep -q 'of 65 regions is unknown' "$tmp/out"
nbdclone_exits 0 map "$tmp/damaged"
grep -q '^? unknown: 4 MiB$\|^? unknown: 4.0 MiB$' "$tmp/out"

# ---- a running clone

# cell OFFSET DURABLE DIRTY INVALID IN_FLIGHT BAD
cell ()
{
  printf '{"offset": %d, "length": %d, "durable": %d, "dirty": %d,
           "invalid": %d, "in_flight": %d, "bad": %d}' \
         "$1" $(($2 + $3 + $4)) "$2" "$3" "$4" "$5" "$6"
}
mkdir "$tmp/files"
cat >"$tmp/files/map.json" <<END
{"size": 24576, "region_size": 4096, "offset": 0, "length": 24576,
 "cell": 4096, "cells": [
 $(cell 0 4096 0 0 0 0), $(cell 4096 1096 3000 0 0 0),
 $(cell 8192 1096 0 3000 0 0), $(cell 12288 0 0 4096 4096 0),
 $(cell 16384 0 0 4096 0 0), $(cell 20480 0 0 4096 0 96)]}
END
server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
       "$tmp/fake.pid" files "$tmp/files"
nbdclone_exits 0 map "$tmp/fake.sock"
test "$(blocks)" = '#=--.!'
nbdclone_exits 0 map --svg "$tmp/svg" "$tmp/fake.sock"
test "$(legend "$tmp/svg")" = "durable=6288 dirty=3000 invalid=11096 \
in-flight=4096 bad=96 unknown=0 "
# No parts of a cell that exceed it, and no other objects.
sed 's/"durable": 4096/"durable": 8192/' "$tmp/files/map.json" >"$tmp/wrong"
cp "$tmp/wrong" "$tmp/files/map.json"
nbdclone_exits 4 map "$tmp/fake.sock"
echo '{"size": 5, "cells": []}' >"$tmp/files/map.json"
nbdclone_exits 4 map "$tmp/fake.sock"
# A clone without maps.
rm "$tmp/files/map.json"
nbdclone_exits 1 map "$tmp/fake.sock"

# A real clone: the legend says what /status says, also while it hydrates.
truncate -s 8M "$tmp/src"
make_disk "$tmp/data" 2M
dd if="$tmp/data" of="$tmp/src" conv=notrunc status=none
serve_clone "$tmp/src" destination="$tmp/real" hydration=off
$python - "$(uri clone)" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * (1 << 20), 1 << 20)
h.flush()
h.shutdown()
PY
"$nbdclone" map "$tmp/clone.ctl" >"$tmp/out"
grep -x '. durable: 1 MiB' "$tmp/out"
grep -x '. invalid: 7 MiB' "$tmp/out"
control POST /resume
wait_complete
"$nbdclone" map --svg "$tmp/real.svg" "$tmp/clone.ctl"
legend "$tmp/real.svg" | grep 'durable=8388608 '
stop clone
