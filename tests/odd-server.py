#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""An NBD server that behaves in unusual or wrong ways.

  odd-server.py SOCKET PIDFILE FILE [OPTION...]

It serves FILE, read-only, to clients of the fixed newstyle handshake.  Without
options it is an ordinary server.  It ends with SIGTERM, and then logs how often
it did what the options say.  A request that the protocol, or what the server
has announced, does not allow is logged as a violation, and ends the
connection.
"""

import argparse
import asyncio
import os
import random
import signal
import struct

p = argparse.ArgumentParser()
p.add_argument("socket")
p.add_argument("pidfile")
p.add_argument("file")
p.add_argument("--no-structured", action="store_true",
               help="no structured replies, and so no block status")
p.add_argument("--no-multi-conn", action="store_true")
p.add_argument("--no-go", action="store_true",
               help="NBD_OPT_EXPORT_NAME only, as old servers")
p.add_argument("--size", type=int,
               help="size to announce, instead of the file's")
p.add_argument("--minimum", type=int, default=1, help="block size")
p.add_argument("--preferred", type=int, default=4096)
p.add_argument("--maximum", type=int, default=32 << 20, help="block size")
p.add_argument("--delay", type=float, default=0,
               help="milliseconds: the longest random delay of a reply")
p.add_argument("--wait", type=float, default=0,
               help="milliseconds: a constant delay of each reply")
p.add_argument("--reverse", action="store_true",
               help="requests within 2 ms are answered in reverse order")
p.add_argument("--extents", default="right", choices=(
    "right",
    "short",      # one only, for less than was asked
    "beyond",     # the last goes beyond the request, with a wrong state
    "more",       # the same, with further ones after it
    "empty",      # some of length zero, first and between others
    "nothing",    # only one, of length zero
    "none",       # a reply without extents
    "silence",    # success without a reply of extents
    "twice",      # the right reply, and another one: everything is zero
    "context",    # first "everything is zero", for a context not asked for
    "odd",        # half an extent
    "error",
    "flags",      # unknown flags are set
    "bytes",      # each byte is an extent, and every other one is zero
    "holes",      # one hole, which need not be zero
))
p.add_argument("--reads", default="right", choices=(
    "right",
    "chunks",     # in chunks of all sizes, the last first, zeroes as holes
))
p.add_argument("--fault", choices=(
    "magic",      # a wrong magic
    "cookie",     # a reply without a request
    "cut",        # half of the reply, and the connection ends
    "twice",      # two replies
    "beyond",     # a chunk with more than was asked for
    "gap",        # the first half is left out, and success
    "less",       # the second half is left out, and success
    "type",       # a block status for a read
    "shutdown",   # NBD_ESHUTDOWN, and the third time the connection ends
    "garbage",    # random bytes
))
p.add_argument("--handshake", default="right", choices=(
    "right",
    "close",      # the connection ends after it
    "contexts",   # metadata contexts without end
    "silent",     # the server sends nothing
))
p.add_argument("--trickle", type=float, metavar="MILLISECONDS",
               help="time between two bytes of the replies to reads, and of "
               "everything after them on this connection")
p.add_argument("--silent", action="store_true",
               help="requests are not answered")
p.add_argument("--when", metavar="FILE",
               help="faults, silence and trickling only while FILE exists")
p.add_argument("--after", type=int, default=0, help="reads without the fault")
p.add_argument("--every", type=int, default=1,
               help="the next read has it, and every Nth after that")
args = p.parse_args()

BLOCK = 4096
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668e33ef
READ, DISC, BLOCK_STATUS = 0, 2, 7
DONE = 1
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, ERROR = 0, 1, 2, 5, 0x8001
HOLE, ZERO = 1, 2
EIO, EINVAL, ESHUTDOWN = 5, 22, 108
HAS_FLAGS, READ_ONLY, SEND_DF, MULTI_CONN = 1, 2, 128, 256
CONTEXT = 7

with open(args.file, "rb") as f:
    data = f.read()
size = len(data)
is_zero = [not any(data[i:i + BLOCK]) for i in range(0, size, BLOCK)]
# The same requests have the same answers in each run.
rand = random.Random(1)
counts = {"reads": 0, "faults": 0, "overtaken": 0}


class Violation(Exception):
    pass


def true_extents(offset, count):
    """[(length, flags)...] of the range, neighbours merged."""
    result = []
    end = offset + count
    while offset < end:
        n = min(BLOCK - offset % BLOCK, end - offset)
        flags = HOLE | ZERO if is_zero[offset // BLOCK] else 0
        if result and result[-1][1] == flags:
            result[-1] = (result[-1][0] + n, flags)
        else:
            result.append((n, flags))
        offset += n
    return result


def simple(cookie, error, payload=b""):
    return struct.pack(">IIQ", SIMPLE_MAGIC, error, cookie) + payload


def chunk(cookie, kind, payload=b"", flags=0):
    return struct.pack(">IHHQI", CHUNK_MAGIC, flags, kind, cookie,
                       len(payload)) + payload


def offset_data(cookie, offset, end, flags=0):
    return chunk(cookie, OFFSET_DATA,
                 struct.pack(">Q", offset) + data[offset:end], flags)


def status_chunk(cookie, extents, flags=0, context=CONTEXT):
    payload = struct.pack(">I", context)
    for length, bits in extents:
        payload += struct.pack(">II", length, bits)
    return chunk(cookie, STATUS, payload, flags)


def is_time():
    return args.when is None or os.path.exists(args.when)


class Trickle:
    """A writer that sends byte after byte."""

    def __init__(self, writer):
        print("trickling", flush=True)
        self.writer = writer
        self.data = bytearray()
        self.task = asyncio.ensure_future(self.run())

    async def run(self):
        try:
            while not self.writer.is_closing():
                self.writer.write(bytes(self.data[:1]))
                del self.data[:1]
                await self.writer.drain()
                await asyncio.sleep(args.trickle / 1000)
        except ConnectionError:
            pass

    def write(self, data):
        self.data += data

    async def drain(self):
        pass

    def is_closing(self):
        return self.writer.is_closing()

    def close(self):
        self.writer.close()


class Connection:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.structured = self.context = False
        self.order = 0        # of the next request
        self.answered = -1    # the latest that was
        self.batch = []       # --reverse
        self.tasks = set()

    # The handshake.

    async def run(self):
        try:
            if await self.handshake() and args.handshake != "close":
                while await self.request():
                    pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Violation as e:
            print("violation: %s" % e, flush=True)
        self.writer.close()

    async def get(self, fmt):
        return struct.unpack(
            fmt, await self.reader.readexactly(struct.calcsize(fmt)))

    def option_reply(self, option, kind, payload=b""):
        self.writer.write(struct.pack(">QIII", 0x3e889045565a9, option, kind,
                                      len(payload)) + payload)

    def flags(self):
        return (HAS_FLAGS | READ_ONLY | (SEND_DF if self.structured else 0) |
                (0 if args.no_multi_conn else MULTI_CONN))

    def export(self):
        return struct.pack(">QH", size if args.size is None else args.size,
                           self.flags())

    async def handshake(self):
        if args.handshake == "silent":
            await self.reader.read()
            return False
        self.writer.write(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        client_flags, = await self.get(">I")
        while True:
            magic, option, length = await self.get(">8sII")
            payload = await self.reader.readexactly(length)
            if magic != b"IHAVEOPT":
                raise Violation("an option's magic")
            if option == 1:  # NBD_OPT_EXPORT_NAME
                zeroes = b"" if client_flags & 2 else bytes(124)
                self.writer.write(self.export() + zeroes)
                return True
            if option == 2:  # NBD_OPT_ABORT
                self.option_reply(option, 1)
                return False
            if option == 10 and args.handshake == "contexts":
                await self.endless_contexts(option)
            if self.negotiate(option, payload):
                return True

    async def endless_contexts(self, option):
        name = b"odd:" + 4000 * b"x"
        reply = struct.pack(">QIIII", 0x3e889045565a9, option, 4,
                            4 + len(name), CONTEXT) + name
        while True:
            self.writer.write(reply * 1000)
            await self.writer.drain()

    def negotiate(self, option, payload):
        ack, info, meta, unsupported = 1, 3, 4, (1 << 31) + 1
        if option == 7 and not args.no_go:  # NBD_OPT_GO
            self.option_reply(option, info,
                              struct.pack(">H", 0) + self.export())
            self.option_reply(option, info, struct.pack(
                ">HIII", 3, args.minimum, args.preferred, args.maximum))
            self.option_reply(option, ack)
            return True
        if option == 8 and not args.no_structured:
            self.structured = True
            self.option_reply(option, ack)
        elif option == 10 and self.structured:  # NBD_OPT_SET_META_CONTEXT
            self.context = b"base:allocation" in payload
            if self.context:
                self.option_reply(option, meta, struct.pack(">I", CONTEXT) +
                                  b"base:allocation")
            if args.extents == "context":
                self.option_reply(option, meta, struct.pack(">I", CONTEXT + 1) +
                                  b"odd:context")
            self.option_reply(option, ack)
        else:
            self.option_reply(option, unsupported)
        return False

    # Requests.

    async def request(self):
        magic, flags, kind, cookie, offset, count = await self.get(">IHHQQI")
        if kind == DISC:
            # What is under way is answered nevertheless.
            await asyncio.gather(*self.tasks)
            return False
        self.check(magic, kind, offset, count)
        order, self.order = self.order, self.order + 1
        if args.reverse:
            self.batch.insert(0, (order, kind, cookie, offset, count))
            if len(self.batch) == 1:
                self.start(self.answer_batch())
        elif args.delay or args.wait:
            self.start(self.answer_later(order, kind, cookie, offset, count))
        else:
            self.answer(order, kind, cookie, offset, count)
            await self.writer.drain()
        return True

    def check(self, magic, kind, offset, count):
        what = "type %d, %d+%d" % (kind, offset, count)
        if magic != REQUEST_MAGIC:
            raise Violation("a request's magic")
        if kind not in (READ, BLOCK_STATUS):
            raise Violation(what + ": only reading is allowed")
        if count == 0 or offset + count > size:
            raise Violation(what + ": out of range")
        if kind == BLOCK_STATUS and not self.context:
            raise Violation(what + ": was not negotiated")
        if kind == READ and count > args.maximum:
            raise Violation(what + ": too large")
        if not args.no_go and (offset % args.minimum or
                               (count % args.minimum and
                                offset + count != size)):
            raise Violation(what + ": not aligned")

    def start(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer_batch(self):
        await asyncio.sleep(0.002)
        batch, self.batch = self.batch, []
        for request in batch:
            self.answer(*request)

    async def answer_later(self, *request):
        await asyncio.sleep((args.wait + rand.random() * args.delay) / 1000)
        self.answer(*request)

    def answer(self, order, kind, cookie, offset, count):
        if order < self.answered:
            counts["overtaken"] += 1
        self.answered = max(order, self.answered)
        if self.writer.is_closing():
            return
        if args.silent and is_time():
            return
        if kind == BLOCK_STATUS:
            self.writer.write(self.status_reply(cookie, offset, count))
            return
        counts["reads"] += 1
        n = counts["reads"] - args.after
        if args.trickle and is_time() and not isinstance(self.writer, Trickle):
            self.writer = Trickle(self.writer)
        if args.fault and is_time() and n > 0 and (n - 1) % args.every == 0:
            self.fault(cookie, offset, count)
        else:
            self.writer.write(self.read_reply(cookie, offset, count))

    def read_reply(self, cookie, offset, count):
        end = offset + count
        if not self.structured:
            return simple(cookie, 0, data[offset:end])
        if args.reads == "right":
            return offset_data(cookie, offset, end, DONE)
        chunks = []
        for length, flags in true_extents(offset, count):
            while length > 0:
                n = length if flags else min(length, rand.randint(1, 50000))
                chunks.append(chunk(cookie, OFFSET_HOLE,
                                    struct.pack(">QI", offset, n)) if flags
                              else offset_data(cookie, offset, offset + n))
                offset += n
                length -= n
        return b"".join(reversed(chunks)) + chunk(cookie, NONE, flags=DONE)

    def bytes_reply(self, cookie, offset, count):
        """As much as fits into the largest chunk that clients accept."""
        n = min(count, (64 << 20) // 8 - 1)  # extents
        pair = [struct.pack(">II", 1, flags) for flags in (0, HOLE | ZERO)]
        if offset % 2:
            pair.reverse()
        payload = (b"".join(pair) * (n // 2 + 1))[:n * 8]
        return chunk(cookie, STATUS, struct.pack(">I", CONTEXT) + payload, DONE)

    def status_reply(self, cookie, offset, count):
        if args.extents == "bytes":
            return self.bytes_reply(cookie, offset, count)
        extents = true_extents(offset, count)
        kind = args.extents
        lie = [(0xfffff000, ZERO | HOLE)]
        if kind == "short":
            length, flags = extents[0]
            least = min(length, 65536)
            extents = [(rand.randint(1, least) if args.minimum == 1
                        else least, flags)]
        elif kind == "beyond":
            extents[-1] = (0xfffff000, extents[-1][1])
        elif kind == "more":
            extents += lie * 3
        elif kind == "empty":
            extents = [pair for e in extents for pair in ((0, 3 - e[1]), e)]
        elif kind == "nothing":
            extents = [(0, ZERO | HOLE)]
        elif kind == "none":
            extents = []
        elif kind == "silence":
            return chunk(cookie, NONE, flags=DONE)
        elif kind == "twice":
            return (status_chunk(cookie, extents) +
                    status_chunk(cookie, lie, DONE))
        elif kind == "context":
            return (status_chunk(cookie, lie, context=CONTEXT + 1) +
                    status_chunk(cookie, extents, DONE))
        elif kind == "odd":
            return chunk(cookie, STATUS,
                         struct.pack(">III", CONTEXT, count, ZERO)[:-2], DONE)
        elif kind == "error":
            return chunk(cookie, ERROR, struct.pack(">IH", EIO, 0), DONE)
        elif kind == "flags":
            extents = [(n, flags | 0xfffffff4) for n, flags in extents]
        elif kind == "holes":
            extents = [(count, HOLE)]
        return status_chunk(cookie, extents, DONE)

    def fault(self, cookie, offset, count):
        right = self.read_reply(cookie, offset, count)
        end, half = offset + count, offset + count // 2
        wrong = b"\xbd" * count
        write = self.writer.write
        kind = args.fault
        counts["faults"] += 1
        if kind == "magic":
            write(struct.pack(">I", 0xbadbadba) + right[4:])
        elif kind == "cookie":
            write(self.read_reply(cookie ^ (1 << 40), offset, count))
        elif kind == "cut":
            write(right[:len(right) // 2])
            self.writer.close()
        elif kind == "twice":
            write(right + right)
        elif kind == "garbage":
            write(wrong)
        elif kind == "shutdown":
            write(chunk(cookie, ERROR, struct.pack(">IH", ESHUTDOWN, 0), DONE)
                  if self.structured else simple(cookie, ESHUTDOWN))
            if counts["faults"] % 3 == 0:
                self.writer.close()
        # The others need structured replies.
        elif kind == "beyond":
            write(chunk(cookie, OFFSET_DATA, struct.pack(">Q", offset + 1) +
                        wrong, DONE))
        elif kind == "gap":
            write(offset_data(cookie, half, end, DONE))
        elif kind == "less":
            write(offset_data(cookie, offset, half, DONE))
        elif kind == "type":
            write(status_chunk(cookie, [(count, ZERO)], DONE))


async def main():
    stopped = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: stopped.done() or stopped.set_result(None))

    async def serve(reader, writer):
        await Connection(reader, writer).run()

    if os.path.exists(args.socket):
        os.unlink(args.socket)
    await asyncio.start_unix_server(serve, args.socket, limit=1 << 20)
    with open(args.pidfile, "w") as f:
        print(os.getpid(), file=f)
    await stopped
    print("reads: %(reads)d, faults: %(faults)d, overtaken: %(overtaken)d"
          % counts, flush=True)
    os.unlink(args.socket)
    os._exit(0)


asyncio.run(main())
