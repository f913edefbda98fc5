# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""P7, P10 and P11: counts, which do not depend on the clock.  nbdkit's log
filter counts the requests that a server gets.
"""

import os
import re

from experiment import Experiment
from figures import Line, at_most
from lab import GIB, KIB, MIB, TIB, fio

REGION = 4 * KIB


def requests(log, name):
    """The (offset, count) of each request of this name in the log."""
    pattern = re.compile(
        rf" {name} id=\d+(?: offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))?"
        r"(?! return)")
    with open(log) as f:
        for line in f:
            match = pattern.search(line)
            if match and " return=" not in line:
                yield tuple(int(x, 16) for x in match.groups() if x)


def p7(lab):
    """metadata commits for each client's flush"""
    disk = lab.disk("small", (64 if lab.quick else 256) * MIB)
    line = Line("16 clients, each write + flush", "", "client flushes",
                at_most(0.25))

    def clone():
        log, meta = lab.fresh(".log"), lab.fresh(".meta")
        destination = lab.fresh(".raw")
        with open(meta, "wb") as f:
            f.truncate(MIB)
        with lab.nbdkit("--filter=log", "file", meta, f"logfile={log}") as m:
            with lab.clone(disk, destination, f"metadata={m.uri}",
                           "hydration=off") as server:
                before = len(list(requests(log, "Flush")))
                job = fio(lab, server, "--rw=randwrite", "--iodepth=1",
                          "--fsync=1", "--numjobs=16", "--size=4m",
                          "--offset_increment=4m", "--number_ios=200")
                line.clone.append(len(list(requests(log, "Flush"))) - before)
                line.peer.append(job["sync"]["total_ios"])
        lab.remove(destination, meta)

    yield Experiment([line], [clone])


def p10(lab):
    """memory, in bits for each region, beyond a constant"""
    small, large = (GIB, 64 * GIB) if lab.quick else (64 * GIB, TIB)
    line = Line("1 TiB - 64 GiB, all valid", "bits", "one region", at_most(2.5))

    def memory(size):
        destination = lab.fresh(".raw")
        with lab.nbdkit("null", str(size)) as source:
            with lab.clone(source, destination,
                           f"region-size={REGION}") as clone:
                clone.wait_complete()
                result = clone.memory()
        lab.remove(destination)
        return result

    def clone():
        difference = memory(large) - memory(small)
        line.clone.append(difference * 8 / ((large - small) // REGION))
        line.peer.append(1)

    yield Experiment([line], [clone], 3)


def p11(lab):
    """bytes read again from the source after a clean restart half way"""
    size = (256 * MIB) if lab.quick else GIB
    disk = lab.disk(f"stream-{size}", size)
    line = Line("restart half way, no RTT", "KiB", "the whole disk",
                at_most(0.01))

    def blocks(log, begin):
        with open(log, "rb") as f:
            f.seek(begin)
            part = log + ".part"
            with open(part, "wb") as p:
                p.write(f.read())
        seen = set()
        for offset, count in requests(part, "Read"):
            seen.update(range(offset // REGION,
                              (offset + count - 1) // REGION + 1))
        return seen

    def clone():
        log, destination = lab.fresh(".log"), lab.fresh(".raw")
        with lab.nbdkit("--filter=log", "file", disk,
                        f"logfile={log}") as source:
            with lab.clone(source, destination) as server:
                server.wait_hydrated(0.5)
            first_ends = os.path.getsize(log)
            first = blocks(log, 0)
            with lab.clone(source, destination) as server:
                server.wait_complete()
            again = first & blocks(log, first_ends)
        lab.remove(destination)
        line.clone.append(len(again) * REGION / KIB)
        line.peer.append(size / KIB)

    yield Experiment([line], [clone])
