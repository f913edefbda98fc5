# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""P14: block status of a fragmented clone, and a copy that uses it."""

import os
import random

from experiment import Experiment
from figures import Line, at_most
from lab import GIB, KIB, MIB

PIECE = 64 * KIB
BLOCK = 4 * KIB


def fragmented_disk(lab, size):
    """Data and holes in turns."""
    return lab.disk("fragmented", size,
                    [(at, PIECE) for at in range(0, size, 2 * PIECE)])


def scatter(lab, server, size, writes):
    """Write so many blocks at random places, the same in each run."""
    blocks = random.Random(14).sample(range(size // BLOCK), writes)
    commands = lab.fresh(".qemu-io")
    with open(commands, "w") as f:
        for block in blocks:
            f.write(f"aio_write -q -P 14 {block * BLOCK} {BLOCK}\n")
        f.write("aio_flush\n")
    with open(commands) as f:
        lab.run("qemu-io", "-f", "raw", server.uri, stdin=f)
    os.unlink(commands)


def fragmented_clone(lab, size, writes, rtt):
    """The figures of a clone whose source has this RTT, in milliseconds."""
    limit = at_most(3)
    where = f", {rtt} ms RTT" if rtt else ""
    status = Line("nbdinfo --map" + where, "s", "the source", limit,
                  is_speed=False)
    copy = Line("nbdcopy to null:" + where, "s", "the source", limit,
                is_speed=False)
    destination = lab.fresh(".raw")

    with lab.source(fragmented_disk(lab, size), rtt) as source, \
         lab.clone(source, destination, "hydration=off") as clone:
        scatter(lab, clone, size, writes)

        def map_of(figures, server):
            figures.append(lab.seconds("nbdinfo", "--map", server.uri))

        def copy_of(figures, server):
            figures.append(lab.seconds("nbdcopy", server.uri, "null:"))

        def map_clone():
            # Not a kept answer: the figure is that of the first question.
            scatter(lab, clone, size, 1)
            map_of(status.clone, clone)

        def map_source():
            map_of(status.peer, source)

        def copy_clone():
            copy_of(copy.clone, clone)

        def copy_source():
            copy_of(copy.peer, source)

        yield Experiment([status, copy],
                         [map_clone, map_source, copy_clone, copy_source])
    lab.remove(destination)


def p14(lab):
    """block status of a half valid, fragmented clone, against its source"""
    size = 256 * MIB if lab.quick else 4 * GIB
    writes = 1250 if lab.quick else 20000
    for rtt in 0, 10:
        yield from fragmented_clone(lab, size, writes, rtt)
