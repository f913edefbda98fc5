#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source may be an NBD server that requires TLS, with the
# parameters in the URI.

. "$(dirname "$0")/functions.sh"

nbdkit --dump-config | grep -qx tls=yes || skip "nbdkit was built without TLS"
make_disk "$tmp/src" 4M
printf 'alice:%s\n' "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" \
       >"$tmp/psk"
serve src --tls=require --tls-psk="$tmp/psk" file "$tmp/src"
uri="nbds+unix://alice@/?socket=$tmp/src.sock&tls-psk-file=$tmp/psk"
requires nbdinfo "$uri"

refused . "$(uri src)" destination="$tmp/dest"
serve_clone "$uri" destination="$tmp/dest"
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
