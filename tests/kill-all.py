#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Four clients that remember what was acknowledged while servers are killed.

  kill-all.py URI SOURCE EXPECTED PROGRESS STOP [--seed N]
              [--crash AREA] [--ahead N]

Each client writes to sectors of its own, in regions that all of them share,
with and without FUA, flushes, and reads what it has written.  A client whose
connection has ended connects again.  PROGRESS is a directory in which a file
is created for each acknowledged request; the test empties it.  When the file
STOP exists, the clients flush until that succeeds, the whole disk is read, and
EXPECTED is created with its content.

A sector must have the content that a flush or FUA last covered, or that of a
later write, answered or not.  A flush that fails, and a connection that ends,
prove nothing about the writes before them.  Other content ends the program
with an error.

With --ahead the clients wait after N acknowledged requests until PROGRESS is
emptied.

With --crash only the program is killed, and nothing that was acknowledged may
be lost.  The clients never flush or use FUA, not even at the end.  A sector
must have the content of its last acknowledged write, or of a later one without
an answer.  The disk is divided into areas of AREA bytes.  All clients share
every second area; each of the others belongs to one client, which writes,
zeroes and trims ranges of it.  A read has one sector, so that it does not
touch another region.
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
p.add_argument("--crash", type=int, metavar="AREA", default=0)
p.add_argument("--ahead", type=int, metavar="N", default=0)
args = p.parse_args()

CLIENTS = 4
SECTOR = 512

with open(args.source, "rb") as f:
    source = f.read()
sectors = len(source) // SECTOR
counts = {"write": 0, "fua": 0, "flush": 0, "told": 0, "error": 0,
          "connect": 0}
if args.crash:
    counts = {"write": 0, "zero": 0, "trim": 0, "read": 0, "error": 0,
              "connect": 0}
ZEROES = bytes(SECTOR)
lock = threading.Lock()


def count(what):
    with lock:
        counts[what] += 1


def source_sector(i):
    return source[i * SECTOR:(i + 1) * SECTOR]


class Sector:
    """durable: the content that a power cut cannot take away.  later: the
    writes since then, the latest last.  certain: how many of the last ones a
    successful flush would make durable."""

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

    def crash_write(self, content, acknowledged):
        """With --crash: an acknowledged write stays."""
        if acknowledged:
            self.durable = content
            self.later = []
        else:
            self.later.append(content)

    def trimmed(self):
        """A trim may zero the sector or do nothing."""
        self.later.append(ZEROES)

    def was_read(self, content):
        """Requests without an answer have ended with their process."""
        self.durable = content
        self.later = []

    def doubt(self):
        """Earlier writes may be lost although a later flush succeeds."""
        self.certain = 0

    def allows(self, content):
        return content == self.durable or content in self.later


class Client(threading.Thread):
    def __init__(self, number):
        super().__init__()
        self.number = number
        self.rand = random.Random(args.seed * 100 + number)
        self.mine = {i: Sector(source_sector(i))
                     for i in range(sectors) if self.owner(i) == number}
        self.numbers = list(self.mine)
        self.touched = set()
        self.serial = 0
        self.h = None
        self.failure = None

    @staticmethod
    def owner(i):
        if args.crash:
            area = i * SECTOR // args.crash
            if area % 2:
                return area // 2 % CLIENTS
        return i % CLIENTS

    def run(self):
        try:
            while not os.path.exists(args.stop):
                if args.ahead and len(os.listdir(args.progress)) >= args.ahead:
                    time.sleep(0.01)
                elif args.crash:
                    self.one_crash_request()
                else:
                    self.one_request()
            while not args.crash and not self.flush():
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
        """Return None or the error."""
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

    def some_range(self):
        """Consecutive sectors that belong to this client."""
        first = self.rand.choice(self.numbers)
        area = args.crash // SECTOR
        if first // area % 2 == 0: # shared
            return [first]
        start = first - first % area
        if self.rand.random() < 0.3:
            return range(start, min(start + area, sectors))
        return range(first, min(first + self.rand.randint(1, 64),
                                start + area, sectors))

    def one_crash_request(self):
        kind = self.rand.choice(("write", "write", "write", "zero", "trim",
                                 "read"))
        if kind == "read":
            i = self.rand.choice(self.numbers)
            got = []
            if self.request(lambda h: got.append(h.pread(SECTOR,
                                                         i * SECTOR))):
                return
            self.check(i, bytes(got[0]))
            self.mine[i].was_read(bytes(got[0]))
            self.acknowledged("read")
            return
        run = self.some_range()
        offset = run[0] * SECTOR
        count = len(run) * SECTOR
        contents = [self.text(i) if kind == "write" else ZEROES for i in run]
        error = self.request({
            "write": lambda h: h.pwrite(b"".join(contents), offset),
            "zero": lambda h: h.zero(count, offset),
            "trim": lambda h: h.trim(count, offset)}[kind])
        for i, content in zip(run, contents):
            if kind == "trim":
                self.mine[i].trimmed()
            else:
                self.mine[i].crash_write(content, error is None)
        if error is None:
            self.acknowledged(kind)

    def text(self, i):
        text = b"client %d, request %d, sector %d" % (self.number,
                                                      self.serial, i)
        return text.ljust(64) * (SECTOR // 64)

    def write(self, i, fua):
        content = self.text(i)
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
    clients[Client.owner(i)].check(i, bytes(found[i * SECTOR:(i + 1) * SECTOR]))
if found[sectors * SECTOR:] != source[sectors * SECTOR:]:
    sys.exit("kill-all.py: the last bytes are wrong")
h.shutdown()
with open(args.expected, "wb") as f:
    f.write(found)
print(", ".join("%s: %d" % pair for pair in counts.items()))
