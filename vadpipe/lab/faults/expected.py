"""What restore points have to hold, kept beside the repositories: digests of plain arrays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import trio
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import (
    Buffer,
    BufferPool,
    ChangedAreas,
    ChangeTrackingInvalid,
    Disk,
    Extents,
    KiB,
    MachineId,
    MiB,
)
from pipeline.testing.fakes import FakeCapture
from vadpipe.repository import Repository, verify

from .history import restored_digests

Held = tuple[tuple[str, str], ...]  # (key, BLAKE3) of each disk, in the order of the keys


@dataclass
class OracleDisk:
    """A disk that is an array, with change tracking over what was written."""

    key: str
    content: NDArray[np.uint8]
    pool: BufferPool
    epoch: int = 0
    written: list[tuple[int, int]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"disk {self.key}"

    @property
    def capacity(self) -> int:
        return len(self.content)

    @property
    def change_id(self) -> str:
        return f"{self.epoch}/{len(self.written)}"

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        length = min(len(data), self.capacity - offset)
        self.content[offset : offset + length] = data[:length]
        self.written.append((offset, length))

    async def allocated(self, offset: int, length: int) -> Extents:
        """In pieces of 64 KiB, those that are not all zero."""
        await trio.lowlevel.checkpoint()
        piece = 64 * KiB
        starts = range(offset // piece * piece, offset + length, piece)
        found = [
            (start, min(piece, self.capacity - start))
            for start in starts
            if self.content[start : start + piece].any()
        ]
        return Extents.of(found).within(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        await trio.lowlevel.checkpoint()
        epoch, _, count = since.partition("/")
        if int(epoch) != self.epoch:
            raise ChangeTrackingInvalid("Change tracking was reset.")
        length = min(MiB, self.capacity - offset)
        return ChangedAreas(offset, length, Extents.of(self.written[int(count) :]).within(offset, length))

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        for start, length in wanted:
            buffer.array[start - offset : start - offset + length] = self.content[start : start + length]


@dataclass
class OracleVm:
    """A VM of such disks: a `pipeline.Machine`."""

    name: str
    uuid: str
    disks: list[OracleDisk]
    pool_size: int = 0

    def held(self) -> Held:
        return tuple(sorted((disk.key, blake3(disk.content.data).hexdigest()) for disk in self.disks))

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[FakeCapture]:
        disks: Sequence[Disk] = self.disks
        yield FakeCapture(MachineId(self.uuid, self.name), disks)

    def effects(self) -> Sequence[str]:
        return []


class Expected:
    """What the points of a repository, and of the one that it is copied to, have to hold."""

    def __init__(self) -> None:
        self.published: dict[str, Held] = {}
        self._perhaps: set[Held] = set()  # of runs that were killed
        self._leaving: dict[str, Held] = {}  # points that a killed `forget` may have removed
        self._gone: set[str] = set()
        self._copied: dict[str, Held] = {}

    def backed_up(self, point: str | None, held: Held) -> None:
        """A backup was published as `point`. None: it was killed, and may have been published."""
        if point is None:
            self._perhaps.add(held)
        else:
            self.published[point] = held

    def forgotten(self, points: Iterable[str], *, surely: bool) -> None:
        """Points were removed from the repository, or, not `surely`, may have been."""
        for point in points:
            held = self.published.pop(point)
            if surely:
                self._gone.add(point)
            else:
                self._leaving[point] = held

    def copied_over(self, there: Sequence[str]) -> list[str]:
        """A copy ended, and these points are `there`. What is wrong with that."""
        self._copied.update({point: self.published[point] for point in there if point in self.published})
        return [f"point {point} was not copied" for point in self.published if point not in there]

    async def compare(self, repository: Repository, *, copy: bool) -> list[str]:
        """Restore every point of the repository, or of its copy, and verify it; what is wrong."""
        async with repository.read() as reader:
            wrong = [f"damaged: {damage}" for damage in reader.damaged]
            for point in reader.points:
                held = await restored_digests(reader, point)
                known = (
                    self.published.get(point.id) or self._copied.get(point.id) or self._leaving.get(point.id)
                )
                if held != (known or held):
                    wrong.append(f"point {point.id} is restored with wrong bytes")
                if known is None and held not in self._perhaps and point.id not in self._gone:
                    wrong.append(f"point {point.id} holds what no VM ever held")
                if not copy and point.id in self._gone:
                    wrong.append(f"point {point.id} is back")
            listed = {point.id for point in reader.points}
            expected = self._copied if copy else self.published
            wrong += [f"point {point} is lost" for point in expected if point not in listed]
            report = await verify(reader)
            wrong += [f"verify: {line}" for line in report.lines() if report.damages]
        return wrong
