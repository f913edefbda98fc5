# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""The command behind bench/run: measures rows and writes the table, the raw
figures and the plots.
"""

import argparse
import csv
import os
import platform
import re
import shutil
import signal
import subprocess
import sys

import block_status
import copying
import counts
import latency
import random_io
from figures import format_table, table_line
from lab import Failed, Lab
from plot import plot

ROWS = {
    "P1": random_io.p1,
    "P2": copying.p2,
    "P3": random_io.p3,
    "P4": random_io.p4,
    "P5": latency.p5,
    "P6": latency.p6,
    "P7": counts.p7,
    "P8": copying.p8,
    "P9": copying.p9,
    "P10": counts.p10,
    "P11": counts.p11,
    "P14": block_status.p14,
}

TITLE_WIDTH = 4


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run")
    parser.add_argument("rows", nargs="*", metavar="ROW",
                        help="P1 to P11, P14; default: all")
    parser.add_argument("--build", default="build", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true",
                        help="list the rows")
    parser.add_argument("--quick", action="store_true",
                        help="small disks, two runs: does the harness work?")
    parser.add_argument("--runs", type=int, metavar="N",
                        help="runs of each side of a row")
    parser.add_argument("--dir", metavar="DIR",
                        help="measure in this directory's file system")
    parser.add_argument("--out", metavar="DIR",
                        help="directory for the results; default: "
                             "BUILDDIR/results")
    args = parser.parse_args()
    args.rows = [row.upper() for row in args.rows] or list(ROWS)
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]}; --list shows all")
    if args.runs is not None and args.runs < 1:
        parser.error("--runs must be 1 or more")
    return args


def tell(text):
    print(text, file=sys.stderr, flush=True)


# Descriptions of the machine and the programs.

def first_line(*argv):
    try:
        result = subprocess.run(argv, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, timeout=60)
    except OSError:
        return "not found"
    return result.stdout.splitlines()[0] if result.stdout else "?"


def in_file(path, pattern):
    with open(path) as f:
        match = re.search(pattern, f.read(), re.M)
    return match.group(1).strip() if match else "?"


def own_version(plugin):
    dump = subprocess.run(["nbdkit", "--dump-plugin", plugin], text=True,
                          stdout=subprocess.PIPE, timeout=60).stdout
    match = re.search(r"^version=(.*)", dump, re.M)
    version = match.group(1) if match else "?"
    commit = subprocess.run(
        ["git", "-C", os.path.dirname(__file__), "rev-parse", "--short",
         "HEAD"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL).stdout.strip() if shutil.which("git") else ""
    return f"{version}, commit {commit}" if commit else version


def machine(plugin, directory):
    memory = int(in_file("/proc/meminfo", r"^MemTotal:\s*(\d+)")) / (1 << 20)
    file_system = first_line("findmnt", "-n", "-o", "FSTYPE", "-T",
                             directory)
    load = os.getloadavg()[0]
    return {
        "machine": f"{os.cpu_count()} cores, "
                   f"{in_file('/proc/cpuinfo', r'^model name.*: (.*)')}, "
                   f"{memory:.0f} GiB of memory, load {load:.1f} at the start",
        "system": f"{platform.system()} {platform.release()}, "
                  f"disks on {file_system}",
        "nbdkit-clone": own_version(plugin),
        "nbdkit": first_line("nbdkit", "--version"),
        "libnbd": first_line("nbdcopy", "--version"),
        "qemu": first_line("qemu-storage-daemon", "--version"),
        "fio": first_line("fio", "--version"),
    }


# One row.

def measure(lab, row, args):
    """Measure a row and return its lines.  Raises an exception on failure."""
    lines = []
    experiments = ROWS[row](lab)
    try:
        for experiment in experiments:
            runs = args.runs or (2 if args.quick else experiment.runs)
            experiment.run(runs, lambda text: tell(f"{row} {text}"))
            lines += experiment.lines
    finally:
        experiments.close()
    return lines


def write_figures(path, measured):
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["row", "condition", "side", "run", "figure", "unit"])
        for row, lines in measured.items():
            for line in lines:
                for side, figures in (("clone", line.clone),
                                      (line.peer_name, line.peer)):
                    for i, figure in enumerate(figures):
                        out.writerow([row, line.name, side, i + 1,
                                      f"{figure:.6g}", line.unit])


def main():
    args = arguments()
    if args.list:
        for row, function in ROWS.items():
            print(f"{row.ljust(TITLE_WIDTH)}{function.__doc__}")
        return 0

    out = os.path.abspath(args.out or os.path.join(args.build, "results"))
    directory = os.path.abspath(args.dir or out)
    plugin = os.path.abspath(os.path.join(
        args.build, "plugin/.libs/nbdkit-clone-plugin.so"))
    os.makedirs(out, exist_ok=True)

    # Signals must not skip the `finally' below, which ends the servers.
    def interrupted(number, frame):
        raise KeyboardInterrupt
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, interrupted)

    header = "".join(f"{key}: {value}\n"
                     for key, value in machine(plugin, directory).items())
    tell(header)
    measured, table, failed = {}, [], False
    lab = Lab(directory, plugin, args.quick)
    try:
        for row in args.rows:
            try:
                lines = measure(lab, row, args)
                plot(os.path.join(out, row + ".svg"),
                     f"{row}: {ROWS[row].__doc__}", lines)
            except (Failed, OSError, ValueError, KeyError,
                    subprocess.SubprocessError) as e:
                tell(f"{row} FAILED: {e}")
                table.append((row, "FAILED", str(e).splitlines()[-1][:60],
                              "", "", "", ""))
                failed = True
                continue
            measured[row] = lines
            table += [table_line(row, line) for line in lines]
    finally:
        lab.close()
        text = (f"{header}load at the end: {os.getloadavg()[0]:.1f}\n\n"
                f"{format_table(table)}")
        with open(os.path.join(out, "table.txt"), "w") as f:
            f.write(text)
        write_figures(os.path.join(out, "figures.csv"), measured)

    print(text, end="")
    tell(f"\nThe table, the raw figures and the plots are in {out}.")
    if failed:
        return 2
    return any(line.holds() is False
               for lines in measured.values() for line in lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
