#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Writes the seeds: make-corpus.py DIRECTORY

DIRECTORY/metadata: input for fuzz-metadata.c, small stores, some valid and some
damaged in one way each.  DIRECTORY/settings: input for fuzz-settings.c.
"""

import os
import struct
import sys

FIX_SUPERBLOCKS, FIX_BITMAP, SAME_STORE, FIT, RAW = 1, 2, 4, 8, 16
FIX = FIX_SUPERBLOCKS | FIX_BITMAP
UUID = bytes(range(16))
PER_SECTOR = 63 * 64


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def superblock(regions, generation=1, flags=1, region_size=4096, short=0,
               version=2, compat=0, ro_compat=0, incompat=0, area=b""):
    tail = struct.pack("<IIIIQqII", compat, ro_compat, incompat, 0,
                       131073, 1767323045, 123456789, 0) + area
    if version == 1:
        tail = b""

    def image(crc):
        head = struct.pack("<8sII16sQQQII", b"NBDCLONE", version, crc, UUID,
                           generation, regions * region_size - short,
                           region_size, flags, 0)
        return (head.ljust(192, b"\0") + tail).ljust(512, b"\0")
    return image(crc32c(image(0)))


def sector(number, regions, valid):
    bits = 0
    for i in range(PER_SECTOR):
        region = number * PER_SECTOR + i
        if region < regions and valid(region):
            bits |= 1 << i
    words = bits.to_bytes(504, "little") + b"CLBM"
    return words + struct.pack(
        "<I", crc32c(UUID + struct.pack("<Q", number) + words))


def sectors(regions, valid):
    count = -(-regions // PER_SECTOR)
    return b"".join(sector(n, regions, valid) for n in range(count))


def none(region):
    return False


def every(region):
    return True


def some(region):
    return region % 3 == 0


def write(directory, name, data):
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, name), "wb") as f:
        f.write(data)


def settings(out):
    for name, text in {
        "rate": '{"hydration-rate": 1048576}',
        "threshold": '{"hydration-threshold": "16M", "hydration-rate": 0}',
        "batch": '{"hydration-batch-size": "64k"}',
        "unknown": '{"hydration": true}',
        "no-object": '[1]',
        "size": '8191P',
        "large": '9223372036854775807',
        "too-large": '8E',
    }.items():
        write(out, name, text.encode())


def metadata(out):
    def seed(name, how, *parts):
        write(out, name, bytes([how]) + b"".join(parts))

    a, b = superblock(100), superblock(100, 2)
    seed("new", 0, a, a, sectors(100, none))
    seed("half", 0, a, b, sectors(100, some))
    seed("b-counts", 0, a, superblock(100, 9, 0), sectors(100, some))
    seed("only-a", 0, a, bytes(512), sectors(100, some))
    seed("only-b", 0, bytes(512), a, sectors(100, some))
    full = superblock(100, 3, 3)
    seed("complete", 0, full, full, sectors(100, every))
    seed("not-complete", 0, full, full, sectors(100, some))
    seed("short-last", 0, *2 * [superblock(PER_SECTOR + 1, short=4095)],
         sectors(PER_SECTOR + 1, every))
    seed("three-sectors", 0, *2 * [superblock(3 * PER_SECTOR)],
         sectors(3 * PER_SECTOR, some))
    seed("large-regions", 0, *2 * [superblock(7, region_size=1 << 30)],
         sectors(7, some))
    seed("stray-bits", 0, a, a, sectors(4000, every))
    seed("swapped", 0, *2 * [superblock(2 * PER_SECTOR)],
         sector(1, 2 * PER_SECTOR, some), sector(0, 2 * PER_SECTOR, some))
    seed("nothing", 0, bytes(1536))
    seed("foreign", 0, b"QFI\xfb".ljust(1536, b"x"))
    seed("other-version", FIX_SUPERBLOCKS, a[:8], b"\3", a[9:], bytes(512))
    old, older = superblock(100, 2, version=1), superblock(100, version=1)
    seed("version-1", 0, old, older, sectors(100, some))
    seed("version-1-fixed", FIX | SAME_STORE, old, old, sectors(100, some))
    full = superblock(100, 3, 3, version=1)
    seed("version-1-complete", 0, full, full, sectors(100, every))
    for feature in "compat", "ro_compat", "incompat":
        with_it = superblock(100, 2, **{feature: 0x80000001}, area=b"area")
        seed(feature.replace("_", "-"), 0, a, with_it, sectors(100, some))
    seed("nothing-of-features", FIX_SUPERBLOCKS, a, a[:300], b"x", a[301:],
         sectors(100, some))
    seed("one-generation", 0, a, superblock(100, flags=0), sectors(100, some))
    seed("fixed", FIX | SAME_STORE, a, b, sectors(100, some))
    seed("fitted", FIX | SAME_STORE | FIT, a, b, sectors(100, none))
    raw = a.ljust(4096, b"\0") + b.ljust(4096, b"\0") + sectors(100, some)
    seed("raw", RAW, raw.ljust(12288, b"\0"))
    seed("cut", RAW, raw[:4700])


def main():
    metadata(os.path.join(sys.argv[1], "metadata"))
    settings(os.path.join(sys.argv[1], "settings"))


if __name__ == "__main__":
    main()
