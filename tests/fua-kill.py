#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Kill a server amid FUA writes, and check what is left.

  fua-kill.py MODEL URI kill PID WRITES [--seed N] [--signal KILL|TERM|NONE]
              [--vandals N]
  fua-kill.py MODEL URI check

MODEL is a file with the content that the export, or its beginning, should
have. `kill' writes from four connections at once, unaligned and with FUA,
sends the signal to PID when WRITES of these were acknowledged, and updates
MODEL with them. The writes without an answer go to MODEL.pending: where they
are, `check' accepts each byte of the old and of the new content, and updates
MODEL with what it finds.

Meanwhile N vandals, which are processes, send requests of all kinds for the
disk behind MODEL's end, many at a time, and are killed amid them, one after
the other.
"""

import argparse
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading

import nbd

p = argparse.ArgumentParser()
p.add_argument("model")
p.add_argument("uri")
p.add_argument("command", choices=("kill", "check"))
p.add_argument("pid", type=int, nargs="?")
p.add_argument("writes", type=int, nargs="?")
p.add_argument("--seed", type=int, default=1)
p.add_argument("--signal", choices=("KILL", "TERM", "NONE"), default="KILL")
p.add_argument("--vandals", type=int, default=0)
args = p.parse_args()

THREADS = 4
STRIPE = 10000  # bytes; unaligned, so that threads share regions

with open(args.model, "rb") as f:
    model = bytearray(f.read())
size = len(model)


def connect():
    h = nbd.NBD()
    h.connect_uri(args.uri)
    return h


def vandal(seed):
    """Ends only when it is killed, or with the server."""
    rand = random.Random(seed)
    h = connect()
    end = h.get_size()
    buf = nbd.Buffer(1 << 20)
    try:
        while True:
            while h.aio_in_flight() < 12:
                offset = rand.randrange(size, end)
                count = min(rand.choice((512, 4096, 30000, 1 << 20)),
                            end - offset)
                rand.choice((
                    lambda: h.aio_pread(nbd.Buffer(count), offset),
                    lambda: h.aio_pwrite(
                        nbd.Buffer.from_bytearray(bytearray(count)), offset),
                    lambda: h.aio_trim(count, offset),
                    lambda: h.aio_zero(count, offset),
                    lambda: h.aio_cache(count, offset),
                    lambda: h.aio_flush()))()
            h.poll(-1)
            while h.aio_peek_command_completed() > 0:
                h.aio_command_completed(h.aio_peek_command_completed())
    except nbd.Error:
        pass


def kill():
    lock = threading.Lock()
    acknowledged = 0
    killed = False
    pending = []
    unexpected = []
    # Forked before there are threads.
    vandals = [multiprocessing.Process(target=vandal,
                                       args=(args.seed * 10 + i,))
               for i in range(args.vandals)]
    for v in vandals:
        v.start()
    alive = list(vandals)

    def acknowledge():
        """Count a write.  The lock is held."""
        nonlocal acknowledged, killed
        acknowledged += 1
        if alive and acknowledged >= (args.writes * (len(vandals) -
                                                     len(alive) + 1)
                                      // (len(vandals) + 1)):
            alive.pop().kill()
        if acknowledged >= args.writes and not killed:
            killed = True
            if args.signal != "NONE":
                os.kill(args.pid, signal.Signals["SIG" + args.signal])

    def writer(number):
        rand = random.Random(args.seed * 100 + number)
        h = connect()
        stripes = range(number, (size + STRIPE - 1) // STRIPE, THREADS)
        while not (killed and args.signal == "NONE"):
            start = rand.choice(stripes) * STRIPE
            end = min(start + STRIPE, size)
            offset = rand.randint(start, end - 1)
            data = rand.randbytes(rand.randint(1, end - offset))
            try:
                h.pwrite(data, offset, nbd.CMD_FLAG_FUA)
            except nbd.Error as e:
                with lock:
                    pending.append((offset, data))
                    if not killed:
                        unexpected.append(str(e))
                return
            with lock:
                model[offset:offset + len(data)] = data
                acknowledge()

    threads = [threading.Thread(target=writer, args=(i,))
               for i in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for v in vandals:
        v.kill()
        v.join()
    if unexpected:
        sys.exit("fua-kill.py: a write failed: " + unexpected[0])
    with open(args.model, "wb") as f:
        f.write(model)
    with open(args.model + ".pending", "wb") as f:
        pickle.dump(pending, f)
    print("%d acknowledged, %d without an answer"
          % (acknowledged, len(pending)))


def check():
    allowed = {}
    if os.path.exists(args.model + ".pending"):
        with open(args.model + ".pending", "rb") as f:
            for offset, data in pickle.load(f):
                for i, byte in enumerate(data):
                    allowed[offset + i] = byte
    h = connect()
    if h.get_size() < size:
        sys.exit("fua-kill.py: the size is %d" % h.get_size())
    for offset in range(0, size, 1 << 20):
        n = min(1 << 20, size - offset)
        data = h.pread(n, offset)
        if data == model[offset:offset + n]:
            continue
        for i in range(n):
            got = data[i]
            if got != model[offset + i]:
                if allowed.get(offset + i) != got:
                    sys.exit("fua-kill.py: byte %d is %02x, should be %02x"
                             % (offset + i, got, model[offset + i]))
                model[offset + i] = got
    h.shutdown()
    with open(args.model, "wb") as f:
        f.write(model)
    if os.path.exists(args.model + ".pending"):
        os.unlink(args.model + ".pending")


{"kill": kill, "check": check}[args.command]()
