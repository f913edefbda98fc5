#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that neither the number of descriptors nor memory grows over
# connections that are cut and made again, 32 at a time, while clients read:
# 1,000 with --all, else 200.

. "$(dirname "$0")/functions.sh"

n=$(long_or_short 1000 200)
is_all || left_to_all "four of five reconnections"
make_disk "$tmp/src" 4M
serve src file "$tmp/src"
start_proxy net src
serve_clone "$(uri net)" destination="$tmp/dest" hydration=off \
            source-connections=32
$python "$srcdir/reconnects.py" "$tmp/net.proxy" "$(cat "$tmp/clone.pid")" \
        "$(uri clone)" "$tmp/src" "$(fewer "$n")"
control POST /resume
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
