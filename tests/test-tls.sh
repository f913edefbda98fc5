#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source may be an NBD server that requires TLS, with its
# parameters in the URI; and that a source that comes back with other keys, or
# without TLS, counts as lost.

. "$(dirname "$0")/functions.sh"

nbdkit --dump-config | grep -qx tls=yes || skip "nbdkit was built without TLS"
make_disk "$tmp/src" 4M
make_key ()
{
  printf 'alice:%s\n' \
         "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" >"$1"
}
make_key "$tmp/psk"
make_key "$tmp/other"
serve src --tls=require --tls-psk="$tmp/psk" file "$tmp/src"
uri="nbds+unix://alice@/?socket=$tmp/src.sock&tls-psk-file=$tmp/psk"
requires nbdinfo "$uri"

refused . "$(uri src)" destination="$tmp/dest"
serve_clone "$uri" destination="$tmp/dest"
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"

rm "$tmp/dest" "$tmp/dest.clone"
serve_clone "$uri" destination="$tmp/dest" hydration-rate=64K \
            hydration-batch-size=64K
is_waiting () { status_is '.state == "waiting"'; }
for other in "--tls=require --tls-psk=$tmp/other" --tls=off; do
  kill9 src
  : >"$tmp/tries"
  # shellcheck disable=SC2086
  serve src --filter=log $other file "$tmp/src" logfile="$tmp/tries"
  eventually is_waiting
  # Long enough for a few attempts.
  for i in 1 2 3; do sleep 0.3; is_waiting; done
  fails grep " Read id=" "$tmp/tries"
done
kill9 src
serve src --tls=require --tls-psk="$tmp/psk" file "$tmp/src"
set_settings '{"hydration-rate": 0}'
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
