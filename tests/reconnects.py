#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Cut a clone off its source many times, and check that it does not grow.

  reconnects.py PROXY-CONTROL PID URI SOURCE N

Until the proxy has accepted N more connections: wait until all connections are
open, read regions from the clone that only the source has, and cut all
connections.  Each read must be right.  In the end the descriptors and memory
of the process PID are compared with those after a tenth of the connections.
"""

import os
import random
import socket
import sys
import time

import nbd

control, pid, uri, source, n = sys.argv[1:]
n = int(n)
disk = open(source, "rb").read()
rand = random.Random(1)
deadline = time.monotonic() + 600


def proxy(command):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(control)
        s.sendall((command + "\n").encode())
        return s.makefile("r").readline().strip()


def read_something(h):
    # Small: each of nbdkit's threads keeps a buffer.
    count = rand.randint(1, 4096)
    offset = rand.randint(0, len(disk) - count)
    if h.pread(count, offset) != disk[offset:offset + count]:
        sys.exit("wrong bytes at %d" % offset)


def measure():
    """Descriptors, and kilobytes, with all connections there."""
    wait_for_all()
    fds = len(os.listdir("/proc/%s/fd" % pid))
    with open("/proc/%s/status" % pid) as f:
        kb = [int(line.split()[1]) for line in f if line.startswith("VmRSS")]
    return fds, kb[0]


def wait_for_all():
    while int(proxy("open")) < connections:
        if time.monotonic() > deadline:
            sys.exit("the connections do not come back")
        time.sleep(0.005)


connections = int(proxy("open"))
handles = []
for _ in range(4):
    h = nbd.NBD()
    h.connect_uri(uri)
    handles.append(h)

first = int(proxy("accepted"))
begin = None
while True:
    done = int(proxy("accepted")) - first
    if begin is None and done >= n / 10:
        begin = measure()
    if done >= n:
        break
    wait_for_all()
    for h in handles:
        read_something(h)
    proxy("cut")
end = measure()
for h in handles:
    h.shutdown()
print("%d connections; descriptors: %d, then %d; memory: %d KiB, then %d"
      % (done, begin[0], end[0], begin[1], end[1]))
# One may be about to be closed.
if end[0] > begin[0] + 5:
    sys.exit("descriptors are lost")
if end[1] > begin[1] + 2048:
    sys.exit("memory is lost")
