#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""An NBD client that stays connected and does what it is told.

  told-client.py URI SOURCE

Each line of standard input has requests, which are done in their order.  A
region is 64 KiB:

  write REGION BYTE   zero REGION   trim REGION   cache REGION   flush
  part REGION BYTE    write 512 bytes in the region's middle
  zero_part REGION    zero the same bytes
  fua REGION BYTE     as write, with FUA
  read REGION BYTE    where BYTE fills the region, or is `source'
  exit

A request after `EIO', `ENOSPC' or `ENOTCONN' must fail with this error; one
after `maybe' may fail with EIO.  Each line is answered with a line: "ok", or
what was wrong; in that case the line's other requests were not done.
"""

import errno
import sys

import nbd

R = 65536
uri, source = sys.argv[1:]
with open(source, "rb") as f:
    src = f.read()
h = nbd.NBD()
h.connect_uri(uri)


class Wrong(Exception):
    pass


def must_read(region, byte):
    data = h.pread(R, region * R)
    expected = (src[region * R:(region + 1) * R] if byte == "source"
                else byte.encode() * R)
    if data != expected:
        raise Wrong("it begins with %r" % data[:16])


def leave():
    try:
        h.shutdown()
    except nbd.Error:
        pass
    sys.exit(0)


requests = {
    "write": lambda n, byte: h.pwrite(byte.encode() * R, n * R),
    "fua": lambda n, byte: h.pwrite(byte.encode() * R, n * R,
                                    nbd.CMD_FLAG_FUA),
    "part": lambda n, byte: h.pwrite(byte.encode() * 512, n * R + R // 2),
    "read": must_read,
    "zero": lambda n: h.zero(R, n * R),
    "zero_part": lambda n: h.zero(512, n * R + R // 2),
    "trim": lambda n: h.trim(R, n * R),
    "cache": lambda n: h.cache(R, n * R),
    "flush": lambda: h.flush(),
    "exit": leave,
}


def obey(words):
    """Does the first request of the list, and removes it."""
    want = (None,)
    word = words.pop(0)
    if word in ("EIO", "ENOSPC", "ENOTCONN"):
        want, word = (word,), words.pop(0)
    elif word == "maybe":
        want, word = (None, "EIO"), words.pop(0)
    function = requests[word]
    n = function.__code__.co_argcount
    args, words[:n] = words[:n], []
    said = " ".join([word] + args)
    if args:
        args[0] = int(args[0])
    got = None
    try:
        function(*args)
    except nbd.Error as e:
        got = errno.errorcode[e.errnum]
    except Wrong as e:
        raise Wrong("%s: %s" % (said, e))
    if got not in want:
        raise Wrong("%s: %s, and should be %s" % (said, got, want[-1]))


for line in sys.stdin:
    words = line.split()
    try:
        while words:
            obey(words)
        print("ok", flush=True)
    except Wrong as e:
        print(e, flush=True)
