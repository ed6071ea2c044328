"""Right checksums over wrong content: what somebody writes who knows the format and has no key."""

from __future__ import annotations

import struct
from typing import Final

import xxhash

_U64: Final = struct.Struct("<Q")
_FOOTER: Final = struct.Struct("<8sIIQ")  # of a pack: magic, frames, zero, offset of the table
_ROW: Final = struct.Struct("<32sQIIII")  # frame row: id, offset, size, length, chunks, pack
_CELL: Final = 64 * 1024
_TAG: Final = 16


def with_right_checksums(name: str, content: bytearray) -> None:
    """Make every checksum of an object right again, in place. What has none, or is out of shape, stays as it is.

    Args:
        name: Of the object.
    """
    if name.endswith(".pack"):
        _pack(content)
    elif name.endswith(".idx"):
        _segment(content)
    elif content.startswith(b"VADSEAL2") and len(content) > 8:
        _put(content, len(content) - 8, content[:-8])


def _put(content: bytearray, place: int, *over: bytes | bytearray) -> None:
    _U64.pack_into(content, place, xxhash.xxh3_64_intdigest(b"".join(over)))


def _pack(content: bytearray) -> None:
    end = len(content) - _FOOTER.size - 8
    if end < 48:
        return
    _put(content, 40, content[:40])
    _, count, _, table = _FOOTER.unpack_from(content, end)
    if table + count * _ROW.size != end:
        return
    for row in range(count):
        _, offset, size, *_ = _ROW.unpack_from(content, table + row * _ROW.size)
        if offset >= 48 and size >= 64 and offset + size <= table:
            _put(content, offset + 56, content[offset : offset + 56], content[offset + 64 : offset + size])
    _put(content, len(content) - 8, content[table:-8])


def _segment(content: bytearray) -> None:
    if len(content) < 136:
        return
    epoch = int.from_bytes(content[52:56], "little")
    listed = 8 + (_TAG if epoch else 0)
    cells = -(-(len(content) - 128) // (_CELL + listed))
    begin = len(content) - cells * listed
    for cell in range(cells):
        low = 128 + cell * _CELL
        _put(content, begin + 8 * cell, content[low : min(low + _CELL, begin)])
    _put(content, 56, content[begin:])
    _put(content, 120, content[:120])
