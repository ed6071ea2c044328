"""Partition tables: MBR with extended partitions, and GPT. A kernel over a function that reads.

Source: UEFI specification 2.10, chapter 5.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

Read = Callable[[int, int], bytes]

_GPT_SECTORS: Final = (512, 4096)
_MOST_ENTRIES: Final = 1024  # of a GPT; 128 are usual
_MOST_LOGICAL: Final = 128  # links of a chain of extended partitions
_EXTENDED: Final = (0x05, 0x0F, 0x85)
_PROTECTIVE: Final = 0xEE


@dataclass(frozen=True)
class Partition:
    """A partition. Bytes. `type`: a GUID in small letters, or a number as '0x83'. `name`: of a GPT."""

    number: int
    offset: int
    size: int
    type: str
    name: str = ""


def partitions(read: Read, size: int) -> list[Partition]:
    """The partitions of a disk by number; none where it has no table. What lies beyond the disk is left out.

    Args:
        read: Gives so many bytes at an offset, fewer at the end.
        size: Bytes of the disk.
    """
    mbr = read(0, 512)
    if len(mbr) < 512 or mbr[510:512] != b"\x55\xaa":
        return []
    rows = list(_rows(mbr))
    if any(kind == _PROTECTIVE for _, kind, _, _ in rows):
        for sector in _GPT_SECTORS:
            found = _gpt(read, size, sector)
            if found is not None:
                return found
        return []
    if any(flag not in (0, 0x80) for flag, _, _, _ in rows):
        return []  # the boot sector of a file system, or code
    return sorted(
        (each for each in _mbr(read, rows) if 0 < each.offset < size and each.size),
        key=lambda each: each.number,
    )


def _rows(sector: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Flag, type, first sector and number of sectors of the four rows of a table."""
    for at in range(446, 510, 16):
        flag, kind, first, count = struct.unpack_from("<B3xB3xII", sector, at)
        yield flag, kind, first, count


def _mbr(read: Read, rows: list[tuple[int, int, int, int]]) -> Iterator[Partition]:
    number = 5
    for place, (_, kind, first, count) in enumerate(rows, 1):
        if kind in _EXTENDED:
            base, at = first, first
            for _ in range(_MOST_LOGICAL):
                table = read(at * 512, 512)
                if len(table) < 512 or table[510:512] != b"\x55\xaa":
                    break
                (_, inner, start, length), (_, following, link, _), *_ = _rows(table)
                if inner:
                    yield Partition(number, (at + start) * 512, length * 512, f"{inner:#04x}")
                    number += 1
                if following not in _EXTENDED or not link:
                    break
                at = base + link
        elif kind:
            yield Partition(place, first * 512, count * 512, f"{kind:#04x}")


def _gpt(read: Read, size: int, sector: int) -> list[Partition] | None:
    """The entries of the first header, or of the backup at the end of the disk where that one is damaged."""
    for place in (1, size // sector - 1):
        header = read(place * sector, sector)
        if header[:8] != b"EFI PART":
            continue
        length, checksum = struct.unpack_from("<II", header, 12)
        if not 92 <= length <= sector or _checksum(header[:16] + bytes(4) + header[20:length]) != checksum:
            continue
        first, count, width, entries_checksum = struct.unpack_from("<QIII", header, 72)
        if width < 128 or width > sector or not 0 < count <= _MOST_ENTRIES:
            continue
        table = read(first * sector, count * width)
        if len(table) < count * width or _checksum(table) != entries_checksum:
            continue
        return list(_entries(table, width, sector, size))
    return None


def _entries(table: bytes, width: int, sector: int, size: int) -> Iterator[Partition]:
    for number in range(len(table) // width):
        entry = table[number * width :][:128]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and first <= last and first * sector < size:
            name = entry[56:128].decode("utf-16-le", "replace").split("\0")[0]
            kind = str(uuid.UUID(bytes_le=entry[:16]))
            yield Partition(number + 1, first * sector, (last + 1 - first) * sector, kind, name)


def _checksum(content: bytes) -> int:
    return zlib.crc32(content)
