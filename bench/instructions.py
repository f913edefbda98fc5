# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""The command behind bench/instructions.

Instructions in user space, of the whole server, as valgrind's tool callgrind
counts them.  Each server runs twice, for a client that makes N requests and for
one that makes 2 N, one after the other; what the second run needs more, divided
by N, is a request's.  So starting, connecting and ending do not count, and
neither does what else the machine does.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

from figures import format_table
from lab import KIB, MIB, Failed, Lab, Server, fio

SIZE = 64 * MIB
# What clients ask for lies in the first half of the disk: all that is valid in
# a clone that is not complete.
HALF = SIZE // 2
BLOCK = 4 * KIB

REQUESTS = {"read": "randread", "write": "randwrite"}


def make_destinations(lab, source):
    """A complete clone's, and one's of which half is valid."""
    complete, half = lab.fresh(".raw"), lab.fresh(".raw")
    with lab.clone(source, complete) as clone:
        clone.wait_complete()
    with lab.clone(source, half, "hydration=off") as clone:
        fio(lab, clone, "--rw=write", f"--size={HALF}", "--iodepth=16")
    return complete, half


def count(lab, plugin, word, requests, out):
    """All instructions of a server that answers so many requests."""
    path = lab.fresh()
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
            "--dump-instr=yes", *lab.nbdkit_argv(path, plugin)]
    with lab.running(Server("callgrind", argv, path + ".log", path + ".sock",
                            path + ".pid")) as server:
        job = fio(lab, server, f"--rw={REQUESTS[word]}", f"--size={HALF}",
                  f"--io_size={requests * BLOCK}", "--norandommap",
                  "--iodepth=1")
    if job[word]["total_ios"] != requests:
        raise Failed(f"fio has made {job[word]['total_ios']} requests")
    with open(out) as f:
        match = re.search(r"^totals: (\d+)", f.read(), re.M)
    if not match:
        raise Failed(f"callgrind has left no total in {out}")
    return int(match.group(1))


def each_request(lab, name, plugin, requests, keep):
    """Instructions for one read, and for one write."""
    figures = []
    for word in REQUESTS:
        print(f"{name}, {word}", file=sys.stderr, flush=True)
        out = [os.path.join(keep or lab.directory,
                            f"{name.replace(' ', '-')}-{word}-{n}.callgrind")
               for n in (1, 2)]
        once, twice = (count(lab, plugin, word, n * requests, out[n - 1])
                       for n in (1, 2))
        figures.append((twice - once) / requests)
    return figures


def main():
    parser = argparse.ArgumentParser(prog="bench/instructions")
    parser.add_argument("--build", default="build", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=20000, metavar="N")
    parser.add_argument("--keep", metavar="DIR",
                        help="leave callgrind's files there")
    args = parser.parse_args()
    if args.requests < 1:
        parser.error("--requests must be 1 or more")
    if not shutil.which("valgrind"):
        parser.error("needs valgrind")
    keep = args.keep and os.path.abspath(args.keep)
    if keep:
        os.makedirs(keep, exist_ok=True)
    clone = os.path.abspath(os.path.join(
        args.build, "plugin/.libs/nbdkit-clone-plugin.so"))

    lab = Lab(tempfile.gettempdir(), clone, quick=False)
    try:
        source = lab.disk("source", SIZE)
        complete, half = make_destinations(lab, source)
        servers = {
            "nbdkit file": ["file", complete],
            "complete clone": [clone, f"destination={complete}",
                               "commit-interval=0"],
            "half valid clone": [clone, source, f"destination={half}",
                                 "hydration=off", "commit-interval=0"],
        }
        figures = {name: each_request(lab, name, plugin, args.requests, keep)
                   for name, plugin in servers.items()}
    except (Failed, OSError, subprocess.SubprocessError) as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 2
    finally:
        lab.close()

    peer = figures["nbdkit file"]
    lines = [(name, *(f"{f:.0f} ({f - p:+.0f})" for f, p in zip(own, peer)))
             for name, own in figures.items()]
    print(format_table(lines, ("server", *(f"4K {word}" for word in REQUESTS))),
          end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
