#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Four clients that remember what was acknowledged, while servers are killed.

  kill-all.py URI SOURCE EXPECTED PROGRESS STOP [--seed N]

Each writes to sectors of its own, in regions that all of them share, with and
without FUA, flushes, and reads what it has written.  A client whose connection
has ended connects again.  PROGRESS is a directory, which gets a file for each
request that was acknowledged (and is emptied by whoever looks at it); when the
file STOP is there, they flush until that succeeds, read the whole disk, and
write to EXPECTED what they found.

A sector's content is what it was when a flush or FUA last covered it, or one of
the writes since then, with and without an answer; a flush that fails, and a
connection that ends, prove nothing about the writes before them.  Anything else
is the end of the program with an error.
"""

import argparse
import os
import random
import sys
import threading
import time

import nbd

p = argparse.ArgumentParser()
p.add_argument("uri")
p.add_argument("source")
p.add_argument("expected")
p.add_argument("progress")
p.add_argument("stop")
p.add_argument("--seed", type=int, default=1)
args = p.parse_args()

CLIENTS = 4
SECTOR = 512

with open(args.source, "rb") as f:
    source = f.read()
sectors = len(source) // SECTOR
counts = {"write": 0, "fua": 0, "flush": 0, "told": 0, "error": 0,
          "connect": 0}
lock = threading.Lock()


def count(what):
    with lock:
        counts[what] += 1


def source_sector(i):
    return source[i * SECTOR:(i + 1) * SECTOR]


class Sector:
    """durable: what a power cut leaves at least.  later: the writes since then,
    the latest last.  certain: how many of them, at its end, a successful flush
    would make durable."""

    def __init__(self, content):
        self.durable = content
        self.later = []
        self.certain = 0

    def write(self, content, acknowledged):
        self.later.append(content)
        self.certain = self.certain + 1 if acknowledged else 0

    def flushed(self):
        if self.certain:
            self.durable = self.later[-1]
            self.later = []
            self.certain = 0

    def doubt(self):
        """What was written before may be lost, and no flush will say so."""
        self.certain = 0

    def allows(self, content):
        return content == self.durable or content in self.later


class Client(threading.Thread):
    def __init__(self, number):
        super().__init__()
        self.number = number
        self.rand = random.Random(args.seed * 100 + number)
        self.mine = {i: Sector(source_sector(i))
                     for i in range(number, sectors, CLIENTS)}
        self.touched = set()
        self.serial = 0
        self.h = None
        self.failure = None

    def run(self):
        try:
            while not os.path.exists(args.stop):
                self.one_request()
            while not self.flush():
                pass
        except Exception as e:
            self.failure = "client %d: %s" % (self.number, e)

    def connect(self):
        while True:
            h = nbd.NBD()
            try:
                h.connect_uri(args.uri)
                break
            except nbd.Error:
                time.sleep(0.02)
        self.h = h
        count("connect")

    def acknowledged(self, what):
        count(what)
        with open("%s/%d-%d" % (args.progress, self.number, self.serial), "w"):
            pass

    def request(self, function):
        """None, or the error."""
        self.serial += 1
        if self.h is None:
            self.connect()
        try:
            function(self.h)
            return None
        except nbd.Error as e:
            if self.h.aio_is_dead() or self.h.aio_is_closed() or \
               e.errno == "ESHUTDOWN":
                self.h = None
                for i in self.touched:
                    self.mine[i].doubt()
            count("error")
            return e

    def one_request(self):
        kind = self.rand.choice(("write", "write", "fua", "read", "flush"))
        if kind == "flush":
            self.flush()
        elif kind == "read":
            self.read(self.rand.choice(sorted(self.touched) or
                                       list(self.mine)))
        else:
            self.write(self.rand.choice(list(self.mine)), kind == "fua")

    def write(self, i, fua):
        text = b"client %d, request %d, sector %d" % (self.number,
                                                      self.serial, i)
        content = text.ljust(64) * (SECTOR // 64)
        self.touched.add(i)
        error = self.request(lambda h: h.pwrite(
            content, i * SECTOR, nbd.CMD_FLAG_FUA if fua else 0))
        self.mine[i].write(content, error is None)
        if error is None:
            if fua:
                self.mine[i].flushed()
            self.acknowledged("fua" if fua else "write")

    def flush(self):
        error = self.request(lambda h: h.flush())
        if error is None:
            for i in self.touched:
                self.mine[i].flushed()
            self.acknowledged("flush")
            return True
        for i in self.touched:
            self.mine[i].doubt()
        count("told")
        return False

    def read(self, i):
        got = []
        if self.request(lambda h: got.append(h.pread(SECTOR, i * SECTOR))):
            return
        self.check(i, bytes(got[0]))

    def check(self, i, content):
        if not self.mine[i].allows(content):
            raise Exception("sector %d is %r, and should be %r or one of %r"
                            % (i, content[:64], self.mine[i].durable[:64],
                               [c[:64] for c in self.mine[i].later]))


clients = [Client(i) for i in range(CLIENTS)]
for c in clients:
    c.start()
for c in clients:
    c.join()
failures = [c.failure for c in clients if c.failure]
if failures:
    sys.exit("kill-all.py: " + "; ".join(failures))

h = nbd.NBD()
h.connect_uri(args.uri)
found = bytearray()
while len(found) < len(source):
    found += h.pread(min(1 << 20, len(source) - len(found)), len(found))
for i in range(sectors):
    clients[i % CLIENTS].check(i, bytes(found[i * SECTOR:(i + 1) * SECTOR]))
if found[sectors * SECTOR:] != source[sectors * SECTOR:]:
    sys.exit("kill-all.py: the last bytes are wrong")
h.shutdown()
with open(args.expected, "wb") as f:
    f.write(found)
print(", ".join("%s: %d" % pair for pair in counts.items()))
