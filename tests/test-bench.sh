#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that bench/run knows the rows P1 to P11 and P14, and no others, and that it
# judges correctly which lines of the table hold.

. "$(dirname "$0")/functions.sh"

bench=$srcdir/../bench
requires "$python" -c 'import statistics'

"$bench/run" --list | cut -d' ' -f1 >"$tmp/rows"
{ seq -f P%g 11; echo P14; } | cmp - "$tmp/rows"

fails "$python" -B "$bench/bench.py" P12 2>"$tmp/error"
grep P12 "$tmp/error"

# Faster is a larger ratio, and slower is a larger ratio of latencies.
PYTHONPATH=$bench "$python" -B - <<'PY'
from figures import Line, at_least, at_most

def line(unit, limit, clone, peer):
    l = Line("a line", unit, "peer", limit)
    l.clone, l.peer = clone, peer
    return l

fast = line("s", at_least(2), [1, 9, 1], [2, 2, 2])
assert fast.ratio() == 2 and fast.holds()
slow = line("s", at_least(1), [2, 2, 0], [1, 1, 1])
assert slow.ratio() == 0.5 and not slow.holds()
rate = line("k/s", at_least(0.95), [94], [100])
assert rate.ratio() == 0.94 and not rate.holds()
late = line("ms", at_most(1.5), [15], [10])
assert late.ratio() == 1.5 and late.holds()
late = line("ms", at_most(1.5), [16], [10])
assert not late.holds()
assert line("s", None, [1], [1]).holds() is None
PY
