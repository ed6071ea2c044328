"""Proving a disk that was written: it is read back and compared with the hash tree of its restore point.

Root, page list, map pages, chunk tables and chunk digests prove each other, so the data of the point is not read a
second time: the digest of what the disk reads is compared with the digest that the tree holds for it. Only where
the map uses a part of a chunk are stored bytes compared. Everywhere else the disk must not be allocated, or must
read as zero.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import trio
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import CLUSTER, SPAN, Buffer, BufferPool, Extents, IntegrityError, format_size
from pipeline.errors import leaves
from vadpipe.repository.disk_map import PAGE, PageMap, page_count
from vadpipe.repository.files import Damage
from vadpipe.repository.packs import FrameAddress, damaged_frame, read_chunks
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.verify import Budget

log = logging.getLogger("vadpipe." + __name__)

WORKERS = 2


class ReadableDisk(Protocol):
    """What is proved: an open disk. Offsets and lengths in bytes."""

    @property
    def capacity(self) -> int: ...

    async def allocated(self, offset: int, length: int) -> Extents: ...

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None: ...


@dataclass(frozen=True)
class DiskProof:
    """A disk that has the content of its point.

    `read`: bytes that were read and compared. `of`: bytes that a whole proof reads; more than `read` for a sample.
    `allocated`: bytes that the disk takes, as far as its reader can tell. `seed`: of the sample; None: all was
    read.
    """

    read: int
    of: int
    allocated: int
    seed: int | None = None

    def __str__(self) -> str:
        if self.seed is None:
            return f"all {format_size(self.read)} read back and proved"
        share = f"{format_size(self.read)} of {format_size(self.of)}"
        return f"a sample of {share} read back and proved (seed {self.seed})"


@dataclass(frozen=True, eq=False)
class _Piece:
    """A span of the disk: where it begins and ends, its rows of the map, and what of the disk is read."""

    offset: int
    length: int
    rows: PageMap
    data: Extents
    wanted: Extents
    addresses: tuple[FrameAddress | None, ...]


@dataclass
class _Counts:
    read: int = 0
    of: int = 0
    allocated: int = 0


async def prove_disk(
    reader: RepositoryReader,
    point: RestorePoint,
    disk: StoredDisk,
    opened: ReadableDisk,
    pool: BufferPool,
    *,
    budget: Budget | None = None,
    workers: int = WORKERS,
) -> DiskProof:
    """Read a disk and compare it with a disk of a point.

    Args:
        reader: The repository.
        point: The point.
        disk: The disk of the point.
        opened: The disk to prove, whose reads go into buffers of `pool`.
        pool: At most `workers` of its buffers are used.
        budget: How much to read, spread at random over the disk; None: all.
        workers: Spans at once.

    Raises:
        IntegrityError: The disk reads other bytes, or the point itself is damaged there.
        MoverError: The disk cannot be read.
    """
    if opened.capacity != disk.capacity:
        raise IntegrityError(
            f"Disk {disk.key} has {opened.capacity} bytes; in point {point.id} it has {disk.capacity}.",
            disk=disk.key,
        )
    work = _Proving(reader, point, disk, opened)
    counts = _Counts()
    drawn = None if budget is None else await work.drawn(budget)
    threads = trio.CapacityLimiter(workers)
    turn = trio.Lock()

    async def serve(pieces: AsyncGenerator[_Piece, None]) -> None:
        while True:
            async with turn:
                piece = await anext(pieces, None)
            if piece is None:
                return
            buffer = await pool.acquire()
            try:
                await opened.read(buffer, piece.offset, piece.wanted)
                await trio.to_thread.run_sync(work.compare, piece, buffer, limiter=threads)
            finally:
                buffer.release()
            counts.read += piece.wanted.total

    try:
        async with aclosing(work.pieces(counts, drawn)) as pieces, trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(serve, pieces)
    except ExceptionGroup as failed:  # several may find the same
        raise leaves(failed)[0] from None
    return DiskProof(counts.read, counts.of, counts.allocated, None if budget is None else budget.seed)


@dataclass(frozen=True, eq=False)
class _Proving:
    reader: RepositoryReader
    point: RestorePoint
    disk: StoredDisk
    opened: ReadableDisk

    async def pieces(self, counts: _Counts, drawn: frozenset[int] | None) -> AsyncGenerator[_Piece, None]:
        """The spans to read, ascending; with `drawn` only those with these numbers."""
        digests = await trio.to_thread.run_sync(self.reader.page_digests, self.point, self.disk)
        for number in range(page_count(self.disk.capacity)):
            low, high = number * PAGE, min((number + 1) * PAGE, self.disk.capacity)
            allocated = await self.opened.allocated(low, high - low)
            counts.allocated += allocated.total
            digest = digests[number].tobytes()
            if not any(digest) and not len(allocated):
                continue
            rows, addresses = await trio.to_thread.run_sync(self._page, number, digest)
            for piece in self._spans(low, high, rows, addresses, allocated):
                counts.of += piece.wanted.total
                if drawn is None or piece.offset // SPAN in drawn:
                    yield piece

    async def drawn(self, budget: Budget) -> frozenset[int]:
        """The numbers of the spans to read: at random, until the budget is spent, at least one."""
        sizes = {}
        counts = _Counts()
        async for piece in self.pieces(counts, None):
            sizes[piece.offset // SPAN] = piece.wanted.total
        numbers = sorted(sizes)
        random.Random(budget.seed).shuffle(numbers)
        left, chosen = budget.of(counts.of), list[int]()
        for number in numbers:
            if left <= 0 and chosen:
                break
            chosen.append(number)
            left -= sizes[number]
        return frozenset(chosen)

    def _page(self, number: int, digest: bytes) -> tuple[PageMap, tuple[FrameAddress | None, ...]]:
        if not any(digest):
            return PageMap.empty(), ()
        rows = self.reader.page(self.point, self.disk, number, digest)
        return rows, tuple(self.reader.addresses(rows))

    def _spans(
        self,
        low: int,
        high: int,
        rows: PageMap,
        addresses: tuple[FrameAddress | None, ...],
        allocated: Extents,
    ) -> list[_Piece]:
        found = []
        for start in range(low, high, SPAN):
            length = min(SPAN, high - start)
            first = (start - low) // CLUSTER
            part = rows.within(np.array([first]), np.array([first + SPAN // CLUSTER]))
            data = Extents.from_columns(part.offset * CLUSTER + low, part.count * CLUSTER).within(
                start, length
            )
            wanted = data | allocated.within(start, length)
            if len(wanted):
                found.append(_Piece(start, length, part, data, wanted, addresses))
        return found

    def compare(self, piece: _Piece, buffer: Buffer) -> None:
        """Raises IntegrityError."""
        for offset, length in piece.wanted - piece.data:
            low = offset - piece.offset
            if buffer.array[low : low + length].any():
                raise self._differs(offset, length, "it is zero in the point")
        rows, memory = piece.rows, buffer.memory
        for number in np.unique(rows.frame).tolist():
            address = piece.addresses[number]
            identity = rows.frame_ids[number].tobytes()
            mine = np.flatnonzero(rows.frame == number)
            table = self._chunks(address, identity, piece)
            ends = np.cumsum(table["length"], dtype=np.int64)
            starts = ends - table["length"]
            for row in mine.tolist():
                where = int(rows.offset[row]) * CLUSTER + piece.offset // PAGE * PAGE - piece.offset
                low = int(rows.place[row]) * CLUSTER
                high = min(low + int(rows.count[row]) * CLUSTER, int(ends[-1]))
                first = int(np.searchsorted(ends, low, side="right"))
                last = int(np.searchsorted(starts, high, side="left"))
                for chunk in range(first, last):
                    begin, end = int(starts[chunk]), int(ends[chunk])
                    whole = begin >= low and end <= high
                    begin, end = max(begin, low), min(end, high)
                    at = where + begin - low
                    mine_bytes = memory[at : at + end - begin]
                    if whole:
                        same = self._digest(mine_bytes) == table["digest"][chunk].tobytes()
                    else:
                        stored = self._stored(address, piece)[begin:end]
                        same = np.array_equal(
                            np.frombuffer(mine_bytes, np.uint8), np.frombuffer(stored, np.uint8)
                        )
                    if not same:
                        raise self._differs(piece.offset + at, end - begin, "the point has other bytes")

    def _digest(self, data: memoryview) -> bytes:
        return blake3(data, key=self.reader.config.keys.chunk).digest()

    def _chunks(self, address: FrameAddress | None, identity: bytes, piece: _Piece) -> NDArray[np.void]:
        purpose = self._purpose(piece)
        if address is None:
            raise IntegrityError(
                f"{purpose}: frame {identity.hex()[:16]} is not in the index.", disk=self.disk.key
            )
        try:
            return read_chunks(self.reader.layout, address, self.reader.config.keys)
        except Damage as damage:
            raise damaged_frame(self.reader.layout, address, damage, purpose, disk=self.disk.key) from damage

    def _stored(self, address: FrameAddress | None, piece: _Piece) -> memoryview:
        assert address is not None  # its chunk table was read
        try:
            return self.reader.frames.read(address)
        except Damage as damage:
            purpose = self._purpose(piece)
            raise damaged_frame(self.reader.layout, address, damage, purpose, disk=self.disk.key) from damage

    def _purpose(self, piece: _Piece) -> str:
        end = piece.offset + piece.length
        return f"Disk {self.disk.key} of point {self.point.id}, bytes {piece.offset} to {end}"

    def _differs(self, offset: int, length: int, expected: str) -> IntegrityError:
        return IntegrityError(
            f"Disk {self.disk.key} reads back wrong at bytes {offset} to {offset + length}: {expected}.",
            remedy="Restore again, to another datastore or through another transport.",
            disk=self.disk.key,
            offset=offset,
            length=length,
        )
