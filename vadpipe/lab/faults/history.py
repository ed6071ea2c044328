"""The runs whose file operations are recorded, and the check of what a crash left of them.

    python -m vadpipe.lab.faults.history REPOSITORY SEED STEP

plays one step of the history. What has to survive is said by marks in the record: `begun STEP` before a backup,
`published STEP` once its `run` returned.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio
from blake3 import blake3

from pipeline import (
    Buffer,
    BufferPool,
    Disk,
    DiskReceipt,
    Extents,
    Flow,
    Job,
    MiB,
    MoverError,
    Pipeline,
    SinkError,
    Span,
    Zeros,
)
from pipeline.testing.fakes import FakeMachine, PatternDisk
from stages import (
    Blake3,
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    ReadSpans,
    Refine,
    Zstd,
)
from vadpipe.repository import (
    IntoRepository,
    Point,
    ReadPoint,
    Repository,
    RepositoryReader,
    RestorePoint,
    open_repository,
    verify,
)
from vadpipe.repository import index as _index
from vadpipe.repository import merging as _merging
from vadpipe.repository import packs as _packs
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.config import Origin, read_config
from vadpipe.repository.files import Objects
from vadpipe.repository.runs import Run, end_dead_runs

# The steps, in order. What the first killed run leaves is swept by two sweepers at once; what the second leaves, by
# the next backup. The last two runs merge index segments.
STEPS = ("init", "backup", "killed", "swept", "backup", "failed", "backup", "killed", "backup")

# Small files, so that one backup has several packs and index segments. A frame has at most 64 chunks.
PACK_SIZE = MiB // 4
SEGMENT_ROWS = 64

_POOL = BufferPool()


def scratch() -> Path | None:
    """Where temporary repositories go: a file system in memory where there is one, else where tempfile says."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def small_files() -> None:
    """From now on this process writes small packs and index segments, and merges segments from the third on."""
    _packs.PACK_SIZE = PACK_SIZE  # type: ignore[misc]
    _index.DRAFT_ROWS = SEGMENT_ROWS  # type: ignore[misc]
    _merging.MOST = _merging.FEWEST = 2  # type: ignore[misc]


def disks(seed: int, step: int) -> list[PatternDisk]:
    """The VM's two disks as they are at a step of the history."""
    made = [
        PatternDisk(3 * MiB // 2, seed=2 * seed, key="scsi0:0", pool=_POOL),
        PatternDisk(MiB // 2, seed=2 * seed + 1, key="scsi0:1", pool=_POOL),
    ]
    for before in range(1, step + 1):
        made[0].write(before * 5 * MiB // 64, MiB // 2, seed=before)
        made[1].erase(before * MiB // 16, MiB // 16)
    return made


def digests(seed: int, step: int) -> dict[str, str]:
    """BLAKE3 of each disk at a step, by key."""
    return {disk.key: blake3(disk.bytes_at(0, disk.capacity).data).hexdigest() for disk in disks(seed, step)}


def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, point.previous(disk))
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(Blake3(point.key))
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(level=-1))
        | IntoRepository(point, disk)
    )


class _Killed:
    """A disk whose machine dies at a read, as `how` says, once the run has published a pack of the other disk."""

    def __init__(self, disk: PatternDisk, how: str, packs: Path) -> None:
        self._how = how
        self._packs = packs
        self._before = len(self._published())
        self.key, self.label, self.capacity = disk.key, disk.label, disk.capacity
        self.change_id, self.pool, self.allocated, self.changed = (
            disk.change_id,
            disk.pool,
            disk.allocated,
            disk.changed,
        )

    def _published(self) -> list[Path]:
        return list(self._packs.rglob("*.pack"))

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        with trio.fail_after(30):
            while len(self._published()) == self._before:  # noqa: ASYNC110 - files send no events
                await trio.sleep(0.01)
        if self._how == "killed":
            os._exit(0)
        raise SinkError("Injected: the disk cannot be read.")


async def back_up(repository: Repository, seed: int, step: int, how: str = "backup") -> str:
    """One backup; the id of its point."""
    system, data = disks(seed, step)
    last = data if how == "backup" else _Killed(data, how, repository.path / "packs")
    return (await Job(FakeMachine([system, last]), path, repository).run()).point


def _mark(root: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(root / ".mark" / text):
        raise AssertionError("recorder.c is not loaded")


def _sweep_twice(root: Path) -> None:
    """Two runs end what is dead, at once."""
    objects, ready = Objects(LocalBackend(root)), threading.Barrier(2)
    config = read_config(objects.backend)

    def sweep_once() -> list[str]:
        run = Run(objects, config, Origin(), None)
        ready.wait()
        try:
            return end_dead_runs(objects, config, run)
        finally:
            run.end()

    with ThreadPoolExecutor(2) as threads:
        sweeps = [threads.submit(sweep_once) for _ in range(2)]
    swept = {run_id for each in sweeps for run_id in each.result()}
    if len(swept) != 1:
        raise AssertionError(f"two sweeps removed {swept}: there was one dead run")


def play(root: Path, seed: int, step: int) -> None:
    """One step of the history, in this process."""
    repository = Repository(str(root))
    how = STEPS[step]
    if how == "init":
        repository.init()
        _mark(root, "created")
        return
    if how == "swept":
        _sweep_twice(root)
        return
    _mark(root, f"begun {step}")
    try:
        trio.run(back_up, repository, seed, step, how)
    except Exception:
        if how == "backup":
            raise
    else:
        _mark(root, f"published {step}")


@dataclass(frozen=True)
class Expected:
    """What holds at a moment: the repository exists, steps whose points may be there, and those that must be."""

    created: bool
    begun: tuple[int, ...]
    published: tuple[int, ...]

    @classmethod
    def of(cls, marks: Sequence[str]) -> Expected:
        said = [mark.split() for mark in marks]
        return cls(
            ["created"] in said,
            tuple(int(word[1]) for word in said if word[0] == "begun"),
            tuple(int(word[1]) for word in said if word[0] == "published"),
        )


async def wrong_with(root: Path, seed: int, expected: Expected) -> list[str]:
    """What is wrong with a repository after a crash, and with the next run into it. Empty: nothing."""
    repository = Repository(str(root))
    if not expected.created:
        try:
            repository.init()
        except MoverError as exc:
            async with _opened(root) as told:  # the crash came after its last operation
                if told:
                    return [f"init cannot be repeated: {exc}"]
    wanted = {tuple(sorted(digests(seed, step).items())): step for step in expected.begun}
    wrong, found = await _points(root, wanted)
    wrong += [f"the point of step {step} is lost" for step in expected.published if step not in found]
    last = len(STEPS)
    try:
        await back_up(repository, seed, last)
    except MoverError as exc:
        return [*wrong, f"the next run fails: {exc}"]
    wanted[tuple(sorted(digests(seed, last).items()))] = last
    later, found = await _points(root, wanted)
    wrong += [f"after the next run: {sentence}" for sentence in later]
    wrong += [
        f"after the next run the point of step {step} is lost"
        for step in (*expected.published, last)
        if step not in found
    ]
    return wrong + await _left(root)


@contextlib.asynccontextmanager
async def _opened(root: Path) -> AsyncIterator[str]:
    """Why the repository cannot be opened; empty where it can."""
    try:
        async with open_repository(root):
            problem = ""
    except MoverError as exc:
        problem = str(exc)
    yield problem


async def _points(root: Path, wanted: dict[tuple[tuple[str, str], ...], int]) -> tuple[list[str], set[int]]:
    """What is wrong with the points that are listed, and the steps of those that hold what they should."""
    wrong: list[str] = []
    found: set[int] = set()
    async with open_repository(root) as reader:
        wrong += [f"damaged: {damage}" for damage in reader.damaged]
        for point in reader.points:
            try:
                held = await restored_digests(reader, point)
            except Exception as exc:
                wrong.append(f"point {point.id} cannot be restored: {exc!r}")
                continue
            step = wanted.get(held)
            if step is None:
                wrong.append(f"point {point.id} holds what no disk ever held")
            else:
                found.add(step)
    return wrong, found


async def restored_digests(reader: RepositoryReader, point: RestorePoint) -> tuple[tuple[str, str], ...]:
    """(key, BLAKE3) of each disk of a point, restored; in the order of the keys."""
    return tuple(sorted([(disk.key, await _digest(reader, point, disk.key)) for disk in point.disks]))


async def _digest(reader: RepositoryReader, point: RestorePoint, key: str) -> str:
    disk = point.disk(key)
    assert disk is not None
    content = np.zeros(disk.capacity, dtype=np.uint8)
    flow: Flow[Span | Zeros] = Flow(ReadPoint(reader, point, key, pool=_POOL))
    async with flow.open() as items:
        async for item in items:
            if isinstance(item, Span):
                for offset, length in item.data:
                    content[offset : offset + length] = item.bytes_of(offset, length)
                item.release()
    return blake3(content.data).hexdigest()


async def _left(root: Path) -> list[str]:
    """What would stay for ever after a run that swept: files without an owner, and damage that `verify` finds."""
    wrong = [
        f"left behind: {path.relative_to(root)}"
        for room in ("tmp", "runs")
        for path in (root / room).glob("*")
    ]
    async with open_repository(root) as reader:
        report = await verify(reader)
    wrong += [f"verify: {line}" for line in report.lines() if report.damages]
    named = {pack for segment in reader.index.segments for pack in segment.packs()}
    wrong += [
        f"no index segment names {path.name}"
        for path in (root / "packs").rglob("*.pack")
        if path.stem not in named
    ]
    return wrong


if __name__ == "__main__":
    small_files()
    play(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
