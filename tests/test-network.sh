#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the loss of a source is noticed when its host cannot be reached
# any more, because a network interface went down and no packet says so; and
# that the clone goes on when the interface is up again.  The two hosts are
# network namespaces: the test's own and another process's.

if [ -z "${CLONE_IN_NAMESPACE:-}" ] && unshare -n true 2>/dev/null; then
  CLONE_IN_NAMESPACE=1 exec unshare -n bash "$0"
fi

. "$(dirname "$0")/functions.sh"

requires test -n "${CLONE_IN_NAMESPACE:-}"
requires_command ip nsenter qemu-io qemu-nbd
unshare -n sleep 1000 &
host=$!
pids+=("$host")
on_host () { nsenter -t "$host" -n "$@"; }
network_of () { readlink "/proc/$1/ns/net"; }
is_apart () { [ "$(network_of "$host")" != "$(network_of self)" ]; }
eventually is_apart
ip link set lo up
requires ip link add near type veth peer name far netns "$host"
ip address add 192.168.77.1/24 dev near
ip link set near up
on_host ip address add 192.168.77.2/24 dev far
on_host ip link set far up

make_disk "$tmp/src" 8M
# The server is qemu-nbd, because nbdkit 1.32 may abort when it answers a client
# that has gone.  on_host is not used: $! must be the server, not a shell that
# waits for it.
nsenter -t "$host" -n qemu-nbd -t -r -f raw -e 16 -b 192.168.77.2 \
        "$tmp/src" >"$tmp/src.log" 2>&1 &
pids+=("$!")
eventually nbdinfo --size nbd://192.168.77.2/
serve_clone nbd://192.168.77.2/ destination="$tmp/dest" source-timeout=2 \
            hydration-rate=64K hydration-batch-size=64K
has_begun () { status_is '.hydrated >= 16'; }
eventually has_begun

on_host ip link set far down
is_lost () { status_is '.state == "waiting" and .source.connected == false'; }
eventually is_lost
qemu-io -f raw -c 'read 0 64k' -c 'write -P 1 7M 64k' -c flush "$(uri clone)"
fails qemu-io -f raw -r -c 'read 6M 64k' "$(uri clone)"
is_lost

on_host ip link set far up
# The log, because the status has no source any more when everything is copied.
is_back () { grep -q ' is back after ' "$tmp/clone.log"; }
eventually is_back
set_settings '{"hydration-rate": 0}'
wait_complete
stop clone
printf '%65536s' | tr ' ' '\1' |
  dd of="$tmp/src" bs=64K seek=112 conv=notrunc status=none
same "$tmp/dest" "$tmp/src"
grep -c ' is lost: ' "$tmp/clone.log" | grep -qx 1
grep -c ' is back after ' "$tmp/clone.log" | grep -qx 1
