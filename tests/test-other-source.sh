#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source that comes back with another size or content is never
# used: the state is "failed", the message says what differs, reads of invalid
# regions fail, and valid data is read and written as always.  When the right
# source is back, the clone goes on.  And a sample of the content that cannot be
# read does not make a source another one.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
make_disk "$tmp/src" 4M
make_disk "$tmp/content" 4M 2
make_disk "$tmp/larger" 5M
head -c 3M "$tmp/src" >"$tmp/smaller"

has_failed () { status_is '.state == "failed"'; }
said () { grep -q "$1" "$tmp/clone.log"; }

for other in content larger smaller; do
  case $other in
    content) says='differs' ;;
    larger) says='5242880 bytes' ;;
    smaller) says='3145728 bytes' ;;
  esac
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
  cp "$tmp/src" "$tmp/model"
  serve src file "$tmp/src"
  serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K \
              hydration-rate=64K hydration-batch-size=64K
  for f in "$(uri clone)" "$tmp/model"; do
    qemu-io -f raw -c 'write -P 1 1M 1M' -c flush "$f"
  done
  kill9 src
  serve src file "$tmp/$other"
  eventually has_failed
  eventually said "source.* came back and .*$says"

  fails qemu-io -f raw -c 'read 3M 64k' "$(uri clone)"
  for f in "$(uri clone)" "$tmp/model"; do
    qemu-io -f raw -c 'read -P 1 1M 1M' -c 'write -P 2 2M 128k' -c flush "$f"
  done
  timeout 60 nbdinfo --map "$(uri clone)" >"$tmp/map"
  status_is '.mode == "rw" and .state == "failed"'
  test "$(grep -c "came back and " "$tmp/clone.log")" -eq 1

  if [ $other = content ]; then
    # The clone looks again every ten seconds.
    kill9 src
    serve src file "$tmp/src"
    set_settings '{"hydration-rate": 0}'
    eventually status_is '.state == "complete"'
    stop clone
  else
    # No byte of the other source was copied.
    stop clone
    kill9 src
    serve src file "$tmp/src"
    serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K
    wait_complete
    stop clone
  fi
  # nbdkit 1.32 may abort when a client disconnects with a reply on its way.
  kill9 src
  same "$tmp/dest" "$tmp/model"
done

# One sample of the content that cannot be read says nothing about the source:
# it comes back, and another disk is refused all the same.
rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
cp "$tmp/src" "$tmp/served"
cp "$tmp/src" "$tmp/model"
serve_device dev "$tmp/served"
serve_clone "$(device dev)" destination="$tmp/dest" region-size=64K \
            hydration=off
bad=$(((4 << 20) / 32 * 20))
kill9 dev
fault dev read EIO $bad $((bad + 4096))
serve_device dev "$tmp/served"
is_back () { said 'source [^ ]* is back after '; }
eventually is_back
qemu-io -f raw -r -c 'read 1M 64k' "$(uri clone)"
fails qemu-io -f raw -r -c "read $bad 4k" "$(uri clone)"
kill9 dev
cat "$tmp/content" >"$tmp/served"
serve_device dev "$tmp/served"
eventually said "source.* came back and .*differs"
fails qemu-io -f raw -r -c 'read 2M 64k' "$(uri clone)"
kill9 dev
no_fault dev read
cat "$tmp/src" >"$tmp/served"
serve_device dev "$tmp/served"
control POST /resume >/dev/null
eventually status_is '.state == "complete"'
stop clone
same "$tmp/dest" "$tmp/src"
