"""streamOptimized: the VMDK that is written front to back, for pipes, OVA files and imports over HTTPS.

    header | descriptor | marked grains and tables, each table behind its grains | directory | footer | end

    spans = ReadPoint(...)  |  CutGrains  |  DeflateGrains  |  StreamVmdk  ->  pieces of bytes

`stream_optimized` gives the three stages. The kernel, StreamBuilder, places the packed grains and needs no seek.

Source: VMware technical note "Virtual Disk Format 5.0", section "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from trio.abc import ReceiveChannel, SendChannel

from pipeline.composition import at_least
from pipeline.contracts import Flow, Source, Stage
from pipeline.errors import ConfigError, ContractError
from pipeline.lift import KernelStage
from pipeline.values import Span, Unchanged, Zeros

from .build import (
    GRAIN,
    LAST_PLACE,
    PER_TABLE,
    TABLE,
    Bytes,
    GrainCutter,
    held_grains,
    padded_descriptor,
    sparse_header,
)
from .describe import DiskFacts, WrittenExtent, describe
from .descriptor import SECTOR
from .sparse import CHECKS_LINE_ENDS, COMPRESSED, DEFLATE, GRAIN_MARKER, MARKERS

OVERHEAD: Final = 128 * SECTOR  # header and descriptor, as VMware's products round it
LEVEL: Final = 6  # zlib's own default

_TABLE_MARK, _DIRECTORY_MARK, _FOOTER_MARK = 1, 2, 3


@dataclass(frozen=True)
class CutPieces:
    """The grains of a span: (number of the first, bytes) in order, and the span to release."""

    offset: int
    length: int
    pieces: Sequence[tuple[int, Bytes]]
    span: Span | None

    def release(self) -> None:
        if self.span is not None:
            self.span.release()


@dataclass(frozen=True)
class PackedGrains:
    """Compressed grains: (number, payload), ascending. The span's buffer was given back."""

    offset: int
    length: int
    grains: Sequence[tuple[int, bytes]]


@dataclass(frozen=True)
class StreamPiece:
    """The next bytes of the file. `offset` and `length` say how far on the disk they come."""

    offset: int
    length: int
    content: bytes


class CutGrains(Stage[Span | Zeros, CutPieces]):
    """Spans and zeros of a whole disk in, its grains that may hold data out.

    Memory: one grain. Cancel: leaves nothing behind. Raises: ContractError when the input does not cover the disk.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    async def run(self, inbox: ReceiveChannel[Span | Zeros], outbox: SendChannel[CutPieces]) -> None:
        cutter = GrainCutter(self.capacity)
        reached = 0
        async for item in inbox:
            if isinstance(item, Unchanged) or item.offset != reached:
                raise ContractError(f"A VMDK needs the whole disk in order; got {item!r}.")
            reached += item.length
            if isinstance(item, Span):
                await outbox.send(CutPieces(item.offset, item.length, list(cutter.cut(item)), item))
        if reached != self.capacity:
            raise ContractError(f"The disk has {self.capacity} bytes; {reached} arrived.")
        await outbox.send(CutPieces(reached, 0, list(cutter.end()), None))

    def __repr__(self) -> str:
        return f"CutGrains({self.capacity})"


@dataclass(frozen=True)
class DeflateGrains(KernelStage[CutPieces, PackedGrains]):
    """Grains in, compressed grains out; grains of zeros are left out.

    Args:
        level: zlib's level, 1 (fast) to 9 (small).
        workers: Threads.

    Memory: `workers` + 2 spans. Cancel: leaves nothing behind.
    """

    level: int = LEVEL
    workers: int = 2
    releases = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "level")
        if self.level > 9:
            raise ConfigError(f"level={self.level} is not between 1 and 9.")

    def kernel(self) -> Callable[[CutPieces], PackedGrains]:
        level = self.level

        def deflate(cut: CutPieces) -> PackedGrains:
            grains = [
                (number + at, zlib.compress(content[at * GRAIN : (at + 1) * GRAIN].data, level))
                for first, piece in cut.pieces
                for number, content in held_grains(first, piece)
                for at in range(len(content) // GRAIN)
            ]
            cut.release()
            return PackedGrains(cut.offset, cut.length, grains)

        return deflate


class StreamBuilder:
    """Bytes of a streamOptimized file, in order. `written` is how many there are so far."""

    def __init__(self, capacity: int, descriptor: bytes) -> None:
        self.capacity = capacity
        self.written = 0
        self._descriptor = padded_descriptor(descriptor)
        self._directory = np.zeros(-(-capacity // (GRAIN * PER_TABLE)), dtype="<u4")
        self._table = np.zeros(PER_TABLE, dtype="<u4")
        self._number = 0  # of the table in memory

    def front(self) -> bytes:
        """The header and the descriptor."""
        return self._told((self._header(None) + self._descriptor).ljust(OVERHEAD, b"\0"))

    def grains(self, packed: Sequence[tuple[int, bytes]]) -> bytes:
        """Place grains (number, payload), ascending. Raises ConfigError when the file grows beyond its format."""
        parts: list[bytes] = []
        for number, payload in packed:
            table, entry = divmod(number, PER_TABLE)
            if table != self._number:
                parts += self._complete(table)
            if self.written >= LAST_PLACE:
                raise ConfigError(
                    f"A streamOptimized VMDK has at most {LAST_PLACE} bytes.",
                    remedy="Take the format monolithicFlat or twoGbMaxExtentSparse, or another target.",
                )
            self._table[entry] = self.written // SECTOR
            content = GRAIN_MARKER.pack(number * (GRAIN // SECTOR), len(payload)) + payload
            parts.append(self._told(_padded(content)))
        return b"".join(parts)

    def end(self) -> bytes:
        """The last table, the directory, the footer and the mark of the end."""
        parts = [*self._complete(len(self._directory))]
        content = _padded(self._directory.tobytes())
        parts.append(self._told(_mark(_DIRECTORY_MARK, len(content))))
        directory = self.written
        parts.append(self._told(content))
        parts.append(self._told(_mark(_FOOTER_MARK, SECTOR)))
        parts.append(self._told(self._header(directory)))
        parts.append(self._told(bytes(SECTOR)))
        return b"".join(parts)

    def _complete(self, following: int) -> Iterator[bytes]:
        if self._table.any():
            yield self._told(_mark(_TABLE_MARK, TABLE))
            self._directory[self._number] = self.written // SECTOR
            yield self._told(self._table.tobytes())
            self._table[:] = 0
        self._number = following

    def _header(self, directory: int | None) -> bytes:
        return sparse_header(
            self.capacity,
            version=3,
            flags=CHECKS_LINE_ENDS | COMPRESSED | MARKERS,
            descriptor=True,
            redundant=0,
            directory=directory,
            overhead=OVERHEAD,
            algorithm=DEFLATE,
        )

    def _told(self, content: bytes) -> bytes:
        self.written += len(content)
        return content


def _padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // SECTOR) * SECTOR, b"\0")


def _mark(kind: int, size: int) -> bytes:
    """A marker: how many sectors follow, and what they are."""
    return _padded(GRAIN_MARKER.pack(size // SECTOR, 0) + kind.to_bytes(4, "little"))


@dataclass(frozen=True)
class StreamVmdk(Stage[PackedGrains, StreamPiece]):
    """Compressed grains in, the bytes of a streamOptimized VMDK out, front to back, in pieces of up to 4 MiB.

    Args:
        capacity: Bytes of the disk.
        name: The name of the file, for its own descriptor.
        facts: What the descriptor says of the disk.

    Memory: one piece, and 4 bytes for each 32 MiB of the disk. Cancel: leaves nothing behind.
    """

    capacity: int
    name: str = "disk.vmdk"
    facts: DiskFacts = field(default_factory=DiskFacts)

    async def run(self, inbox: ReceiveChannel[PackedGrains], outbox: SendChannel[StreamPiece]) -> None:
        extents = [WrittenExtent(self.capacity, "SPARSE", self.name)]
        text = describe("streamOptimized", self.capacity, extents, self.facts)
        builder = StreamBuilder(self.capacity, text)
        await outbox.send(StreamPiece(0, 0, builder.front()))
        async for item in inbox:
            await outbox.send(StreamPiece(item.offset, item.length, builder.grains(item.grains)))
            del item
        await outbox.send(StreamPiece(self.capacity, 0, builder.end()))


def stream_optimized(
    disk: Source[Span | Zeros],
    capacity: int,
    *,
    name: str = "disk.vmdk",
    facts: DiskFacts | None = None,
    level: int = LEVEL,
    workers: int = 2,
) -> Flow[StreamPiece]:
    """The bytes of a streamOptimized VMDK of a disk, front to back.

        async with stream_optimized(contents.read(disk, pool), disk.capacity).open() as pieces:
            async for piece in pieces:
                await send_all(piece.content)

    Args:
        disk: Spans and zeros, covering the whole disk.
        capacity: Bytes of the disk.
        name: The name of the file, for its own descriptor.
        facts: What the descriptor says of the disk.
        level: zlib's level, 1 to 9.
        workers: Threads that compress.
    """
    return (
        Flow(disk)
        | CutGrains(capacity)
        | DeflateGrains(level, workers)
        | StreamVmdk(capacity, name, facts or DiskFacts())
    )
