# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Writes a partition table into an image of 64 MiB: partitions.py KIND FILE
#
#   mbr       three primary partitions
#   logical   two primary partitions, and 30 logical ones
#   gpt       three partitions, sectors of 512 bytes
#   gpt-4096  the same with sectors of 4096 bytes
#
# The first partition begins at 1 MiB, the second at 5001216 bytes.

import struct
import sys

FIRST, SECOND, THIRD = 1 << 20, 5001216, 20 << 20


def entry(kind, sector):
    return struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), sector, 100)


def table(*entries):
    return b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def mbr(f):
    f.seek(446)
    f.write(table(entry(0x83, FIRST // 512), entry(0x07, SECOND // 512),
                  entry(0, 7), entry(0x83, THIRD // 512)))


def logical(f):
    extended = THIRD // 512
    f.seek(446)
    f.write(table(entry(0x83, FIRST // 512), entry(0x0f, extended),
                  entry(0x83, SECOND // 512)))
    for i in range(30):
        f.seek(512 * (extended + 200 * i) + 446)
        link = entry(0x05, 200 * (i + 1)) if i < 29 else b""
        f.write(table(entry(0x83, 3), link))


def gpt(f, s=512):
    f.seek(446)
    f.write(table(entry(0xee, 1)))
    f.seek(s)
    f.write(b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128))
    f.seek(2 * s)
    f.write(bytes(16384 - 2 * s))
    for i, start in (0, FIRST), (1, SECOND), (5, THIRD):
        f.seek(2 * s + 128 * i)
        f.write(bytes(range(1, 33)) + struct.pack("<Q", start // s))


def gpt_4096(f):
    gpt(f, 4096)


with open(sys.argv[2], "r+b") as f:
    globals()[sys.argv[1].replace("-", "_")](f)
