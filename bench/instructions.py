# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""The command behind bench/instructions.

Valgrind's tool callgrind counts the instructions of a whole server in user
space.  Each server runs twice: for a client that makes N requests, one after
the other, and for one that makes 2 N.  The difference, divided by N, is the
number of instructions for one request.  So the figures do not include starting,
connecting and ending, and do not depend on other work of the machine.
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
# Clients use the first half of the disk.  In the half valid clone, this is the
# valid half.
HALF = SIZE // 2
BLOCK = 4 * KIB

REQUESTS = {"read": "randread", "write": "randwrite"}


def make_destinations(lab, source):
    """The destinations of a complete clone and of a half valid one."""
    complete, half = lab.fresh(".raw"), lab.fresh(".raw")
    with lab.clone(source, complete) as clone:
        clone.wait_complete()
    with lab.clone(source, half, "hydration=off") as clone:
        fio(lab, clone, "--rw=write", f"--size={HALF}", "--iodepth=16")
    return complete, half


def count(lab, plugin, word, requests, out):
    """The instructions of a server that answers this number of requests."""
    path = lab.fresh()
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
            "--dump-instr=yes", *lab.nbdkit_argv(path, plugin)]
    with lab.running(Server("callgrind", argv, path + ".log", path + ".sock",
                            path + ".pid")) as server:
        job = fio(lab, server, f"--rw={REQUESTS[word]}", f"--size={HALF}",
                  f"--io_size={requests * BLOCK}", "--norandommap",
                  "--iodepth=1")
    if job[word]["total_ios"] != requests:
        raise Failed(f"fio made {job[word]['total_ios']} requests, "
                     f"not {requests}")
    with open(out) as f:
        match = re.search(r"^totals: (\d+)", f.read(), re.M)
    if not match:
        raise Failed(f"{out} contains no total")
    return int(match.group(1))


def each_request(lab, name, plugin, requests, keep):
    """The instructions for one read, and for one write."""
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
                        help="keep callgrind's files in this directory")
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
