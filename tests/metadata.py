# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# A second reader of the metadata, written from nbdclone-metadata(5) alone, and
# commands to damage a store on purpose.
#
#   metadata.py decode FILE           print JSON, or fail if it is not valid
#   metadata.py fingerprint DISK      print it, a JSON array
#   metadata.py old-fingerprint DISK  print it, without partitions
#   metadata.py example POD           write the manual page's example to stdout
#   metadata.py flip FILE OFFSET      flip a bit of a byte
#   metadata.py zero FILE OFFSET COUNT
#   metadata.py superblock FILE COPY OFFSET LENGTH VALUE
#   metadata.py bitmap FILE SECTOR BYTE VALUE
#                                     change a field, and the CRC with it
#   metadata.py version-1 FILE        turn it into a store of version 1

import json
import re
import struct
import sys
import uuid

COPIES = (0, 4096)
BITMAP = 8192


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def superblock_crc(sb):
    return crc32c(sb[:12] + bytes(4) + sb[16:])


def bitmap_crc(store_uuid, s, sector):
    return crc32c(store_uuid + struct.pack("<Q", s) + sector[:508])


def is_whole(sb):
    return sb[:8] == b"NBDCLONE" and u32(sb, 12) == superblock_crc(sb)


def is_supported(sb):
    version = u32(sb, 8)
    return version == 1 or version == 2 and u32(sb, 200) == 0


def decode_superblock(sb):
    if not is_whole(sb):
        return None
    assert is_supported(sb), "version or incompat features"
    version = u32(sb, 8)
    size, region_size, flags = u64(sb, 40), u64(sb, 48), u32(sb, 56)
    if not 1 <= size < 1 << 63 or region_size & (region_size - 1) or \
       not 4096 <= region_size <= 1 << 30 or \
       -(-size // region_size) > 1 << 31:
        return None
    if flags > 3 or any(sb[60:64]):
        return None
    features = {"compat": 0, "ro_compat": 0, "incompat": 0}
    destination = None
    if version == 1:
        if any(sb[192:]):
            return None
    else:
        features["compat"], features["ro_compat"] = u32(sb, 192), u32(sb, 196)
        inode, seconds, nanoseconds = struct.unpack_from("<QqI", sb, 208)
        if any(sb[204:208]) or any(sb[228:232]) or nanoseconds >= 10**9:
            return None
        if not any(sb[192:204]) and any(sb[232:]):
            return None
        if inode or seconds or nanoseconds:
            destination = {"inode": inode, "birth_seconds": seconds,
                           "birth_nanoseconds": nanoseconds}
    return {
        "uuid": str(uuid.UUID(bytes=sb[16:32])), "version": version,
        "generation": u64(sb, 32), "size": size, "region_size": region_size,
        "flags": {"clean": bool(flags & 1), "complete": bool(flags & 2)},
        "features": features, "destination": destination,
        "fingerprint": ["%08x" % u32(sb, 64 + 4 * i) for i in range(32)],
    }


def decode(data):
    sbs = [decode_superblock(data[o:o + 512]) for o in COPIES]
    if sbs[0] and sbs[1]:
        for key in "version", "uuid", "size", "region_size":
            assert sbs[0][key] == sbs[1][key], key
        if sbs[0]["version"] == 1:
            assert sbs[0]["fingerprint"] == sbs[1]["fingerprint"]
        elif sbs[0]["generation"] == sbs[1]["generation"]:
            assert data[:512] == data[4096:4608]
        which = sbs[1]["generation"] > sbs[0]["generation"]
    else:
        assert sbs[0] or sbs[1], "no superblock"
        which = sbs[0] is None
    out = sbs[which]
    out["superblock"] = "AB"[which]
    regions = out["regions"] = -(-out["size"] // out["region_size"])
    sectors = out["bitmap_sectors"] = -(-regions // 4032)
    assert len(data) >= -(-(BITMAP + 512 * sectors) // 4096) * 4096

    valid = []
    for s in range(sectors):
        sector = data[BITMAP + 512 * s:BITMAP + 512 * (s + 1)]
        assert sector[504:508] == b"CLBM", s
        assert u32(sector, 508) == \
            bitmap_crc(uuid.UUID(out["uuid"]).bytes, s, sector), s
        for i in range(4032):
            if sector[i // 8] >> i % 8 & 1:
                valid.append(4032 * s + i)
    assert not valid or valid[-1] < regions
    out["valid"] = len(valid)
    out["invalid"] = regions - len(valid)
    assert not out["flags"]["complete"] or len(valid) == regions

    out["runs"] = runs = []
    for r in valid:
        if runs and runs[-1]["first"] + runs[-1]["count"] == r:
            runs[-1]["count"] += 1
        else:
            runs.append({"first": r, "count": 1, "state": "valid"})
    return out


HEAD = (0, 4096, 8192, 12288, 1048576, 1114112)
EXTENDED = (0x05, 0x0f, 0x85)


def gpt_sectors(disk, s):
    """The first sectors of a GPT's partitions, or None without a GPT."""
    if disk[s:s + 8] != b"EFI PART":
        return None
    at = s * u64(disk, s + 72)
    count, size = u32(disk, s + 80), u32(disk, s + 84)
    found = []
    while size >= 128 and count > 0 and at + size <= 16384:
        if any(disk[at:at + 16]):
            found.append(u64(disk, at + 32))
        at += size
        count -= 1
    return found


def is_table(disk, e):
    return disk[512 * e + 510:512 * e + 512] == b"\x55\xaa"


def mbr_sectors(disk):
    def entry(e, i):
        at = 512 * e + 446 + 16 * i
        return disk[at + 4], u32(disk, at + 8)

    found, extended = [], None
    for i in range(4):
        kind, sector = entry(0, i)
        if kind in EXTENDED:
            extended = sector if extended is None else extended
        elif kind != 0:
            found.append(sector)
    e = extended
    for _ in range(25):
        if e is None or not is_table(disk, e):
            break
        kind, sector = entry(e, 0)
        if kind != 0:
            found.append(e + sector)
        kind, sector = entry(e, 1)
        e = extended + sector if kind in EXTENDED else None
    return found


def partitions(disk):
    if not is_table(disk, 0):
        return []
    for s in 512, 4096:
        sectors = gpt_sectors(disk, s)
        if sectors is not None:
            break
    else:
        s, sectors = 512, mbr_sectors(disk)
    starts = []
    for start in (s * sector for sector in sectors):
        if start + 4096 <= len(disk) and start not in HEAD and \
           start not in starts:
            starts.append(start)
    return starts[:25]


def fingerprint(disk, with_partitions):
    size = len(disk)
    starts = partitions(disk) if with_partitions and size > 131072 else []
    out = []
    for i in range(32):
        if size <= 131072:
            start, end = size * i // 32, size * (i + 1) // 32
        else:
            if i < 6 and HEAD[i] + 4096 <= size:
                start = HEAD[i]
            elif i == 31:
                start = size - 4096
            elif 0 <= i - 6 < len(starts):
                start = starts[i - 6]
            else:
                start = size // 32 * i // 4096 * 4096
            end = start + 4096
        out.append("%08x" % crc32c(disk[start:end]))
    return out


def example(pod):
    data = bytearray(12288)
    for m in re.finditer(r"^ ([0-9a-f]{8})((?: +[0-9a-f]{2}){16})$", pod,
                         re.MULTILINE):
        at = int(m[1], 16)
        data[at:at + 16] = bytes.fromhex(m[2])
    data[4096:4608] = data[:512]
    return bytes(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def seal(sb):
    """Give a superblock a right CRC."""
    sb[12:16] = struct.pack("<I", superblock_crc(bytes(sb)))
    return sb


def main(command, path, *args):
    args = [int(a, 0) for a in args]
    if command == "decode":
        print(json.dumps(decode(read(path))))
    elif command in ("fingerprint", "old-fingerprint"):
        print(json.dumps(fingerprint(read(path), command == "fingerprint")))
    elif command == "example":
        sys.stdout.buffer.write(example(read(path).decode()))
    elif command == "flip":
        write(path, args[0], bytes([read(path)[args[0]] ^ 0x10]))
    elif command == "zero":
        write(path, args[0], bytes(args[1]))
    elif command == "superblock":
        copy, at, length, value = args
        sb = bytearray(read(path)[COPIES[copy]:COPIES[copy] + 512])
        sb[at:at + length] = value.to_bytes(length, "little")
        write(path, COPIES[copy], seal(sb))
    elif command == "version-1":
        for at in COPIES:
            sb = bytearray(read(path)[at:at + 192]).ljust(512, b"\0")
            sb[8:12] = struct.pack("<I", 1)
            write(path, at, seal(sb))
    elif command == "bitmap":
        s, at, value = args
        data = read(path)
        sector = bytearray(data[BITMAP + 512 * s:BITMAP + 512 * (s + 1)])
        sector[at] = value
        sector[508:] = struct.pack("<I", bitmap_crc(data[16:32], s, sector))
        write(path, BITMAP + 512 * s, sector)
    else:
        sys.exit("no such command: " + command)


main(*sys.argv[1:])
