# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# A second reader of the metadata, written from nbdclone-metadata(5) alone, and
# what it takes to damage a store on purpose.
#
#   metadata.py decode FILE           JSON, or an error where it is not valid
#   metadata.py fingerprint DISK      of a source, a JSON array
#   metadata.py example POD           the example of the manual page, to stdout
#   metadata.py flip FILE OFFSET      change a byte
#   metadata.py zero FILE OFFSET COUNT
#   metadata.py superblock FILE COPY OFFSET LENGTH VALUE
#   metadata.py bitmap FILE SECTOR BYTE VALUE
#                                     change a field, with a right CRC

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


def decode_superblock(sb):
    size, region_size, flags = u64(sb, 40), u64(sb, 48), u32(sb, 56)
    if sb[:8] != b"NBDCLONE" or u32(sb, 8) != 1 or \
       u32(sb, 12) != superblock_crc(sb):
        return None
    if not 1 <= size < 1 << 63 or region_size & (region_size - 1) or \
       not 4096 <= region_size <= 1 << 30 or \
       -(-size // region_size) > 1 << 31:
        return None
    if flags > 3 or any(sb[60:64]) or any(sb[192:]):
        return None
    return {
        "uuid": str(uuid.UUID(bytes=sb[16:32])), "version": 1,
        "generation": u64(sb, 32), "size": size, "region_size": region_size,
        "flags": {"clean": bool(flags & 1), "complete": bool(flags & 2)},
        "fingerprint": ["%08x" % u32(sb, 64 + 4 * i) for i in range(32)],
    }


def decode(data):
    sbs = [decode_superblock(data[o:o + 512]) for o in COPIES]
    if sbs[0] and sbs[1]:
        for key in "uuid", "size", "region_size", "fingerprint":
            assert sbs[0][key] == sbs[1][key], key
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


def fingerprint(disk):
    size = len(disk)
    head = (0, 4096, 8192, 12288, 1048576, 1114112)
    out = []
    for i in range(32):
        if size <= 131072:
            start, end = size * i // 32, size * (i + 1) // 32
        else:
            if i < 6 and head[i] + 4096 <= size:
                start = head[i]
            elif i == 31:
                start = size - 4096
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


def main(command, path, *args):
    args = [int(a, 0) for a in args]
    if command == "decode":
        print(json.dumps(decode(read(path))))
    elif command == "fingerprint":
        print(json.dumps(fingerprint(read(path))))
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
        sb[12:16] = struct.pack("<I", superblock_crc(bytes(sb)))
        write(path, COPIES[copy], sb)
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
