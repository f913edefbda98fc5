# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""P2, P8 and P9: the time to copy a whole disk.

On both sides the time begins when the command is started.  It ends when
everything is copied, but not necessarily durable: for the clone when every
region is valid, for nbdcopy when it exits, for block-stream when its job has
completed.

Lines named "durable" come from the same runs of the clone, until its state is
"complete", and are compared with peers that flush their copy.  They depend more
on the disk than on the programs, so there is no limit for them.
"""

import time

import qemu
from experiment import Experiment
from figures import Line, at_least
from lab import GIB, MIB, TIB


def clone_seconds(lab, source):
    """Seconds until every region is valid, and until every one is durable."""
    destination = lab.fresh(".raw")
    with lab.clone(source, destination) as clone:
        clone.wait_hydrated()
        copied = time.monotonic() - clone.begun
        clone.wait_complete()
        durable = time.monotonic() - clone.begun
    lab.remove(destination)
    return copied, durable


def nbdcopy_seconds(lab, source, *args):
    destination = lab.fresh(".raw")
    seconds = lab.seconds("nbdcopy", *args, source.uri, destination)
    lab.remove(destination)
    return seconds


def against_nbdcopy(lab, name, disk, rtt, limit, runs=5):
    copied = Line(name, "s", "nbdcopy", limit)
    durable = Line(name + ", durable", "s", "nbdcopy --flush", None)

    with lab.source(disk, rtt) as source:
        def clone():
            a, b = clone_seconds(lab, source)
            copied.clone.append(a)
            durable.clone.append(b)

        def nbdcopy():
            copied.peer.append(nbdcopy_seconds(lab, source))

        def nbdcopy_flush():
            durable.peer.append(nbdcopy_seconds(lab, source, "--flush"))

        yield Experiment([copied, durable], [clone, nbdcopy, nbdcopy_flush],
                         runs)


def p2(lab):
    """full hydration, NBD source to file, against nbdcopy"""
    large, small = (256 * MIB, 64 * MIB) if lab.quick else (2 * GIB, 256 * MIB)
    yield from against_nbdcopy(lab, size_name(large) + ", no RTT",
                               lab.disk("large", large), 0, at_least(1))
    for rtt in 1, 10, 50:
        yield from against_nbdcopy(lab, f"{size_name(small)}, {rtt} ms RTT",
                                   lab.disk("small", small), rtt,
                                   at_least(0.9))


def pieces(size, data):
    """The (offset, length) of evenly spaced pieces of 1 MiB.

    data: bytes in all pieces together
    """
    n = data // MIB
    return [(i * (size // n), MIB) for i in range(n)]


def p8(lab):
    """sparse disks, against nbdcopy to a sparse file"""
    few = 16 if lab.quick else 64
    many = 64 if lab.quick else 1024
    sparse = lab.disk("sparse-4G", 4 * GIB, pieces(4 * GIB, few * MIB))
    yield from against_nbdcopy(
        lab, f"4 GiB, {few} MiB of data, 10 ms RTT", sparse, 10, at_least(1))
    sparse = lab.disk("sparse-1T", TIB, pieces(TIB, many * MIB))
    yield from against_nbdcopy(
        lab, f"1 TiB, {size_name(many * MIB)} of data, no RTT", sparse, 0,
        at_least(1))


def against_block_stream(lab, size, rtt, limit, runs):
    name = f"{size_name(size)}, {f'{rtt} ms' if rtt else 'no'} RTT"
    copied = Line(name, "s", "block-stream", limit)
    durable = Line(name + ", durable", "s", "block-stream", None)

    with lab.source(lab.disk(f"stream-{size}", size), rtt) as source:
        def clone():
            a, b = clone_seconds(lab, source)
            copied.clone.append(a)
            durable.clone.append(b)

        def block_stream():
            a, b = qemu.stream(lab, source, size)
            copied.peer.append(a)
            durable.peer.append(b)

        yield Experiment([copied, durable], [clone, block_stream], runs)


def p9(lab):
    """streaming to completion, against QEMU's block-stream"""
    large, small = (128 * MIB, 16 * MIB) if lab.quick else (GIB, 256 * MIB)
    yield from against_block_stream(lab, large, 0, at_least(2), 5)
    yield from against_block_stream(lab, small, 10, at_least(25), 3)


def size_name(size):
    return f"{size // GIB} GiB" if size % GIB == 0 else f"{size // MIB} MiB"
