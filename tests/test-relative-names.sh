#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that NBD URIs may name sockets and keys relative to the directory in
# which nbdkit is started, also when nbdkit has gone to the background, and so
# to the root directory: the servers of source, destination and metadata are
# killed and started again, and the clone finds them.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M
truncate -s 4M "$tmp/dest"
truncate -s 1M "$tmp/meta"

scheme=nbd query=
tls_args=(--tls=off)
if nbdkit --dump-config | grep -qx tls=yes; then
  printf 'alice:%s\n' \
         "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" \
         >"$tmp/psk"
  scheme=nbds query='&tls-psk-file=psk'
  tls_args=(--tls=require --tls-psk="$tmp/psk")
fi

start () { serve "$1" "${tls_args[@]}" file "$tmp/$1"; }
relative () { echo "$scheme+unix://alice@/?socket=$1.sock$query"; }

start src
start dest
start meta
cd "$tmp"
nbdkit -P clone.pid -U clone.sock "$plugin" "$(relative src)" \
       destination="$(relative dest)" metadata="$(relative meta)" \
       hydration=off control=clone.ctl
cd /
eventually test -s "$tmp/clone.pid"
daemon=$(cat "$tmp/clone.pid")
at_exit () { kill -9 "$daemon" 2>/dev/null; }

kill9 src
eventually status_is '.source.connected | not'
start src
eventually status_is '.source.connected'

kill9 dest
eventually status_is '.mode == "fail"'
start dest
eventually status_is '.mode == "rw"'

kill9 meta
start meta
# Hydration needs all three.
control POST /resume
wait_complete
kill -TERM "$daemon"
eventually has_ended "$daemon"
same "$tmp/dest" "$tmp/src"
