"""What flows between stages.

A disk travels in ascending order and without a gap: every byte of it is in exactly one item, as data, as
zero, or as unchanged since the previous point. So a sink can prove before it publishes that nothing was
lost, and a changed range that became zero is a value of its own that overwrites what an older point had.

    Window                      which bytes to read, from an extents source
    Span | Zeros | Unchanged    the bytes, from ReadSpans
    CutSpan                     ... with the borders of its chunks
    DigestedSpan                ... with the identity of each chunk
    DedupedSpan                 ... with the place of each chunk in a frame, old or new
    FramedSpan                  the new frames, encoded; the buffer is gone

Facts about chunks are numpy columns, one row per chunk: never one Python object per chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer
from .extents import Extents

DIGEST_SIZE = 32

Digests = NDArray[np.uint8]  # shape (n, DIGEST_SIZE)
NO_FRAME = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


class Identity(Protocol):
    """How chunks are named. Two identities are equal when they give the same digests."""

    @property
    def name(self) -> str:
        """For messages, e.g. 'keyed BLAKE3'."""
        ...

    def digest(self, data: memoryview) -> bytes:
        """DIGEST_SIZE bytes. Any thread may call it."""
        ...


@dataclass(frozen=True)
class Window:
    """A range of the disk and what is known of it: `data` must be read, `zeros` reads as zero without being
    read, the rest is unchanged since the previous point. Bytes; extents hold absolute disk offsets."""

    offset: int
    length: int
    data: Extents
    zeros: Extents


@dataclass(frozen=True)
class Zeros:
    """A range of the disk that reads as zero. `read` bytes of it were read to find that out."""

    offset: int
    length: int
    read: int = 0


@dataclass(frozen=True)
class Unchanged:
    """A range of the disk that holds what the previous point holds there."""

    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of the disk, at most SPAN bytes and within one multiple of SPAN, with its bytes.

    The byte at disk offset `o` is `buffer.array[o - offset]`, and defined only inside `data`; `zeros` reads
    as zero, `zero_read` bytes of that were read to find it out; the rest is unchanged. Whoever takes a span and
    does not pass it on releases it.
    """

    offset: int
    length: int
    data: Extents
    zeros: Extents
    zero_read: int = 0
    buffer: Buffer

    def bytes_of(self, offset: int, length: int) -> NDArray[np.uint8]:
        """A view of the bytes at disk offset `offset`."""
        return self.buffer.array[offset - self.offset : offset - self.offset + length]

    def release(self) -> None:
        self.buffer.release()


@dataclass(frozen=True, kw_only=True)
class CutSpan(Span):
    """A span whose data is cut into chunks, in ascending order and covering `data` exactly.

    `chunk_offset`: int64 disk offsets; `chunk_length`: int64 bytes.
    """

    chunk_offset: NDArray[np.int64]
    chunk_length: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DigestedSpan(CutSpan):
    """A cut span with the digest of each chunk, one row each, computed by `identity`."""

    digest: Digests
    identity: Identity


@dataclass(frozen=True)
class PlannedFrame:
    """Consecutive new chunks that will be stored together: rows [first, last) of the span's columns."""

    number: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class DedupedSpan(DigestedSpan):
    """A digested span where each chunk has its place: byte `chunk_place` of frame number `chunk_frame`.

    `frames` are the new ones among them; `known` marks the rows that were stored before.
    """

    chunk_frame: NDArray[np.uint64]
    chunk_place: NDArray[np.int64]
    known: NDArray[np.bool_]
    frames: Sequence[PlannedFrame]


@dataclass(frozen=True)
class EncodedFrame:
    """A new frame as it will be stored. `codec` is what decodes `payload` to `length` bytes."""

    number: int
    codec: str
    length: int
    payload: bytes | memoryview
    chunk_length: NDArray[np.int64]
    digest: Digests


@dataclass(frozen=True, kw_only=True)
class FramedSpan:
    """A range of the disk whose chunks all have a place, with the new frames. Columns as in DedupedSpan."""

    offset: int
    length: int
    identity: Identity
    data: Extents
    zeros: Extents
    zero_read: int = 0
    chunk_offset: NDArray[np.int64]
    chunk_length: NDArray[np.int64]
    chunk_frame: NDArray[np.uint64]
    chunk_place: NDArray[np.int64]
    known: NDArray[np.bool_]
    frames: Sequence[EncodedFrame]


Gap = Zeros | Unchanged


@dataclass(frozen=True)
class Assignment:
    """Where the chunks of a span are stored, one row each; `frames` are new, `known` marks rows stored before."""

    frame: NDArray[np.uint64]
    place: NDArray[np.int64]
    known: NDArray[np.bool_]
    frames: Sequence[PlannedFrame]


class ChunkIndex(Protocol):
    """What knows which chunks are stored, for all disks of a point. Any thread may call it."""

    @property
    def identity(self) -> Identity:
        """How its chunks are named."""
        ...

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        """Give every chunk its place: an old one, or one in a new frame that is promised from now on."""
        ...
