"""A streamOptimized VMDK, written by hand from the specification; qemu-img reads it too."""

import struct
import zlib

SECTOR, GRAIN_SECTORS, PER_TABLE = 512, 128, 512
GRAIN = GRAIN_SECTORS * SECTOR
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_OVERHEAD = 128


def _header(capacity, directory):
    fields = (b"KDMV", 3, 0x30001, capacity // SECTOR, GRAIN_SECTORS, 1, 20, PER_TABLE, 0, directory)
    return _HEADER.pack(*fields, _OVERHEAD, 0, b"\n \r\n", 1).ljust(SECTOR, b"\0")


def _descriptor(capacity):
    return (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        'createType="streamOptimized"\n\n'
        f'RDONLY {capacity // SECTOR} SPARSE "disk.vmdk"\n\n#DDB\nddb.adapterType = "lsilogic"\n'
    ).encode()


def _marker(sectors, kind):
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def stream(capacity, content, *, wrong_tables=False, end=True):
    """content: bytes by grain number."""
    out = bytearray(_header(capacity, _AT_END) + _descriptor(capacity))
    out += bytes(_OVERHEAD * SECTOR - len(out))
    tables = {}
    for number, data in sorted(content.items()):
        packed = zlib.compress(data.ljust(GRAIN, b"\0"))
        tables.setdefault(number // PER_TABLE, [0] * PER_TABLE)[number % PER_TABLE] = len(out) // SECTOR
        out += struct.pack("<QI", number * GRAIN_SECTORS, len(packed)) + packed
        out += bytes(-len(out) % SECTOR)
    count = -(-capacity // (GRAIN * PER_TABLE))
    directory = [0] * count
    for number, entries in tables.items():
        out += _marker(4, 1)
        directory[number] = len(out) // SECTOR
        shift = 1 if wrong_tables else 0
        out += struct.pack(f"<{PER_TABLE}I", *(entry and entry + shift for entry in entries))
    size = -(-count * 4 // SECTOR)
    out += _marker(size, 2)
    place = len(out) // SECTOR
    out += struct.pack(f"<{count}I", *directory).ljust(size * SECTOR, b"\0")
    out += _marker(1, 3) + _header(capacity, place)
    return bytes(out + bytes(SECTOR)) if end else bytes(out)
