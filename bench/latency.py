# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""P5 and P6: the latency of a client's requests during hydration."""

import json
import signal
import subprocess
import time

from experiment import Experiment
from figures import Line, at_least, at_most
from lab import GIB, MIB, PATIENCE, Failed, Process, fio, p99, tail


class BackgroundFio(Process):
    """fio, running until `end' is called.

    before: a command that fio runs just before its first request
    """

    def __init__(self, lab, server, *args, before=None):
        self.output = lab.fresh(".json")
        super().__init__("fio", [
            "fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}",
            "--bs=4k", "--randrepeat=0", "--norandommap", "--time_based",
            f"--runtime={PATIENCE}", "--output-format=json",
            f"--output={self.output}",
            *([f"--exec_prerun={before}"] if before else []), *args,
        ], lab.fresh(".log"))

    def end(self):
        """End fio and return its figures."""
        self.check()
        self.popen.send_signal(signal.SIGINT)
        # The exit status is not 0, because fio was interrupted.
        self.popen.wait(PATIENCE)
        with open(self.output) as f:
            text = f.read()
        if "{" not in text:
            raise Failed(f"fio has no figures: {tail(self.log)}")
        return json.loads(text[text.index("{"):])["jobs"][0]


def resume(clone):
    """The command that starts hydration, escaped for fio's exec_prerun."""
    return ("curl -sS --max-time 60 -o /dev/null -X POST --unix-socket "
            f"{clone.control} http\\://localhost/resume")


def p5(lab):
    """unhydrated 4K reads while hydrating at full speed, p99"""
    rtt = 10
    disk = lab.disk("large", (256 * MIB) if lab.quick else (2 * GIB))
    line = Line(f"p99, 4 deep, {rtt} ms RTT", "ms", "the RTT", at_most(1.5))

    with lab.source(disk, rtt) as source:
        def hydrating():
            """Reads of the last quarter, until hydration comes near it."""
            destination = lab.fresh(".raw")
            with lab.clone(source, destination, "hydration=off") as clone:
                with lab.running(BackgroundFio(
                        lab, clone, "--rw=randread", "--iodepth=4",
                        "--offset=75%", "--size=25%",
                        before=resume(clone))) as reads:
                    clone.wait_hydrated(0.7)
                    job = reads.end()
            lab.remove(destination)
            if job["read"]["total_ios"] < (10 if lab.quick else 100):
                raise Failed("too few reads before hydration came near")
            line.clone.append(p99(job, "read"))
            line.peer.append(rtt)

        yield Experiment([line], [hydrating])


def hydration_speed(clone):
    """Bytes a second, from the next progress until 95 percent are valid."""
    first = clone.status()["bytes_hydrated"]
    while True:
        status = clone.status()
        begin = time.monotonic()
        if status["bytes_hydrated"] > first:
            break
        time.sleep(0.002)
    clone.wait_hydrated(0.95)
    end = time.monotonic()
    bytes_hydrated = clone.status()["bytes_hydrated"]
    return (bytes_hydrated - status["bytes_hydrated"]) / (end - begin)


def p6(lab):
    """hydrated 4K random writes while hydrating at full speed, p99"""
    disk = lab.disk("large", (256 * MIB) if lab.quick else (2 * GIB))
    latency = Line("p99, 1 deep", "ms", "while paused", at_most(2))
    speed = Line("hydration meanwhile", "MiB/s", "without writes",
                 at_least(0.5))
    # Writes go to the first eighth.
    writes = ("--rw=randwrite", "--iodepth=1", "--size=12%")

    def with_clone(step):
        destination = lab.fresh(".raw")
        with lab.clone(source, destination, "hydration=off") as clone:
            clone.resume()
            clone.wait_hydrated(0.15)
            clone.pause()
            step(clone)
        lab.remove(destination)

    with lab.source(disk) as source:
        def paused():
            def step(clone):
                job = fio(lab, clone, *writes, "--norandommap", "--time_based",
                          f"--runtime={1 if lab.quick else 2}")
                latency.peer.append(p99(job, "write"))
            with_clone(step)

        def hydrating():
            def step(clone):
                with lab.running(BackgroundFio(lab, clone, *writes,
                                               before=resume(clone))) as fio_:
                    speed.clone.append(hydration_speed(clone) / MIB)
                    latency.clone.append(p99(fio_.end(), "write"))
            with_clone(step)

        def without_writes():
            def step(clone):
                clone.resume()
                speed.peer.append(hydration_speed(clone) / MIB)
            with_clone(step)

        yield Experiment([latency, speed], [hydrating, paused, without_writes],
                         7)
