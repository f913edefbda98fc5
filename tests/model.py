#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Check an NBD export against a model of its content.

  model.py MODEL URI [--seed N] [--writes N] [--ops N] [--max-length N]
                     [--align N]

MODEL is a file with the content that the export should have.  First the whole
export is compared with it.  Then come N random writes at unaligned offsets
(--writes), or N random requests of all kinds (--ops), each checked against the
model, and another comparison at the end.  MODEL is updated, so that a later
call can go on, or a file can be compared with it.
"""

import argparse
import errno
import random
import sys

import nbd

p = argparse.ArgumentParser()
p.add_argument("model")
p.add_argument("uri")
p.add_argument("--seed", type=int, default=1)
p.add_argument("--writes", type=int, default=0)
p.add_argument("--ops", type=int, default=0)
p.add_argument("--max-length", type=int, default=4 << 20)
p.add_argument("--align", type=int, default=1)
p.add_argument("--kinds", default="read,write,zero,trim,flush,cache,extents",
               help="what --ops chooses from")
args = p.parse_args()

rand = random.Random(args.seed)
with open(args.model, "rb") as f:
    model = bytearray(f.read())
size = len(model)

h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(args.uri)


def die(msg):
    sys.exit("model.py: seed %d: %s" % (args.seed, msg))


if h.get_size() != size:
    die("the export has %d bytes, the model %d" % (h.get_size(), size))


def first_difference(a, b):
    for i in range(0, len(a), 4096):
        if a[i:i + 4096] != b[i:i + 4096]:
            for j in range(i, len(a)):
                if a[j] != b[j]:
                    return j
    return None


def check(offset, data, what):
    want = model[offset:offset + len(data)]
    if data != want:
        i = first_difference(data, want)
        die("%s: byte %d is %02x, should be %02x (request %d+%d)"
            % (what, offset + i, data[i], want[i], offset, len(data)))


def compare_all(what):
    offset = 0
    while offset < size:
        n = min(size - offset, rand.choice((65536, 1 << 20, 3 << 20)))
        check(offset, h.pread(n, offset), what)
        offset += n


def some_range():
    """Lengths of all magnitudes; offsets aligned to anything, or to nothing;
    the end of the disk more often than by chance."""
    length = rand.randint(1, min(size, 1 << rand.randint(0, 22),
                                 args.max_length))
    offset = rand.randint(0, size - length)
    align = rand.choice((1, 1, 1, 512, 4096, 65536))
    if rand.random() < 0.1:
        offset = size - length
    if align > 1 and offset >= align:
        offset -= offset % align
        if rand.random() < 0.5 and length > align:
            length -= length % align
    if args.align > 1:
        offset -= offset % args.align
        end = min(size, offset + length + args.align - 1)
        length = max(end - end % args.align - offset, args.align)
    return offset, length


def some_bytes(length):
    # Zeroes now and then: they may be treated specially.
    if rand.random() < 0.1:
        return bytes(length)
    return rand.randbytes(length)


def fua():
    return nbd.CMD_FLAG_FUA if rand.random() < 0.2 else 0


def op_read():
    offset, length = some_range()
    check(offset, h.pread(length, offset), "read")


def op_write():
    offset, length = some_range()
    data = some_bytes(length)
    h.pwrite(data, offset, fua())
    model[offset:offset + length] = data


def op_zero():
    offset, length = some_range()
    flags = fua()
    if rand.random() < 0.3:
        flags |= nbd.CMD_FLAG_NO_HOLE
    if h.can_fast_zero() and rand.random() < 0.3:
        flags |= nbd.CMD_FLAG_FAST_ZERO
    try:
        h.zero(length, offset, flags)
    except nbd.Error as e:
        if not (flags & nbd.CMD_FLAG_FAST_ZERO
                and e.errnum in (errno.EOPNOTSUPP, errno.ENOTSUP)):
            raise
        check(offset, h.pread(length, offset), "after a refused fast zero")
        return
    model[offset:offset + length] = bytes(length)


def op_trim():
    offset, length = some_range()
    h.trim(length, offset, fua())
    data = h.pread(length, offset)
    if data != model[offset:offset + length]:
        # Each byte is what it was, or zero.
        for i in range(length):
            if data[i] != 0 and data[i] != model[offset + i]:
                die("after trim %d+%d: byte %d is %02x, which it never was"
                    % (offset, length, offset + i, data[i]))
        model[offset:offset + length] = data


def op_flush():
    h.flush()


def op_cache():
    if h.can_cache():
        offset, length = some_range()
        h.cache(length, offset)


def op_extents():
    offset, length = some_range()
    flags = nbd.CMD_FLAG_REQ_ONE if rand.random() < 0.2 else 0
    got = []

    def extent(context, start, entries, err):
        if context == "base:allocation":
            got.append((start, entries))
        return 0

    h.block_status(length, offset, extent, flags)
    if len(got) != 1:
        die("block status %d+%d: %d replies" % (offset, length, len(got)))
    start, entries = got[0]
    if start != offset or len(entries) < 2:
        die("block status %d+%d: answered for %d" % (offset, length, start))
    for n, f in zip(entries[::2], entries[1::2]):
        if n == 0:
            die("block status %d+%d: an empty extent" % (offset, length))
        end = min(start + n, size)
        if f & nbd.STATE_ZERO and any(model[start:end]):
            die("block status: %d+%d is not zero" % (start, end - start))
        start += n


kinds = [k for k in args.kinds.split(",")]
weights = {"read": 4, "write": 6, "zero": 3, "trim": 2, "flush": 1,
           "cache": 1, "extents": 2}

compare_all("before")
for _ in range(args.writes):
    op_write()
for _ in range(args.ops):
    kind = rand.choices(kinds, [weights[k] for k in kinds])[0]
    globals()["op_" + kind]()
if args.writes or args.ops:
    compare_all("after")
    with open(args.model, "wb") as f:
        f.write(model)
h.shutdown()
