"""A disk in memory that can be written, and putting one back to what a point holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import trio

from pipeline import BufferPool, Extents, Flow, Pipeline, Span
from sinks.in_place import OverDisk, OverDiskReceipt
from stages.differences import Differences
from tests.vadpipe.repository.repository_kit import MemoryDisk
from vadpipe.repository.reader import RepositoryReader, open_repository


@dataclass
class WritableMemoryDisk(MemoryDisk):
    """Notes what is read and written. `fail_after`: bytes written until a write fails."""

    pool: BufferPool = field(default_factory=lambda: BufferPool(16 << 20))
    seen: list[tuple[int, int]] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    flushes: int = 0
    fail_after: int | None = None

    async def read(self, buffer, offset: int, wanted: Extents) -> None:
        self.seen += list(wanted)
        await super().read(buffer, offset, wanted)

    async def write(self, buffer, offset: int, wanted: Extents) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        for start, length in wanted:
            if self.fail_after is not None and self.written_bytes + length > self.fail_after:
                raise OSError("Injected: the disk is gone.")
            self.content[start : start + length] = buffer.array[start - offset : start - offset + length]
            self.done.append((start, length))
        self.holes -= wanted

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushes += 1

    @property
    def written_bytes(self) -> int:
        return sum(length for _, length in self.done)

    @property
    def written_extents(self) -> Extents:
        return Extents.of(self.done)


def roll_back(reader: RepositoryReader, point, disk, key="scsi0:0", **options) -> Pipeline[OverDiskReceipt]:
    return Differences(reader, point, key, disk, **options) | OverDisk(disk)


def rolled_back(repository, disk, point: str = "", **options) -> OverDiskReceipt:
    """Write back what differs from a point, the newest by default."""

    async def work() -> OverDiskReceipt:
        async with open_repository(repository.path) as reader:
            found = reader.resolve(point or "latest")
            return await roll_back(reader, found, disk, **options).run()

    return trio.run(work)


async def differences(reader, point, disk, key="scsi0:0", **options) -> tuple[Extents, Extents]:
    """What differs: data and zeros."""
    data, zeros, reached = Extents.empty(), Extents.empty(), 0
    async with Flow(Differences(reader, point, key, disk, **options)).open() as items:
        async for item in items:
            assert item.offset == reached
            reached += item.length
            if isinstance(item, Span):
                data, zeros = data | item.data, zeros | item.zeros
                item.release()
    assert reached == disk.capacity
    return data, zeros


def clusters_that_differ(one: np.ndarray, other: np.ndarray) -> Extents:
    """Computed without the code under test."""
    size = -(-len(one) // 4096) * 4096
    table = np.zeros((2, size), np.uint8)
    table[0, : len(one)], table[1, : len(one)] = one, other
    rows = np.flatnonzero((table[0] != table[1]).reshape(-1, 4096).any(axis=1))
    return Extents.from_columns(rows * 4096, np.minimum(4096, len(one) - rows * 4096))
