# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""The laboratory: a directory with disks, and servers on unix sockets.

Lab.close removes the directory and ends all processes that were started here.
Every wait has a time limit.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# Seconds: the time limit of each wait.
PATIENCE = 600


class Failed(Exception):
    """A row cannot be measured."""


class Process:
    """Runs in the directory of its log, because fio leaves files behind."""

    def __init__(self, name, argv, log):
        self.name = name
        self.log = log
        with open(log, "ab") as out:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                cwd=os.path.dirname(log))

    @property
    def pid(self):
        return self.popen.pid

    def check(self):
        if self.popen.poll() is not None:
            raise Failed(f"{self.name} ended: {tail(self.log)}")

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(PATIENCE)

    def stop(self):
        if self.popen.poll() is None:
            self.popen.terminate()
        if self.popen.wait(PATIENCE) != 0:
            raise Failed(f"{self.name} failed: {tail(self.log)}")

    def memory(self):
        """Bytes of memory that the process does not share with others."""
        with open(f"/proc/{self.pid}/smaps_rollup") as f:
            return sum(int(l.split()[1]) * KIB for l in f
                       if l.startswith("Private_"))


class Server(Process):
    """An NBD server."""

    def __init__(self, name, argv, log, path, pidfile=None):
        super().__init__(name, argv, log)
        self.path = path
        self.uri = f"nbd+unix:///?socket={path}"
        until(lambda: self.is_up(pidfile or path), f"{name} starts")

    def is_up(self, path):
        self.check()
        return os.path.exists(path) and (
            path == self.path or os.path.getsize(path) > 0)


class Clone(Server):
    """nbdkit clone, with its control interface."""

    def __init__(self, lab, argv, log, path, pidfile, control):
        self.begun = time.monotonic()
        self.control = control
        super().__init__("clone", argv, log, path, pidfile)

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        with contextlib.closing(connection):
            connection.sock.connect(self.control)
            connection.request(method, path,
                               json.dumps(body) if body else None)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status // 100 != 2:
            raise Failed(f"{method} {path}: {answer.status} {text}")
        return json.loads(text)

    def status(self):
        return self.ask("GET", "/status")

    def pause(self):
        self.ask("POST", "/pause")
        until(lambda: self.status()["hydrating"] == 0, "hydration pauses")

    def resume(self):
        self.ask("POST", "/resume")

    def wait_hydrated(self, part=1.0):
        """Wait until this part of all regions is valid, durable or not.

        Polls more often near the end: so polling hardly slows the clone down,
        and the end is seen with an error of at most 2 percent of the time.
        """
        begin = time.monotonic()
        first = None
        while True:
            status = self.status()
            now = time.monotonic()
            done = status["hydrated"]
            missing = status["regions"] * part - done
            if missing <= 0:
                return
            if status["state"] == "failed":
                raise Failed(f"hydration failed: {tail(self.log)}")
            if now - begin > PATIENCE:
                raise Failed("hydration takes too long")
            first = done if first is None else first
            left = ((now - begin) * missing / (done - first)
                    if done > first else 0)
            at_most = max(0.002, 0.02 * (now - begin))
            time.sleep(min(max(left / 2, 0.002), at_most))

    def wait_complete(self):
        """Wait until every region is valid in the bitmap on disk."""
        status = self.ask("GET", "/wait")
        if status["state"] != "complete":
            raise Failed(f"not complete: {status}")


class Lab:
    def __init__(self, directory, plugin, quick):
        self.plugin = plugin
        self.quick = quick
        self.directory = tempfile.mkdtemp(prefix="lab-", dir=directory)
        self.processes = []
        self.count = 0
        # The path of a unix socket has at most 107 bytes.
        if len(self.path("0123456789.ctl")) > 107:
            self.close()
            raise Failed("the directory's path is too long for unix sockets, "
                         "choose another with --dir")

    def close(self):
        self.kill_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def fresh(self, suffix=""):
        """A path that has not been used."""
        self.count += 1
        return self.path(f"{self.count}{suffix}")

    def remove(self, *paths):
        """Remove files, and the metadata of those that are destinations."""
        for path in paths:
            for p in (path, path + ".clone"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(p)

    # Processes.

    @contextlib.contextmanager
    def running(self, process):
        """End the process on leaving, by SIGKILL after an exception."""
        self.processes.append(process)
        try:
            yield process
            if process.popen.returncode is None:
                process.stop()
        finally:
            process.kill()
            self.processes.remove(process)

    def kill_all(self):
        for process in self.processes:
            process.kill()

    def run(self, *argv, **kwargs):
        """Run a command and return its output."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        result = subprocess.run(argv, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, timeout=PATIENCE,
                                cwd=self.directory, **kwargs)
        if result.returncode != 0:
            raise Failed(f"{argv[0]} failed: {result.stdout[-2000:]}")
        return result.stdout

    def seconds(self, *argv):
        """Run a command and return the time that it takes."""
        begin = time.monotonic()
        self.run(*argv)
        return time.monotonic() - begin

    def nbdkit_argv(self, path, args):
        return ["nbdkit", "-f", "--exit-with-parent", "-U", path + ".sock",
                "-P", path + ".pid", *args]

    def nbdkit(self, *args):
        """An nbdkit server, as a context manager."""
        path = self.fresh()
        return self.running(Server(
            f"nbdkit {args[0]}", self.nbdkit_argv(path, args), path + ".log",
            path + ".sock", path + ".pid"))

    def source(self, disk, rtt=0):
        """An NBD server for a source, for the clone and its peers.

        rtt: milliseconds
        """
        delay = [f"rdelay={rtt}ms", f"delay-extents={rtt}ms"] if rtt else []
        return self.nbdkit(*(["--filter=delay"] if rtt else []), "file", disk,
                           *delay)

    def clone(self, source, destination, *args, server=()):
        """A clone, as a context manager.  source: a server or a path"""
        path = self.fresh()
        argv = self.nbdkit_argv(path, [
            *server, self.plugin, getattr(source, "uri", source),
            f"destination={destination}", f"control={path}.ctl", *args])
        return self.running(Clone(self, argv, path + ".log", path + ".sock",
                                  path + ".pid", path + ".ctl"))

    # Disks.

    def disk(self, name, size, data=None):
        """The path of a disk image, which is created on the first call.

        data: a list of the (offset, length) that are not zero; default: all
        """
        path = self.path(name)
        if os.path.exists(path):
            return path
        room = shutil.disk_usage(self.directory).free
        data = [(0, size)] if data is None else data
        if sum(length for _, length in data) * 2 > room:
            raise Failed("too little room; choose another file system with "
                         "--dir")
        with open(path, "wb") as f:
            f.truncate(size)
            for offset, length in data:
                f.seek(offset)
                while length > 0:
                    n = min(length, MIB)
                    f.write(os.urandom(n))
                    length -= n
            f.flush()
            # Write-back would disturb the measurements.
            os.fsync(f.fileno())
        return path


def fio(lab, server, *args):
    """Run fio's nbd engine on a server, and return its figures."""
    with tempfile.NamedTemporaryFile(dir=lab.directory) as out:
        lab.run("fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}",
                "--bs=4k", "--group_reporting", "--randrepeat=0",
                "--output-format=json", f"--output={out.name}", *args)
        text = out.read().decode()
    return json.loads(text[text.index("{"):])["jobs"][0]


def p99(job, direction):
    """Milliseconds."""
    return job[direction]["clat_ns"]["percentile"]["99.000000"] / 1e6


def settle(path, forget=False):
    """Write back a file's dirty pages.

    forget: also drop the file from the page cache
    """
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        if forget:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def have_memory(size):
    """Ensure that this number of bytes of free memory is backed by the host.

    A host may give memory to a virtual machine only when it is written to, and
    soon take free memory back.
    """
    memory = bytearray(b"x") * size
    del memory


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"did not come true: {what}")
        time.sleep(0.001)


def tail(log):
    with contextlib.suppress(OSError), open(log, errors="replace") as f:
        return f.read()[-1000:].strip() or "no message"
    return "no message"
