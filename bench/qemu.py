# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""How QEMU does the same job: qemu-storage-daemon with a qcow2 overlay over the
source, copy-on-read, and block-stream.

    NBD export -> copy-on-read -> overlay (qcow2) -> backing: source (NBD)

block-stream runs on the overlay's node, not on the filter's.
"""

import json
import socket
import time

from lab import Failed, PATIENCE, Process, until


class StorageDaemon(Process):
    def __init__(self, lab, source, overlay, size):
        lab.run("qemu-img", "create", "-q", "-f", "qcow2", overlay, str(size))
        path = lab.fresh()
        self.monitor = path + ".qmp"
        super().__init__("qemu-storage-daemon", [
            "qemu-storage-daemon",
            "--chardev", f"socket,id=qmp,path={self.monitor},server=on,"
                         "wait=off",
            "--monitor", "chardev=qmp",
            "--blockdev", "driver=nbd,node-name=source,read-only=on,"
                          f"server.type=unix,server.path={source.path}",
            "--blockdev", f"driver=file,node-name=file,filename={overlay},"
                          "discard=unmap",
            "--blockdev", "driver=qcow2,node-name=overlay,file=file,"
                          "backing=source,discard=unmap",
            "--blockdev", "driver=copy-on-read,node-name=cor,file=overlay",
            "--nbd-server", f"addr.type=unix,addr.path={path}.sock",
            "--export", "type=nbd,id=export,node-name=cor,name=,writable=on",
        ], path + ".log")
        self.path = path + ".sock"
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.qmp = None

    def connect(self):
        def try_it():
            self.check()
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(PATIENCE)
            try:
                s.connect(self.monitor)
            except OSError:
                s.close()
                return False
            self.qmp = s.makefile("rw")
            return True

        until(try_it, "qemu-storage-daemon starts")
        self.read_message()
        self.execute("qmp_capabilities")

    def read_message(self):
        line = self.qmp.readline()
        if not line:
            raise Failed("qemu-storage-daemon closed its monitor")
        return json.loads(line)

    def execute(self, command, **arguments):
        self.qmp.write(json.dumps(
            {"execute": command, "arguments": arguments}) + "\n")
        self.qmp.flush()
        while True:
            message = self.read_message()
            if "error" in message:
                raise Failed(f"{command}: {message['error']}")
            if "return" in message:
                return

    def stream(self):
        self.execute("block-stream", **{"job-id": "stream",
                                        "device": "overlay"})
        while True:
            message = self.read_message()
            if message.get("event") != "BLOCK_JOB_COMPLETED":
                continue
            if "error" in message["data"]:
                raise Failed(f"block-stream: {message['data']['error']}")
            return

    def quit(self):
        """End the daemon, which flushes its images."""
        self.execute("quit")
        self.popen.wait(PATIENCE)


def stream(lab, source, size):
    """Seconds until everything is copied, and until it is durable."""
    overlay = lab.fresh(".qcow2")
    begin = time.monotonic()
    with lab.running(StorageDaemon(lab, source, overlay, size)) as daemon:
        daemon.connect()
        daemon.stream()
        copied = time.monotonic() - begin
        daemon.quit()
        durable = time.monotonic() - begin
    lab.remove(overlay)
    return copied, durable
