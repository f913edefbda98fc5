# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""P1, P3 and P4: small random requests, 16 in flight, by fio's nbd engine."""

from experiment import Experiment
from figures import Line, at_least
from lab import MIB, fio, have_memory, settle

DEEP = "--iodepth=16"


def rate(job, direction):
    """Thousands of requests a second."""
    return job[direction]["iops"] / 1000


def random_for(lab, server, direction, seconds):
    """The rate of random requests all over the disk."""
    job = fio(lab, server, f"--rw=rand{direction}", DEEP, "--time_based",
              f"--runtime={1 if lab.quick else seconds}", "--norandommap")
    return rate(job, direction)


def complete_clone(lab, disk):
    """Make a complete clone, and return its destination."""
    destination = lab.fresh(".raw")
    with lab.clone(disk, destination) as clone:
        clone.wait_complete()
    return destination


def p1(lab):
    """hydrated 4K random requests, against nbdkit file on that destination"""
    disk = lab.disk("small", (64 if lab.quick else 256) * MIB)
    destination = complete_clone(lab, disk)

    for direction in "read", "write":
        yield one_direction(lab, disk, destination, direction)
    lab.remove(destination)


def one_direction(lab, disk, destination, direction):
    line = Line(f"random {direction}", "k/s", "nbdkit file", at_least(0.95))

    def clone():
        settle(destination)
        with lab.clone(disk, destination) as server:
            line.clone.append(random_for(lab, server, direction, 4))

    def nbdkit_file():
        settle(destination)
        with lab.nbdkit("file", destination) as server:
            line.peer.append(random_for(lab, server, direction, 4))

    return Experiment([line], [clone, nbdkit_file], 7)


def p3(lab):
    """unhydrated 4K random reads, against the nbdkit nbd proxy"""
    disk = lab.disk("small", (64 if lab.quick else 256) * MIB)

    for rtt, limit in (0, at_least(2)), (10, at_least(1)):
        line = Line(f"{rtt} ms RTT" if rtt else "no RTT", "k/s", "nbdkit nbd",
                    limit)
        with lab.source(disk, rtt) as source:
            def clone():
                destination = lab.fresh(".raw")
                with lab.clone(source, destination, "hydration=off") as server:
                    line.clone.append(random_for(lab, server, "read", 4))
                lab.remove(destination)

            def nbdkit_nbd():
                with lab.nbdkit("nbd", f"uri={source.uri}") as server:
                    line.peer.append(random_for(lab, server, "read", 4))

            yield Experiment([line], [clone, nbdkit_nbd])


def p4(lab):
    """first 4K-aligned random writes, against those on a complete clone"""
    size = (64 if lab.quick else 256) * MIB
    disk = lab.disk("small", size)
    line = Line("source at 10 ms RTT", "k/s", "complete clone", at_least(0.8))
    cached = Line("source at 10 ms RTT, page cache", "k/s", "complete clone",
                  None)
    complete = complete_clone(lab, disk)

    def write_all(server):
        """Write each block once, and return the rate."""
        have_memory(2 * size)
        job = fio(lab, server, "--rw=randwrite", DEEP, f"--size={size}")
        return rate(job, "write")

    with lab.source(disk, 10) as source:
        def unhydrated():
            settle(complete)
            destination = lab.fresh(".raw")
            with lab.clone(source, destination, "hydration=off") as server:
                figure = write_all(server)
                line.clone.append(figure)
                cached.clone.append(figure)
            lab.remove(destination)

        def complete_clone_again():
            """With the destination as hydration leaves it: not cached."""
            settle(complete, forget=True)
            with lab.clone(source, complete) as server:
                line.peer.append(write_all(server))

        def complete_clone_in_page_cache():
            settle(complete)
            with lab.clone(source, complete) as server:
                cached.peer.append(write_all(server))

        yield Experiment([line, cached], [unhydrated, complete_clone_again,
                                          complete_clone_in_page_cache])
    lab.remove(complete)
