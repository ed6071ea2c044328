"""Replies of a server as bytes, for one request each: simple ones, and chunks of structured ones. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from .export import Parts
from .negotiation import CONTEXT_ID
from .protocol import (
    HOLE,
    REPLY_DONE,
    REPLY_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    CommandFlag,
)

PIECE: Final = 1 << 20  # of a longer reply; about a frame of a repository

_LEAST_HOLE: Final = 16 << 10  # shorter ones are sent as zeros: a chunk costs about as much to send

_CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
_SIMPLE = struct.Struct(">IIQ")
_CONTEXT = struct.Struct(">I")
_EXTENT = struct.Struct(">II")
_ERROR = struct.Struct(">IH")  # error, length of a text
_OFFSET = struct.Struct(">Q")
_DATA_CHUNK = struct.Struct(">IHHQIQ")  # a chunk's head, and the offset of its data
_HOLE_CHUNK = struct.Struct(">IHHQIQI")  # the same, and the length of the hole
assert _CHUNK.size == REPLY_MAGIC.size + STRUCTURED_REPLY.size
assert _SIMPLE.size == REPLY_MAGIC.size + SIMPLE_REPLY.size

_ZEROS: Final = memoryview(bytes(PIECE))
_WHOLE: Final = int(CommandFlag.DONT_FRAGMENT)


class Asked(NamedTuple):
    """A request. `problem`: the error number that is all it gets; 0: it is served."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    problem: int


def simple(asked: Asked, problem: int) -> bytes:
    """The head of a simple reply, after which the bytes of a read come; or all of an error."""
    return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, problem, asked.cookie)


def extents(asked: Asked, states: Iterable[tuple[int, int]]) -> list[bytes | memoryview]:
    """The reply that tells extents: length and flags of each."""
    content = b"".join([_CONTEXT.pack(CONTEXT_ID), *(_EXTENT.pack(*each) for each in states)])
    return [_head(asked, Chunk.BLOCK_STATUS, len(content)), content]


def failure(asked: Asked, problem: int, offset: int | None) -> list[bytes | memoryview]:
    """The end of a structured reply that failed, where it is known at which offset."""
    if offset is None:
        return [_head(asked, Chunk.ERROR, _ERROR.size), _ERROR.pack(problem, 0)]
    content = _ERROR.pack(problem, 0) + _OFFSET.pack(offset)
    return [_head(asked, Chunk.ERROR_OFFSET, len(content)), content]


def chunks(asked: Asked, offset: int, parts: Parts, last: int) -> list[bytes | memoryview]:
    """The chunks of a structured reply to a read: holes that are worth it, and data between them."""
    whole = asked.flags & _WHOLE
    found: list[bytes | memoryview] = []
    data: list[bytes | memoryview] = []
    place = begun = offset
    left = len(parts)
    for part in parts:
        left -= 1
        if not isinstance(part, int):
            data.append(part)
            place += len(part)
        elif part < _LEAST_HOLE or whole:
            data.append(_ZEROS[:part])
            place += part
        else:
            if data:
                found += [_data_head(asked, begun, place, 0), *data]
                data = []
            done = 0 if left else last
            head = (STRUCTURED_REPLY_MAGIC, done, Chunk.HOLE, asked.cookie, HOLE.size)
            found.append(_HOLE_CHUNK.pack(*head, place, part))
            place += part
            begun = place
    if data:
        found += [_data_head(asked, begun, place, last), *data]
    return found or [_head(asked, Chunk.NONE, 0)]


def _data_head(asked: Asked, offset: int, end: int, flags: int) -> bytes:
    size = end - offset + 8
    return _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, Chunk.DATA, asked.cookie, size, offset)


def _head(asked: Asked, kind: int, size: int) -> bytes:
    """Of a chunk that is the last of its reply."""
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, REPLY_DONE, kind, asked.cookie, size)


def filled(parts: Parts) -> list[bytes | memoryview]:
    """The bytes of a range, its zeros too."""
    return [_ZEROS[:part] if isinstance(part, int) else part for part in parts]
