"""`python -m vadpipe.lab.faults.histories --count N --seed S`: VMs live, are backed up, and backups are killed.

Each history draws two VMs. Their disks are written, zeroed, grown, exchanged and copied from each other; change
tracking is lost now and then; backups run to their end or are killed at any moment. What each point has to hold is
kept beside the repository, as digests of plain arrays. In the end, and now and then before, every point is restored
and compared, and the repository is verified.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import click
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
    Job,
    KiB,
    MachineId,
    MiB,
)
from pipeline.testing.fakes import FakeCapture
from vadpipe.repository import Repository, open_repository, verify

from . import forked
from .history import path, restored_digests, scratch, small_files

# A backup of these disks ends within a second; what takes this long has hung.
HANGS_AFTER_S = 30.0
# A kill comes at a moment up to this; about half of the backups are over by then.
KILLED_WITHIN_S = 0.25

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


class History:
    """One history, drawn from its seed."""

    def __init__(self, root: Path, seed: str) -> None:
        self._root = root
        self._draw = random.Random(seed)
        self._random = np.random.default_rng(self._draw.randrange(1 << 32))
        self._pool = BufferPool()
        self._vms = [OracleVm(f"vm{number}", f"0000000{number}", []) for number in range(2)]
        for vm in self._vms:
            for place in range(self._draw.randint(1, 2)):
                vm.disks.append(self._disk(f"scsi0:{place}"))
        self._published: dict[str, Held] = {}
        self._perhaps: set[Held] = set()
        self.counts: Counter[str] = Counter()

    def _disk(self, key: str) -> OracleDisk:
        capacity = self._draw.choice([MiB // 2, MiB, 3 * MiB // 2, MiB + 512, 700 * KiB + 1536])
        disk = OracleDisk(key, np.zeros(capacity, dtype=np.uint8), self._pool)
        for _ in range(self._draw.randint(0, 4)):
            disk.write(self._draw.randrange(capacity), self._data())
        return disk

    def _data(self) -> NDArray[np.uint8]:
        length = self._draw.choice([1, 512, 4 * KiB, 64 * KiB, 200 * KiB, 600 * KiB])
        match self._draw.randrange(4):
            case 0:
                return np.zeros(length, dtype=np.uint8)
            case 1 if all(vm.disks for vm in self._vms):
                other = self._draw.choice(self._draw.choice(self._vms).disks)
                start = self._draw.randrange(other.capacity) // (4 * KiB) * 4 * KiB
                return other.content[start : start + length].copy()
            case 2:
                return np.resize(self._random.integers(0, 256, 37, dtype=np.uint8), length)
            case _:
                return self._random.integers(0, 256, length, dtype=np.uint8)

    def play(self) -> list[str]:
        """Live through it; what is wrong, empty where nothing is."""
        Repository(str(self._root)).init()
        for _ in range(self._draw.randint(4, 10)):
            self._live()
            wrong = self._back_up(self._draw.choice(self._vms))
            if not wrong and self._draw.random() < 0.2:
                wrong = self._wrong()
            if wrong:
                return wrong
        for vm in self._vms:
            wrong = self._back_up(vm, may_be_killed=False)
            if wrong:
                return wrong
        return self._wrong(left=True)

    def _live(self) -> None:
        for vm in self._vms:
            for disk in vm.disks:
                for _ in range(self._draw.randint(0, 3)):
                    block = self._draw.choice([1, 512, 4 * KiB])
                    disk.write(self._draw.randrange(disk.capacity) // block * block, self._data())
                if self._draw.random() < 0.1:
                    disk.epoch += 1
                if self._draw.random() < 0.1:
                    grown = np.zeros(
                        disk.capacity + self._draw.choice([512, 64 * KiB, MiB // 2]), dtype=np.uint8
                    )
                    grown[: disk.capacity] = disk.content
                    disk.content = grown
            if self._draw.random() < 0.1:
                place = self._draw.randrange(3)
                vm.disks = [disk for disk in vm.disks if disk.key != f"scsi0:{place}"]
                vm.disks.append(self._disk(f"scsi0:{place}"))
                vm.disks[-1].epoch = self._draw.randrange(1, 1 << 30)

    def _back_up(self, vm: OracleVm, *, may_be_killed: bool = True) -> list[str]:
        killed = may_be_killed and self._draw.random() < 0.4
        deadline = self._draw.random() * KILLED_WITHIN_S if killed else HANGS_AFTER_S
        try:
            point = forked.call(lambda: trio.run(self._run, vm), deadline)
        except forked.Hung as exc:
            self.counts["killed"] += 1
            self._perhaps.add(vm.held())
            return [] if killed else [f"a backup hangs: {exc}"]
        except RuntimeError as exc:
            return [f"a backup fails: {exc}"]
        self.counts["backed up"] += 1
        self._published[point] = vm.held()
        return []

    async def _run(self, vm: OracleVm) -> str:
        return (await Job(vm, path, Repository(str(self._root)), disks_at_once=2).run()).point

    def _wrong(self, *, left: bool = False) -> list[str]:
        self.counts["checked"] += 1
        try:
            return forked.call(lambda: trio.run(self._check, left), HANGS_AFTER_S)
        except RuntimeError as exc:
            return [f"the check fails: {exc}"]

    async def _check(self, left: bool) -> list[str]:
        wrong: list[str] = []
        async with open_repository(self._root) as reader:
            wrong += [f"damaged: {damage}" for damage in reader.damaged]
            for point in reader.points:
                held = await restored_digests(reader, point)
                if held != self._published.get(point.id, held):
                    wrong.append(f"point {point.id} is restored with wrong bytes")
                if point.id not in self._published and held not in self._perhaps:
                    wrong.append(f"point {point.id} holds what no VM ever held")
            listed = {point.id for point in reader.points}
            wrong += [f"point {point} is lost" for point in self._published if point not in listed]
            report = await verify(reader)
            wrong += [f"verify: {line}" for line in report.lines() if report.damages]
        if left:
            files = [one.name for room in ("tmp", "runs") for one in (self._root / room).iterdir()]
            wrong += [f"left behind: {name}" for name in files]
        return wrong


def _play(job: tuple[int, int]) -> tuple[int, Counter[str], list[str]]:
    seed, number = job
    small_files()
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        history = History(Path(directory, "repository"), f"{seed}/{number}")
        return number, history.counts, history.play()


def campaign(count: int, seed: int, workers: int, only: int | None = None) -> tuple[Counter[str], list[str]]:
    """Play `count` histories, or the one with the number `only`; what was done in them, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    jobs = [(seed, number) for number in (range(count) if only is None else [only])]
    with get_context("spawn").Pool(workers) as pool:
        for number, done, found in pool.imap_unordered(_play, jobs):
            counts += done
            counts["histories"] += 1
            wrong += [f"history {number}: {sentence}" for sentence in found]
    return counts, wrong


@click.command()
@click.option("--count", default=1000, show_default=True, help="How many histories to play.")
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=int, help="Only the history with this number.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(count: int, seed: int, only: int | None, workers: int) -> None:
    """Back up VMs that live, kill backups, and compare every point with what the VM held."""
    counts, wrong = campaign(count, seed, workers, only)
    click.echo(f"seed {seed}: {', '.join(f'{number} {name}' for name, number in sorted(counts.items()))}")
    for line in wrong:
        click.echo(f"WRONG {line}", err=True)
    click.echo(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
