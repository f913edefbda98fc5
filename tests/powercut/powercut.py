#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""The power-cut laboratory for the whole program.

  powercut.py lab DIRECTORY --clone PLUGIN --powercut PLUGIN
              [--control NAME=PLUGIN]... [--seed N] [--cuts N]
  powercut.py crash LOG DEST-BEFORE META-BEFORE DEST META --keep KIND

`lab' runs the clone on the devices of powercut-plugin.c, with clients on
several connections, and chooses cut points in what was recorded.  For each it
makes images of both devices that a power cut there could have left, starts the
clone on them, reads the whole disk, and compares each sector with what
invariant I7 allows.  A sample is hydrated to the end, and the destination is
compared alone.  Each control is a build of the plugin that breaks the order
of a commit on purpose, and has to be caught.

`crash' makes one pair of images from the end of a recording.

What a device keeps: a change is durable when it had FUA and has ended, or when
a flush has ended well that started after the change had ended.  Each sector of
512 bytes reads as its last durable change or as any later one, whatever
happened to its neighbours, and to the other device.  A flush that fails loses
what it covered, for a later flush, too: Linux may have dropped the pages.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid

SECTOR = 512
UNIT = 32  # each sector repeats one text of this length
ZERO = bytes(SECTOR)
RECORD = struct.Struct("=IIIIQQQQ")
WRITE, ZERO_OP, TRIM, FLUSH = range(4)
DEST, META = range(2)
KINDS = ("meta", "dest", "none", "all", "torn")


def text(format, *args):
    return (format % args).ljust(UNIT)[:UNIT].encode() * (SECTOR // UNIT)


# ---- recordings ----

Event = collections.namedtuple(
    "Event", "is_end device operation value id time offset count data")


def read_log(path):
    """The events of a recording, up to one that was cut off."""
    with open(path, "rb") as f:
        log = f.read()
    events = []
    pos = 0
    while pos + RECORD.size <= len(log):
        e = RECORD.unpack_from(log, pos)
        pos += RECORD.size
        data = None
        if not e[0] and e[2] == WRITE:
            data = memoryview(log)[pos:pos + e[7]]
            if len(data) < e[7]:
                break
            pos += e[7]
        events.append(Event(*e, data))
    return events


class Cache:
    """One device with a volatile cache."""

    def __init__(self, image):
        self.durable = bytearray(image)
        self.pending = {}  # sector: changes after the durable one, in order
        self.changes = {}  # id: the start of a change that is not durable
        self.ended = set()
        self.lost = set()  # by a flush that failed
        self.flushes = {}  # id: what it covers

    def sectors(self, e):
        if e.offset % SECTOR or e.count % SECTOR:
            sys.exit("powercut.py: a request that is not in sectors: %s"
                     % (e[:8],))
        return range(e.offset // SECTOR, (e.offset + e.count) // SECTOR)

    @staticmethod
    def content(e, sector):
        if e.operation != WRITE:
            return ZERO
        at = sector * SECTOR - e.offset
        return e.data[at:at + SECTOR]

    def feed(self, e):
        if e.operation == FLUSH:
            if not e.is_end:
                self.flushes[e.id] = self.ended - self.lost
            elif e.value == 0:
                for id in sorted(self.flushes.pop(e.id) - self.lost):
                    self.make_durable(id)
            else:
                self.lost |= self.flushes.pop(e.id)
        elif not e.is_end:
            self.changes[e.id] = e
            for s in self.sectors(e):
                self.pending.setdefault(s, []).append(e.id)
        elif e.id in self.changes:
            self.ended.add(e.id)
            if self.changes[e.id].value:
                self.make_durable(e.id)

    def make_durable(self, id):
        e = self.changes.get(id)
        if e is None:
            return
        for s in self.sectors(e):
            later = self.pending.get(s, ())
            if id not in later:  # what came later is durable already
                continue
            self.durable[s * SECTOR:(s + 1) * SECTOR] = self.content(e, s)
            later = later[later.index(id) + 1:]
            if later:
                self.pending[s] = later
            else:
                del self.pending[s]
        self.ended.discard(id)
        del self.changes[id]

    def image(self, how, rand):
        """What is left: with `how' "none" or "all" of what is not durable,
        "torn" by sectors, or "kept" and dropped by whole changes."""
        image = bytearray(self.durable)
        if how == "none":
            return image
        kept = {id for id in self.changes if how == "all" or rand.random() < .5}
        for s, ids in self.pending.items():
            if how == "torn":
                ids = ids[:rand.randint(0, len(ids))]
            else:
                ids = [id for id in ids if id in kept]
            if ids:
                image[s * SECTOR:(s + 1) * SECTOR] = \
                    self.content(self.changes[ids[-1]], s)
        return image


def crash_images(caches, kind, rand):
    """KINDS: keep all of one device and nothing of the other, neither, both,
    or some of each."""
    if kind == "torn":
        return [c.image(rand.choice(("torn", "kept", "torn", "all", "none")),
                        rand) for c in caches]
    return [c.image("all" if kind in (name, "all") else "none", rand)
            for c, name in zip(caches, ("dest", "meta"))]


# ---- servers ----

def wait_for(what, condition):
    for _ in range(12000):
        if condition():
            return
        time.sleep(0.005)
    raise RuntimeError("did not come true: " + what)


class Server:
    """nbdkit, in the foreground."""

    def __init__(self, directory, name, *args):
        self.name = name
        self.socket = os.path.join(directory, name + ".sock")
        self.log = os.path.join(directory, name + ".log")
        pid = os.path.join(directory, name + ".pid")
        for path in (self.socket, pid):
            if os.path.exists(path):
                os.unlink(path)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["nbdkit", "-f", "-U", self.socket, "-P", pid, *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(name + " listens", lambda: os.path.exists(pid) or
                 self.process.poll() is not None)
        if self.process.poll() is not None:
            with open(self.log, errors="replace") as log:
                raise RuntimeError("%s did not start: %s"
                                   % (name, log.read()[-2000:]))

    def uri(self, export=""):
        return "nbd+unix:///%s?socket=%s" % (export, self.socket)

    def end(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(120)


def connect(uri):
    import nbd
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def control(path, method, url, body=None):
    c = http.client.HTTPConnection("localhost", timeout=300)
    c.sock = socket.socket(socket.AF_UNIX)
    c.sock.settimeout(300)
    c.sock.connect(path)
    c.request(method, url, body)
    return json.loads(c.getresponse().read())


# ---- clients ----

class Change:
    """A client's write, zero or trim, and when it was under way."""

    def __init__(self, kind, offset, count, fua, tag):
        self.kind, self.fua, self.tag = kind, fua, tag
        self.offset, self.count = offset, count
        self.start = self.end = self.durable_at = float("inf")

    def content(self, sector):
        if self.kind != "write":
            return ZERO
        return text("W%s.%010d", self.tag, sector)

    def data(self):
        first = self.offset // SECTOR
        return b"".join(self.content(first + i)
                        for i in range(self.count // SECTOR))


class History:
    """The requests of all clients, and what I7 says about them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.changes = []
        self.flushes = []
        self.by_sector = collections.defaultdict(list)

    def finish(self):
        """When was each change durable?  A trim promises nothing."""
        flushes = sorted(self.flushes)
        for c in self.changes:
            if c.kind != "trim":
                if c.fua:
                    c.durable_at = c.end
                for start, end in flushes:
                    if start >= c.end:
                        c.durable_at = min(c.durable_at, end)
            for s in range(c.offset // SECTOR,
                           (c.offset + c.count) // SECTOR):
                self.by_sector[s].append(c)

    def allowed(self, sector, base, cut):
        """The contents that I7 allows after a power cut at that time."""
        began = [c for c in self.by_sector[sector] if c.start < cut]
        durable = [c for c in began
                   if c.durable_at <= cut and c.durable_at < float("inf")]
        newest = max((c.start for c in durable), default=None)
        values = [c.content(sector) for c in began
                  if newest is None or c.end >= newest]
        if newest is None:
            values.append(base)
        return values


def now():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def one_client(history, uri, name, size, region, operations, seed):
    import nbd
    rand = random.Random(seed)
    # All clients meet in these places: at a boundary of bitmap sectors, and
    # at the disk's end.
    hot = [0, min(4032 * region, size) // 2, size - 65536 - 3 * SECTOR]
    hot = [h // region * region for h in hot]
    h = connect(uri)
    for i in range(operations):
        what = rand.choices(
            ("write", "zero", "trim", "flush", "read", "cache"),
            (60, 8, 10, 8, 12, 6))[0]
        if rand.random() < 0.6:
            offset = rand.choice(hot) + rand.randrange(64) * SECTOR
        else:
            offset = rand.randrange(size // SECTOR) * SECTOR
        if rand.random() < 0.5:
            count = rand.randint(1, 8) * SECTOR
        else:
            offset = offset // region * region
            count = rand.randint(1, 3) * region
        count = min(count, 3 * 65536, size - offset)
        fua = rand.random() < 0.06
        flags = nbd.CMD_FLAG_FUA if fua else 0
        start = now()
        if what == "flush":
            h.flush()
            with history.lock:
                history.flushes.append((start, now()))
        elif what == "read":
            h.pread(count, offset)
        elif what == "cache":
            h.cache(count, offset)
        else:
            c = Change(what, offset, count, fua, "%s.%06d" % (name, i))
            data = c.data() if what == "write" else None
            with history.lock:
                history.changes.append(c)
            c.start = now()
            if what == "write":
                h.pwrite(data, offset, flags)
            elif what == "zero":
                h.zero(count, offset, flags)
            else:
                h.trim(count, offset, flags)
            c.end = now()
    h.flush()
    h.shutdown()


class Lab:
    CLIENTS = 5

    def __init__(self, args):
        self.args = args
        self.dir = args.directory
        self.rand = random.Random(args.seed)
        # Two bitmap sectors with regions of 4K, a short last region, a hole.
        self.size = (17 << 20) + 3 * SECTOR
        self.excess = 64 << 10
        disk = bytearray(b"".join(text("source %010d", s)
                                  for s in range(self.size // SECTOR)))
        disk[3 << 20:5 << 20] = bytes(2 << 20)
        self.source = bytes(disk)
        self.source_file = self.path("source")
        with open(self.source_file, "wb") as f:
            f.write(self.source[:3 << 20])
            f.seek(5 << 20)
            f.write(self.source[5 << 20:])
        self.garbage = b"".join(
            text("garbage %010d", s)
            for s in range((self.size + self.excess) // SECTOR))
        self.cuts = self.images = self.hydrated = 0
        self.lock = threading.Lock()

    def path(self, name):
        return os.path.join(self.dir, name)

    def store(self, name, data):
        with open(self.path(name), "wb") as f:
            f.write(data)
        return self.path(name)

    # -- recording --

    def record(self, name, plugin, region, operations, complete=False,
               before=None, copy_on_read=False):
        """Run clients on a clone on recording devices.  `before' is what the
        devices and the disk held: by default garbage, nothing, the source."""
        r = Recording()
        r.name = name
        r.dest, r.meta, r.base = before or (
            self.garbage, bytes(64 << 10), self.source)
        r.history = History()
        log = self.path(name + ".rec")
        devices = Server(
            self.dir, name + "-devices", self.args.powercut,
            "dest=" + self.store(name + ".dest", r.dest),
            "meta=" + self.store(name + ".meta", r.meta),
            "log=" + log, "delay=3000")
        ctl = self.path(name + ".ctl")
        clone = Server(
            self.dir, name + "-clone", plugin, "source=" + self.source_file,
            "destination=" + devices.uri("dest"),
            "metadata=" + devices.uri("meta"), "create=always",
            "hydration-rate=%d" % (3 << 20), "hydration-batch-size=64K",
            "copy-on-read=%s" % copy_on_read, "control=" + ctl,
            *(["region-size=%d" % region] if before is None else []))
        try:
            self.run_clients(r, clone, region, operations, 1)
            if complete:
                control(ctl, "PATCH", "/settings", '{"hydration-rate": 0}')
                state = control(ctl, "GET", "/wait")["state"]
                if state != "complete":
                    raise RuntimeError("not complete: " + state)
                self.run_clients(r, clone, region, 10, 2)
        finally:
            clone.end(signal.SIGTERM if complete else signal.SIGKILL)
            devices.end(signal.SIGKILL)
        r.history.finish()
        r.events = read_log(log)
        os.unlink(log)
        return r

    def run_clients(self, r, clone, region, operations, round):
        with concurrent.futures.ThreadPoolExecutor(self.CLIENTS) as pool:
            for f in [pool.submit(one_client, r.history, clone.uri(),
                                  "%s%d%d" % (r.name[:6], round, i), self.size,
                                  region, operations, self.rand.random())
                      for i in range(self.CLIENTS)]:
                f.result()

    # -- cut points --

    def choose_cuts(self, r, wanted):
        """Numbers of events: the cut is before the event of that number."""
        events = r.events
        first_flush = [i for i, e in enumerate(events)
                       if e.device == META and e.operation == FLUSH]
        named = set()
        # The start: all of it, until the superblocks are there.
        named |= set(range(min(30, len(events))))
        # The end: the last commit, perhaps that of "complete".
        for i in first_flush[-4:]:
            named |= {i - 1, i, i + 1}
        named = {i for i in named if i >= 0}
        # The moments around each flush.
        near = [j for i, e in enumerate(events) if e.operation == FLUSH
                for j in (i, i + 1) if j not in named]
        left = max(wanted - len(named), 0)
        near = self.rand.sample(near, min(len(near), left * 2 // 3))
        cuts = named | set(near)
        rest = [i for i in range(len(events) + 1) if i not in cuts]
        cuts |= set(self.rand.sample(
            rest, min(len(rest), max(wanted - len(cuts), 0))))
        return sorted(cuts)

    def crashes(self, r, cuts, kinds):
        """For each cut point: its number, time, and pairs of images."""
        caches = [Cache(r.dest), Cache(r.meta)]
        at = 0
        for n, cut in enumerate(cuts):
            for e in r.events[at:cut]:
                caches[e.device].feed(e)
            at = cut
            when = (r.events[cut].time if cut < len(r.events)
                    else float("inf"))
            for kind in kinds(n):
                yield cut, when, kind, crash_images(caches, kind, self.rand)

    # -- after a cut --

    @staticmethod
    def lose_memory(meta):
        """The valid bits that a clone on this image has left (inherit.h): a
        power cut takes them, too."""
        name = "/dev/shm/nbdkit-clone-" + str(uuid.UUID(bytes=meta[16:32]))
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass

    def restart(self, r, dest, meta, tag, hydrate):
        """Start the clone on images, read the whole disk."""
        dest_file = self.store(tag + ".dest", dest)
        meta_file = self.store(tag + ".meta", meta)
        if not any(meta[:8192]):
            # No superblock: the cut was in the creation.  A file would not
            # have had its name yet.
            os.unlink(meta_file)
        ctl = self.path(tag + ".ctl")
        if os.path.exists(self.path(tag + ".log")):
            os.unlink(self.path(tag + ".log"))
        self.lose_memory(bytes(meta[:32]))
        clone = Server(
            self.dir, tag, self.args.clone, "source=" + self.source_file,
            "destination=" + dest_file, "metadata=" + meta_file,
            "create=always", "hydration=off",
            *(["control=" + ctl] if hydrate else []))
        try:
            h = connect(clone.uri())
            got = b"".join(h.pread(min(4 << 20, self.size - at), at)
                           for at in range(0, self.size, 4 << 20))
            h.shutdown()
            if hydrate:
                control(ctl, "POST", "/resume")
                if control(ctl, "GET", "/wait")["state"] != "complete":
                    raise RuntimeError("hydration did not come to its end")
        finally:
            clone.end(signal.SIGTERM if hydrate else signal.SIGKILL)
            if os.path.exists(meta_file):
                with open(meta_file, "rb") as f:
                    self.lose_memory(f.read(32))
        with open(self.path(tag + ".log"), errors="replace") as log:
            if "durable are taken over" in log.read():
                raise RuntimeError("something has survived the power cut")
        alone = None
        if hydrate:
            with open(dest_file, "rb") as f:
                alone = f.read()
        return got, alone

    def judge(self, r, when, got):
        """Return None, or what is wrong."""
        base = r.base
        expected = bytearray(base)
        for s, changes in r.history.by_sector.items():
            at = s * SECTOR
            value = got[at:at + SECTOR]
            if value not in r.history.allowed(s, base[at:at + SECTOR], when):
                return self.describe(r, s, value, when)
            expected[at:at + SECTOR] = value
        if expected != got:
            for s in range(self.size // SECTOR):
                value = got[s * SECTOR:(s + 1) * SECTOR]
                if value != expected[s * SECTOR:(s + 1) * SECTOR]:
                    return self.describe(r, s, value, when)
        return None

    def describe(self, r, s, value, when):
        base = r.base[s * SECTOR:(s + 1) * SECTOR]
        return "sector %d reads %r, allowed are %s" % (
            s, value[:UNIT], [v[:UNIT] for v in
                              r.history.allowed(s, base, when)])

    def try_images(self, r, cut, when, kind, images, tag, hydrate):
        where = "%s, cut %d of %d, keeping %s" % (r.name, cut, len(r.events),
                                                  kind)
        try:
            got, alone = self.restart(r, *images, tag, hydrate)
        except Exception as e:
            with open(self.path(tag + ".log"), errors="replace") as log:
                return "%s: %s: %s" % (where, e, log.read()[-1000:])
        wrong = self.judge(r, when, got)
        if wrong is None and hydrate:
            if alone[:self.size] != got:
                wrong = "the destination alone differs from the clone"
            elif alone[self.size:] != self.garbage[self.size:]:
                wrong = "bytes past the end of the disk were changed"
        return wrong and where + ": " + wrong

    def cut_everywhere(self, r, wanted, kinds, hydrate_every, stop=False):
        """Try cut points; the list of what went wrong."""
        cuts = self.choose_cuts(r, wanted)
        wrong = []
        count = 0
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            running = set()
            tags = ["image0", "image1"]

            def reap(running):
                done, running = concurrent.futures.wait(
                    running,
                    return_when=concurrent.futures.FIRST_COMPLETED)
                for f in done:
                    tags.append(f.tag)
                    if f.result():
                        wrong.append(f.result())
                return running

            for cut, when, kind, images in self.crashes(r, cuts, kinds):
                if len(running) == 2:
                    running = reap(running)
                if wrong and stop:
                    break
                count += 1
                hydrate = hydrate_every and count % hydrate_every == 0
                tag = tags.pop()
                f = pool.submit(self.try_images, r, cut, when, kind, images,
                                tag, hydrate)
                f.tag = tag
                running.add(f)
                self.hydrated += bool(hydrate)
            while running:
                running = reap(running)
        self.images += count
        self.cuts += len(cuts)
        print("%s: %d changes by clients, %d events, %d cut points, "
              "%d images, %d bad" % (r.name, len(r.history.changes),
                                     len(r.events), len(cuts), count,
                                     len(wrong)), flush=True)
        return wrong

    # -- the whole --

    def a_crash(self, r):
        """Images and the disk of a crash amid the recording, to start from."""
        middle = len(r.events) * 2 // 3
        _, when, _, images = next(self.crashes(r, [middle],
                                               lambda n: ["torn"]))
        got, _ = self.restart(r, *images, "image0", False)
        return bytes(images[0]), bytes(images[1]), got

    @staticmethod
    def all_kinds(n):
        """The worst case at each cut point, and one of the others."""
        return "meta", KINDS[1 + n % 4]

    def main(self):
        a = self.args
        wrong = []
        for region in (4096, 65536):
            r = self.record("region%dK" % (region >> 10), a.clone, region, 150,
                            complete=True, copy_on_read=region > 4096)
            wrong += self.cut_everywhere(r, a.cuts * 3 // 10, self.all_kinds,
                                         8)
            again = self.record("again%dK" % (region >> 10), a.clone, region,
                                60, before=self.a_crash(r),
                                copy_on_read=region == 4096)
            wrong += self.cut_everywhere(again, a.cuts * 2 // 10 + 1,
                                         self.all_kinds, 8)
        cuts, images = self.cuts, self.images

        caught = 0
        for control in a.control:
            name, plugin = control.split("=")
            for attempt in range(3):
                r = self.record(name, plugin, 4096, 60)
                found = self.cut_everywhere(
                    r, 80, lambda n: ("meta", "none"), 0, stop=True)
                if found:
                    break
            if found:
                caught += 1
                print("control %s: caught: %s" % (name, found[0]))
            else:
                wrong.append("control %s was not caught" % name)

        for w in wrong[:20]:
            print("WRONG: " + w)
        print("powercut: %d cut points, %d images, %d of them hydrated to "
              "the end, controls caught %d of %d, %d bad"
              % (cuts, images, self.hydrated, caught, len(a.control),
                 len(wrong)))
        return 1 if wrong or cuts < a.cuts else 0


class Recording:
    pass


def crash(args):
    caches = []
    for path in (args.dest_before, args.meta_before):
        with open(path, "rb") as f:
            caches.append(Cache(f.read()))
    for e in read_log(args.log):
        caches[e.device].feed(e)
    images = crash_images(caches, args.keep, random.Random(1))
    for path, image in zip((args.dest, args.meta), images):
        with open(path, "wb") as f:
            f.write(image)


def main():
    p = argparse.ArgumentParser()
    sub = p.add_subparsers(dest="command", required=True)
    lab = sub.add_parser("lab")
    lab.add_argument("directory")
    lab.add_argument("--clone", required=True)
    lab.add_argument("--powercut", required=True)
    lab.add_argument("--control", action="append", default=[])
    lab.add_argument("--seed", type=int, default=1)
    lab.add_argument("--cuts", type=int, default=200)
    c = sub.add_parser("crash")
    for name in ("log", "dest_before", "meta_before", "dest", "meta"):
        c.add_argument(name)
    c.add_argument("--keep", choices=KINDS, required=True)
    args = p.parse_args()
    if args.command == "crash":
        return crash(args)
    return Lab(args).main()


if __name__ == "__main__":
    sys.exit(main())
