"""Fakes that keep the contracts: a disk made of a pattern, and a machine and a target around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import trio
from numpy.typing import NDArray
from trio.abc import SendChannel

from ..buffers import Buffer, BufferPool
from ..contracts import Source
from ..errors import ChangeTrackingInvalid, SourceError
from ..extents import Extents
from ..protocols import (
    Capture,
    ChangedAreas,
    Disk,
    DiskReceipt,
    Evidence,
    MachineId,
    PreviousDisk,
    WritableDisk,
)
from ..units import KiB, MiB

T = TypeVar("T")

PIECE = 64 * KiB  # the unit in which a PatternDisk decides what a place holds

_HOLE, _ZERO, _DUPLICATE, _UNIQUE = range(4)


class PatternDisk:
    """A disk whose content is a function of its seed; it needs no memory for its size.

    `hole_ratio` of its 64 KiB pieces are not allocated, `zero_ratio` of the others hold zeros, `duplicate_ratio`
    of the rest repeat one of 16 contents. Data compresses about 2:1. `write` changes a range and is remembered
    by change tracking.
    """

    def __init__(
        self,
        capacity: int,
        *,
        seed: int = 1,
        hole_ratio: float = 0.3,
        zero_ratio: float = 0.1,
        duplicate_ratio: float = 0.2,
        key: str = "scsi0:0",
        pool: BufferPool | None = None,
    ) -> None:
        self.key = key
        self.label = f"pattern {key}"
        self.capacity = capacity
        self.pool = pool or BufferPool()
        self.sequence = 1
        random = np.random.default_rng(seed)
        pieces = -(-capacity // PIECE)
        drawn = random.random((3, pieces))
        self._kind = np.full(pieces, _UNIQUE, dtype=np.uint8)
        self._kind[drawn[2] < duplicate_ratio] = _DUPLICATE
        self._kind[drawn[1] < zero_ratio] = _ZERO
        self._kind[drawn[0] < hole_ratio] = _HOLE
        self._content = random.integers(1, 1 << 62, pieces, dtype=np.int64)
        self._content[self._kind == _DUPLICATE] %= 16
        self._written: list[tuple[int, Extents]] = []
        # Half random and half repeated words, so that a codec has something to do.
        self._noise = random.integers(0, 1 << 62, PIECE // 8, dtype=np.uint64)
        self._noise.reshape(-1, 512)[::2] = self._noise[:512] & np.uint64(0xFF)

    @property
    def change_id(self) -> str:
        return f"pattern/{self.sequence}"

    def write(self, offset: int, length: int, *, seed: int = 0) -> None:
        """New content for the 64 KiB pieces of this range; change tracking reports them from now on."""
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        self._kind[first:last] = _UNIQUE
        self._content[first:last] = np.random.default_rng(seed).integers(1 << 62, size=last - first)
        self.sequence += 1
        changed = Extents.of([(first * PIECE, min(last * PIECE, self.capacity) - first * PIECE)])
        self._written.append((self.sequence, changed))

    def erase(self, offset: int, length: int) -> None:
        """The same, with zeros that stay allocated."""
        self.write(offset, length)
        self._kind[offset // PIECE : -(-(offset + length) // PIECE)] = _ZERO

    def bytes_at(self, offset: int, length: int) -> NDArray[np.uint8]:
        """The bytes that the disk holds in this range, computed from the seed."""
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        data = np.concatenate([self._piece(place) for place in range(first, last)])
        return data[offset - first * PIECE :][:length]

    def _piece(self, place: int) -> NDArray[np.uint8]:
        if self._kind[place] in (_HOLE, _ZERO):
            return np.zeros(PIECE, dtype=np.uint8)
        return (self._noise ^ np.uint64(self._content[place])).view(np.uint8)

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        places = np.flatnonzero(self._kind[first:last] != _HOLE) + first
        found = Extents.from_columns(places * PIECE, np.full(len(places), PIECE))
        return found.within(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        await trio.lowlevel.checkpoint()
        tracked, _, sequence = since.partition("/")
        if tracked != "pattern":
            raise ChangeTrackingInvalid("Change tracking was reset.")
        total = Extents.empty()
        for written, extents in self._written:
            if written > int(sequence):
                total |= extents
        length = min(64 * MiB, self.capacity - offset)  # small pages, so that paging is exercised
        return ChangedAreas(offset, length, total.within(offset, length))

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        array = buffer.array
        for start, length in wanted:
            array[start - offset : start - offset + length] = self.bytes_at(start, length)


class MemoryDisk:
    """A disk whose bytes lie in memory, all of them allocated: the fastest source there is."""

    def __init__(
        self, content: NDArray[np.uint8], *, key: str = "memory", pool: BufferPool | None = None
    ) -> None:
        self.key = self.label = key
        self.capacity = len(content)
        self.change_id = None
        self.pool = pool or BufferPool()
        self._content = content

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        return Extents.whole(length, offset)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid("Memory has no change tracking.")

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.to_thread.run_sync(self._copy, buffer.array, offset, wanted)

    def _copy(self, array: NDArray[np.uint8], offset: int, wanted: Extents) -> None:
        for start, length in wanted:
            array[start - offset : start - offset + length] = self._content[start : start + length]


class WritableMemoryDisk(MemoryDisk):
    """A thin disk in memory that can be written: 64 KiB are allocated where something is written, zeros too.

    `content` is what it holds; `unflushed` counts bytes written since the last `flush`.
    """

    def __init__(self, capacity: int, *, key: str = "memory", pool: BufferPool | None = None) -> None:
        self.content = np.zeros(capacity, dtype=np.uint8)
        super().__init__(self.content, key=key, pool=pool)
        self._allocated = np.zeros(-(-capacity // PIECE), dtype=bool)
        self.unflushed = 0

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        places = np.flatnonzero(self._allocated)
        found = Extents.from_columns(places * PIECE, np.full(len(places), PIECE))
        return found.within(offset, min(length, self.capacity - offset))

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        if len(wanted) and (int(wanted.start[0]) < offset or int(wanted.end[-1]) > self.capacity):
            raise ValueError(f"{wanted} is not inside the buffer at {offset} and the disk.")
        await trio.lowlevel.checkpoint()
        array = buffer.array
        for start, length in wanted:
            self.content[start : start + length] = array[start - offset : start - offset + length]
            self._allocated[start // PIECE : -(-(start + length) // PIECE)] = True
            self.unflushed += length
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.unflushed = 0


class FaultyDisk:
    """A disk that fails one call: the `nth` call of `method`, counted from 1, raises `error`."""

    def __init__(
        self, disk: Disk | WritableDisk, method: str, nth: int, error: Exception | None = None
    ) -> None:
        self._disk = disk
        self._method = method
        self._left = nth
        self._error = error or SourceError(f"Injected: call {nth} of {method} failed.")
        self.key, self.label, self.capacity = disk.key, disk.label, disk.capacity
        self.pool, self.change_id = disk.pool, disk.change_id

    def _count(self, method: str) -> None:
        if method == self._method:
            self._left -= 1
            if self._left == 0:
                raise self._error

    async def allocated(self, offset: int, length: int) -> Extents:
        self._count("allocated")
        return await self._disk.allocated(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        self._count("changed")
        return await self._disk.changed(since, offset)

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        self._count("read")
        await self._disk.read(buffer, offset, wanted)

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        self._count("write")
        await cast("WritableDisk", self._disk).write(buffer, offset, wanted)

    async def flush(self) -> None:
        self._count("flush")
        await cast("WritableDisk", self._disk).flush()


@dataclass(frozen=True)
class Items(Source[T]):
    """A source of given items."""

    items: Sequence[T]

    async def run(self, outbox: SendChannel[T]) -> None:
        for item in self.items:
            await outbox.send(item)


@dataclass(frozen=True)
class FakeCapture:
    """Open disks and an identity. `moved`: what `confirm` raises."""

    machine: MachineId
    disks: Sequence[Disk]
    quiescing_asked: str = "none"
    configuration: Mapping[str, object] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    preflight: Mapping[str, object] | None = None
    snapshots_left: int | None = None
    moved: SourceError | None = None

    async def confirm(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.moved is not None:
            raise self.moved


@dataclass(frozen=True)
class FakeMachine:
    """A machine of given disks. `released` gets a line when a capture ends. `moved`: see FakeCapture."""

    disks: Sequence[Disk]
    name: str = "fake"
    pool_size: int = 0
    moved: SourceError | None = None
    released: list[str] = field(default_factory=list)
    uuid: str = "00000000-0000-0000-0000-000000000001"
    configuration: Mapping[str, object] = field(default_factory=dict)

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[FakeCapture]:
        try:
            machine = MachineId(self.uuid, self.name)
            yield FakeCapture(machine, self.disks, configuration=self.configuration, moved=self.moved)
        finally:
            self.released.append("released")

    def effects(self) -> Sequence[str]:
        return []


class FakePoint:
    """A point writer that remembers what it published."""

    def __init__(self, published: list[Sequence[DiskReceipt]]) -> None:
        self._published = published

    def previous(self, disk: Disk) -> PreviousDisk | None:
        return None

    async def publish(self, capture: Capture, disks: Sequence[DiskReceipt], evidence: Evidence | None) -> str:
        await trio.lowlevel.checkpoint()
        self._published.append(disks)
        return f"point {len(self._published)}"


class FakeTarget:
    """A target in memory: `published` holds the receipts of each point."""

    def __init__(self) -> None:
        self.published: list[Sequence[DiskReceipt]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeTarget]:
        yield self

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[FakePoint]:
        yield FakePoint(self.published)

    def planned(self) -> FakePoint:
        return FakePoint(self.published)

    def effects(self) -> Sequence[str]:
        return []
