#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that sectors which the source cannot read stop nothing else.  The rest
# is hydrated and becomes durable.  The status lists the bad ranges, to the
# region.  They are tried again, with pauses that grow.  A client's read of a
# bad range fails after one attempt.  A client's write heals a bad range, and so
# does a source that can read it again.  The log has one message for each range,
# not one for each attempt.

. "$(dirname "$0")/functions.sh"

requires nbdkit eval --version
requires nbdkit --filter=error null --version
requires "$python" -c 'import nbd'
make_disk "$tmp/src" 8M
cp "$tmp/src" "$tmp/model"

# A source that cannot read 512 bytes while the file $tmp/bad1 exists, and 8 KiB
# elsewhere while $tmp/bad2 exists.  $tmp/reads has the offset and length of
# each read.
bad1=$(((3 << 20) + 70 * 1024 + 512))
bad2=$(((5 << 20) + 64 * 1024))
region1=$(((3 << 20) + 68 * 1024))
cat >"$tmp/pread" <<EOS
count=\$1 start=\$2 end=\$((\$1 + \$2))
# is_bad FILE OFFSET LENGTH
is_bad ()
{
  [ -e "\$1" ] && [ \$start -lt \$((\$2 + \$3)) ] && [ \$end -gt \$2 ]
}
echo "\$start \$count" >>"$tmp/reads"
if is_bad "$tmp/bad1" $bad1 512 || is_bad "$tmp/bad2" $bad2 8192; then
  echo 'EIO a bad sector' >&2
  exit 1
fi
exec dd if="$tmp/src" iflag=skip_bytes,count_bytes bs=1M \
     skip=\$start count=\$count status=none
EOS
serve src eval get_size="echo 8M" can_multi_conn='exit 0' \
      thread_model='echo parallel' pread="sh $tmp/pread \$3 \$4"

# reads_of OFFSET LENGTH: how many reads of the source have touched this range.
reads_of ()
{
  awk -v start="$1" -v end=$(($1 + $2)) \
      '$1 < end && $1 + $2 > start { n++ } END { print n + 0 }' "$tmp/reads"
}

bad_is ()
{
  status_is ".bad == $1"
}

messages ()
{
  grep -c -e "$1" "$tmp/clone.log" || :
}

args=("$(uri src)" destination="$tmp/dest" region-size=4K)
serve_clone "${args[@]}" hydration=off
bad_is '{"regions": 0, "bytes": 0, "ranges": []}'
touch "$tmp/bad1" "$tmp/bad2"
control POST /resume >/dev/null
both="{\"regions\": 3, \"bytes\": 12288,
       \"ranges\": [[$region1, 4096], [$bad2, 8192]]}"
eventually bad_is "$both"
eventually status_is '.durable == 2045 and .hydrating == 0'
status_is '.state == "hydrating" and .mode == "rw" and .hydrated == 2045'
test "$(messages 'source .*: cannot read .*bytes at offset')" -eq 2
test "$(messages 'error:')" -eq 2

# The ranges are tried again after 1, 2, 4... seconds.  The first of n rounds
# may come at once, so n rounds take 2^(n-1) - 1 seconds or more.
: >"$tmp/reads"
SECONDS=0
sleep 4
rounds=$(reads_of $region1 4096)
seconds=$((SECONDS + 1))
test $rounds -le 1 || test $((1 << (rounds - 1))) -le $((seconds + 2))
test "$(wc -l <"$tmp/reads")" -le $((3 * (rounds + 1)))
bad_is "$both"
test "$(messages 'error:')" -eq 2

# A client's read fails where the range is bad, and nowhere else.
cat >"$tmp/client.py" <<'PY'
import errno, nbd, sys
uri, source, bad1, bad2 = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
h = nbd.NBD()
h.connect_uri(uri)
src = open(source, "rb").read()
for offset, count in ((bad1, 512), (bad2 + 4096, 1000), (bad1 - 65536, 131072)):
    try:
        h.pread(count, offset)
        sys.exit("a read of a bad range succeeded: %d" % offset)
    except nbd.Error as e:
        if e.errnum != errno.EIO:
            raise
for offset, count in ((0, 1 << 20), (bad1 - 65536, 60000), (bad2 + 8192, 4096),
                      (bad2 - 100000, 100000), (7 << 20, 1 << 20)):
    if h.pread(count, offset) != src[offset:offset + count]:
        sys.exit("wrong bytes at %d" % offset)
h.shutdown()
PY
: >"$tmp/reads"
$python "$tmp/client.py" "$(uri clone)" "$tmp/src" $bad1 $bad2
test "$(grep -c "^$bad1 512\$" "$tmp/reads")" -eq 1
test "$(grep -c "^$((bad2 + 4096)) 1000\$" "$tmp/reads")" -eq 1

# Bad ranges are not remembered over a restart; hydrated regions are durable.
kill9 clone
serve_clone "${args[@]}" hydration=off
status_is '.hydrated == 2045 and .bad.regions == 0'
$python "$tmp/client.py" "$(uri clone)" "$tmp/src" $bad1 $bad2
: >"$tmp/reads"
control POST /resume >/dev/null
eventually bad_is "$both"
fails grep -v -E "^($region1 4096|$bad2 (4096|8192)|$((bad2 + 4096)) 4096)\$" \
      "$tmp/reads"

# A client writes to a bad range.
for disk in "$(uri clone)" "$tmp/model"; do
  qemu-io -f raw -c "write -P 7 $region1 4k" "$disk"
done
eventually bad_is "{\"regions\": 2, \"bytes\": 8192,
                    \"ranges\": [[$bad2, 8192]]}"
test -e "$tmp/bad1"
# The source is repaired.
rm "$tmp/bad2"
wait_complete
bad_is '{"regions": 0, "bytes": 0, "ranges": []}'
test "$(messages 'all unreadable ranges of the source have been read')" -eq 1
stop clone
same "$tmp/dest" "$tmp/model"

# All reads fail for a while, in pieces of a region: the log is not flooded.
serve broken --filter=error file "$tmp/src" error-pread-rate=100% \
      error-file="$tmp/inject"
rm "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
serve_clone "$(uri broken)" destination="$tmp/dest" region-size=1M \
            hydration-batch-size=64K hydration=off
touch "$tmp/inject"
control POST /resume >/dev/null
eventually bad_is '{"regions": 8, "bytes": 8388608,
                    "ranges": [[0, 8388608]]}'
eventually grep -q 'source .*: 120 more reads have failed' "$tmp/clone.log"
test "$(messages 'error:')" -eq 9
rm "$tmp/inject"
control POST /resume >/dev/null
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
