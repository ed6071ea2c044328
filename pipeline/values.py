"""The values that flow between stages.

A disk travels in ascending order and without a gap: every byte of it is in exactly one item, as data, as zero, or
as unchanged since the previous point. So a sink can prove before it publishes that nothing was lost, and a changed
range that became zero is a value of its own that overwrites what an older point had.

    Window                      which bytes to read, from an extents source
    Span | Zeros | Unchanged    the bytes, from ReadSpans
    CutSpan                     a span and the borders of its chunks, from CutChunks
    DigestedSpan                a cut span and the digest of each chunk, from Digest; narrowed by Refine
    DedupedSpan                 a digested span and the place of each chunk in a frame, from Dedupe
    FramedSpan                  the new frames, encoded, from Compress; the buffer was given back

Each value holds the one before it and is no kind of it, so a stage cannot be given another stage's values.
Facts about chunks are numpy columns with one row per chunk, never one Python object per chunk.

An item of your own may be any object. The engine reads these attributes where an item has them:

    offset, length    bytes of the disk; the meters' position is the end of the last item
    data.total        bytes of data in it; the meters' count
    release()         called when an item is dropped instead of passed on

`Zeros` and `Unchanged` have no bytes, so kernels on threads never see them: they pass (see pipeline.lift).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, BufferPool
from .extents import Extents
from .units import SPAN

DIGEST_SIZE = 32

Digests = NDArray[np.uint8]  # shape (n, DIGEST_SIZE)
NO_FRAME = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True)
class Window:
    """A range of the disk: `data` must be read, `zeros` is zero without being read, the rest is unchanged.

    Offsets and lengths in bytes; extents hold absolute disk offsets.
    """

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
    """A range of the disk that holds what the previous point holds there. `read` bytes of it were read to find
    that out."""

    offset: int
    length: int
    read: int = 0


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of the disk, at most SPAN bytes and within one multiple of SPAN, with its bytes.

    The byte at disk offset `o` is `buffer.array[o - offset]`, and is defined only inside `data`. `zeros` reads as
    zero; `zero_read` bytes of it were read to find that out. The rest is unchanged; `unchanged_read` bytes of it
    were read to find that out. A stage that does not pass a span on releases it.
    """

    offset: int
    length: int
    data: Extents
    zeros: Extents
    zero_read: int = 0
    unchanged_read: int = 0
    buffer: Buffer

    @classmethod
    def of(cls, data: bytes | memoryview, offset: int = 0, *, pool: BufferPool | None = None) -> Span:
        """A span of data that is a copy of the given bytes; no event loop is needed.

        Args:
            data: 1 to SPAN bytes.
            offset: Where they lie on the disk, in bytes.
            pool: Where the buffer is taken from; by default the span gets memory of its own.

        Raises:
            ValueError: The range crosses a multiple of SPAN.
            trio.WouldBlock: The pool has no free buffer.
        """
        length = len(data)
        if not length or offset // SPAN != (offset + length - 1) // SPAN:
            raise ValueError(
                f"{length} bytes at {offset} are no span: it lies between two multiples of {SPAN} bytes."
            )
        buffer = (pool or BufferPool(SPAN)).acquire_nowait()
        buffer.array[:length] = np.frombuffer(data, dtype=np.uint8)
        return cls(
            offset=offset,
            length=length,
            data=Extents.whole(length, offset),
            zeros=Extents.empty(),
            buffer=buffer,
        )

    def bytes_of(self, offset: int, length: int) -> NDArray[np.uint8]:
        """A view of the bytes at disk offset `offset`."""
        return self.buffer.array[offset - self.offset : offset - self.offset + length]

    def release(self) -> None:
        self.buffer.release()


class _Carrier:
    """A value that holds a span: its range, and giving its buffer back."""

    if TYPE_CHECKING:

        @property
        def span(self) -> Span: ...

    @property
    def offset(self) -> int:
        return self.span.offset

    @property
    def length(self) -> int:
        return self.span.length

    @property
    def data(self) -> Extents:
        return self.span.data

    def release(self) -> None:
        self.span.release()


@dataclass(frozen=True)
class CutSpan(_Carrier):
    """A span whose data is cut into chunks, in ascending order and covering `span.data` exactly.

    `chunk_offset`: int64 disk offsets. `chunk_length`: int64 bytes.
    """

    span: Span  # pyright: ignore[reportIncompatibleMethodOverride]  # a field reads like a property
    chunk_offset: NDArray[np.int64]
    chunk_length: NDArray[np.int64]


class Identity(Protocol):
    """A way to name chunks: equal bytes have equal digests, other bytes have others.

    Identities are compared with `==`: two that are equal name every chunk alike. A store has one identity; chunks
    that were named by another one can never be found in it again.
    """

    @property
    def name(self) -> str:
        """For messages, e.g. 'blake3'."""
        ...

    def digest(self, data: memoryview) -> bytes:
        """DIGEST_SIZE bytes. Several threads may call it at once."""
        ...


@dataclass(frozen=True)
class DigestedSpan(_Carrier):
    """A cut span with the digest of each chunk, one row each, as `identity` makes them."""

    cut: CutSpan
    digest: Digests
    identity: Identity

    @property
    def span(self) -> Span:
        return self.cut.span


@dataclass(frozen=True)
class PlannedFrame:
    """New chunks that will be stored together: those of the rows [first, last) that are not `known`."""

    number: int
    first: int
    last: int


@dataclass(frozen=True)
class Assignment:
    """Where the chunks of a span are or will be stored, one row each.

    Byte `place` of frame number `frame`; `known` marks the rows that were stored before. `frames` are the new
    frames that hold the others.
    """

    frame: NDArray[np.uint64]
    place: NDArray[np.int64]
    known: NDArray[np.bool_]
    frames: Sequence[PlannedFrame]


@dataclass(frozen=True)
class DedupedSpan(_Carrier):
    """A digested span where each chunk has its place in a frame, old or new."""

    digested: DigestedSpan
    assignment: Assignment

    @property
    def span(self) -> Span:
        return self.digested.span


@dataclass(frozen=True)
class EncodedFrame:
    """A new frame as it will be stored. `codec` names what decodes `payload` to `length` bytes."""

    number: int
    codec: str
    length: int
    payload: bytes | memoryview
    chunk_length: NDArray[np.int64]
    digest: Digests


@dataclass(frozen=True, kw_only=True)
class FramedSpan:
    """A range of the disk whose chunks all have a place, with the new frames. Its buffer was given back.

    Columns with one row per chunk: `chunk_offset` (disk offsets), `chunk_length` (bytes), and those of Assignment.
    `identity` named the chunks.
    """

    offset: int
    length: int
    data: Extents
    zeros: Extents
    zero_read: int = 0
    unchanged_read: int = 0
    identity: Identity
    chunk_offset: NDArray[np.int64]
    chunk_length: NDArray[np.int64]
    chunk_frame: NDArray[np.uint64]
    chunk_place: NDArray[np.int64]
    known: NDArray[np.bool_]
    frames: Sequence[EncodedFrame]


Gap = Zeros | Unchanged


class ChunkIndex(Protocol):
    """Knows which chunks are stored, for all disks of a point. Any thread may call it; it has its own lock."""

    @property
    def identity(self) -> Identity:
        """What names the chunks of this index."""
        ...

    def assign(self, digest: Digests, offset: NDArray[np.int64], length: NDArray[np.int64]) -> Assignment:
        """Give every chunk of a span its place; new ones are planned into frames and known from now on.

        Args:
            digest: Shape (n, DIGEST_SIZE), one row per chunk.
            offset: Disk offsets in bytes, ascending.
            length: Bytes.
        """
        ...
