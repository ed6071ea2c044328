"""The size of a real disk: 64 MiB that changed of 8 GiB. The files are sparse."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from pipeline import CLUSTER, BufferPool, Extents, GiB, MiB
from tests.stages.differences_kit import rolled_back
from tests.vadpipe.repository.repository_kit import backup, random_bytes

CAPACITY = 8 * GiB
CHANGED = 64 * MiB


@dataclass
class FileDisk:
    """A sparse file as a disk. `written`: what was written since it was made."""

    path: Path
    key: str = "scsi0:0"
    label: str = "Hard disk 1"
    change_id: None = None
    pool: BufferPool = field(default_factory=BufferPool)
    written: list[tuple[int, int]] = field(default_factory=list)
    read_bytes: int = 0

    def __post_init__(self) -> None:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, CAPACITY)

    @property
    def capacity(self) -> int:
        return CAPACITY

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        found, at = [], offset
        while at < offset + length:
            try:
                start = os.lseek(self.file, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(self.file, start, os.SEEK_HOLE)
            found.append((start, at - start))
        return Extents.of(found).within(offset, length)

    async def changed(self, since, offset):
        raise NotImplementedError

    async def read(self, buffer, offset: int, wanted: Extents) -> None:
        for start, length in wanted:
            part = buffer.memory[start - offset : start - offset + length]
            await trio.to_thread.run_sync(os.preadv, self.file, [part], start)
            self.read_bytes += length

    async def write(self, buffer, offset: int, wanted: Extents) -> None:
        for start, length in wanted:
            part = buffer.memory[start - offset : start - offset + length]
            await trio.to_thread.run_sync(os.pwrite, self.file, part, start)
            self.written.append((start, length))

    async def flush(self) -> None:
        await trio.to_thread.run_sync(os.fsync, self.file)


@pytest.mark.slow
def test_64_mib_that_changed_of_8_gib_cost_no_more_writes_than_that(repository, tmp_path):
    """Half of the changes are where the point has data, a quarter where it has zeros that are allocated now, and a
    quarter of zeros where it has data."""
    disk = FileDisk(tmp_path / "disk.raw")
    places = random.Random(8).sample(range(CAPACITY // (16 * MiB)), 20)
    for seed, place in enumerate(places):
        os.pwrite(disk.file, random_bytes(seed, 8 * MiB), place * 16 * MiB)
    trio.run(backup, repository, [disk])
    changes = random.Random(9)
    changed: list[tuple[int, int]] = []
    piece = 16 * CLUSTER
    for number in range(CHANGED // piece):
        inside = changes.randrange(8 * MiB // piece) * piece
        base = places[number % len(places)] * 16 * MiB
        offset = base + inside + (8 * MiB if number % 4 == 1 else 0)
        data = bytes(piece) if number % 4 == 3 else random_bytes(1000 + number, piece)
        os.pwrite(disk.file, data, offset)
        changed.append((offset, piece))
    receipt = rolled_back(repository, disk)
    expected = Extents.of(changed)
    assert Extents.of(disk.written) == expected
    assert receipt.data + receipt.zeros == expected.total <= CHANGED
    assert receipt.zeros > 0
    for seed, place in enumerate(places):
        assert os.pread(disk.file, 8 * MiB, place * 16 * MiB) == random_bytes(seed, 8 * MiB).tobytes()
        assert not any(os.pread(disk.file, 8 * MiB, place * 16 * MiB + 8 * MiB))
    assert disk.read_bytes < GiB  # what is not allocated is not read
