#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that neither descriptors nor memory grow over 1,000 connections that
# are cut and made again, 32 at a time, with clients that read meanwhile.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M
serve src file "$tmp/src"
start_proxy net src
serve_clone "$(uri net)" destination="$tmp/dest" hydration=off \
            source-connections=32
$python "$srcdir/reconnects.py" "$tmp/net.proxy" "$(cat "$tmp/clone.pid")" \
        "$(uri clone)" "$tmp/src" "$(fewer 1000)"
control POST /resume
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
