"""The runs whose file operations are recorded: two histories, one of a sealed repository.

    python -m vadpipe.lab.faults.history ROOT HISTORY SEED STEP

plays one step of a history below ROOT, where `main` is the repository and `copy` is the one that it is copied to.
What has to survive is said by marks in the record, e.g. `begun STEP` before a backup and `published STEP` once its
`run` returned.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

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
    KiB,
    MiB,
    Pipeline,
    SinkError,
    Span,
    Zeros,
)
from pipeline.testing.fakes import FakeMachine, PatternDisk
from sinks.copying import copy_points
from stages import (
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
from vadpipe.kernels import dedupe as _dedupe
from vadpipe.repository import (
    IntoRepository,
    Point,
    ReadPoint,
    Repository,
    RepositoryReader,
    RestorePoint,
)
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format import packs as _packs
from vadpipe.repository.format import slot_changes, slots
from vadpipe.repository.format.config import Config, Origin, read_config
from vadpipe.repository.format.objects import Objects
from vadpipe.repository.format.sealing import Secrets
from vadpipe.repository.format.ways import KeyFile
from vadpipe.repository.index import lookup as _index
from vadpipe.repository.index import merging as _merging
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.runs import Run, end_dead_runs

# The steps of each history, in order. What the first killed run leaves is ended by two runs at once; what the
# second leaves, by the next backup. From the third segment on, each run merges segments.
HISTORIES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "plain": (
            *("init", "backup", "killed", "swept", "backup", "failed", "backup", "killed", "backup"),
            *(
                "init copy",
                "copy",
                "forget",
                "prune",
                "killed prune",
                "backup",
                "forget",
                "prune beside a run",
            ),
            *("backup", "prune", "copy", "prune"),
        ),
        "sealed": (
            *("init", "backup", "add key", "killed", "new epoch", "backup", "remove key", "forget", "prune"),
            *("backup", "prune", "init copy", "copy", "new epoch", "backup"),
        ),
    }
)

# Small files, so that one backup has several packs and index segments.
FRAME_SIZE = 64 * KiB
PACK_SIZE = 48 * KiB
SEGMENT_ROWS = 64
# So high that packs are rewritten in these histories.
REWRITE_BELOW = 0.9

_POOL = BufferPool()


def scratch() -> Path | None:
    """Where temporary repositories go: a file system in memory where there is one, else where tempfile says."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def small_files() -> None:
    """From now on this process writes small packs and index segments, and merges segments from the third on."""
    _dedupe.FRAME = FRAME_SIZE
    _packs.PACK_SIZE = PACK_SIZE  # type: ignore[misc]
    _index.DRAFT_ROWS = SEGMENT_ROWS  # type: ignore[misc]
    _merging.MOST = _merging.FEWEST = 2  # type: ignore[misc]


def disks(seed: int, step: int) -> list[PatternDisk]:
    """The VM's two disks as they are at a step of the history."""
    made = [
        PatternDisk(MiB // 2, seed=2 * seed, key="scsi0:0", pool=_POOL),
        PatternDisk(3 * MiB // 16 + 512, seed=2 * seed + 1, key="scsi0:1", pool=_POOL),
    ]
    for before in range(1, step + 1):
        made[0].write(before * 3 % 7 * MiB // 16, MiB // 8, seed=before)
        made[1].erase(before % 3 * MiB // 16, MiB // 16)
    return made


@lru_cache
def digests(seed: int, step: int) -> tuple[tuple[str, str], ...]:
    """(key, BLAKE3) of each disk at a step, in the order of the keys."""
    return tuple(
        (disk.key, blake3(disk.bytes_at(0, disk.capacity).data).hexdigest()) for disk in disks(seed, step)
    )


def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, point.previous(disk))
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(level=-1))
        | IntoRepository(point, disk)
    )


# --- keys ---


KEYS: Final = ("first", "second")


def write_keys(directory: Path, seed: int) -> None:
    """Make the key files of the sealed history, beside what is recorded."""
    directory.mkdir(exist_ok=True)
    for name in KEYS:
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"VADPIPE-KEY-1-{blake3(f'{seed}/{name}'.encode()).hexdigest()}\n")


def key_file(root: Path, name: str) -> KeyFile:
    """A key of the repositories below `root`."""
    return KeyFile(root.parent / "keys" / name)


def repository(
    root: Path,
    history: str,
    keys: Iterable[str] = KEYS,
    *,
    name: str = "main",
    origin: Origin | None = None,
) -> Repository:
    """A repository below `root`, to be opened by any of the keys."""
    ways = [] if history == "plain" else [key_file(root, key) for key in keys]
    return Repository(str(root / name), unlock=ways, origin=origin)


def make(root: Path, history: str, name: str = "main", origin: Origin | None = None) -> None:
    """Make a repository below `root`. Raises SinkError."""
    first = None if history == "plain" else key_file(root, "first")
    repository(root, history, name=name, origin=origin).init(first)


def opened(where: Repository) -> tuple[Backend, Config, Secrets]:
    """A sealed repository and its secrets. Raises MoverError."""
    backend = where.backend()
    config = read_config(backend, where.unlock)
    return backend, config, slots.unlock(backend, config.id, where.unlock)


# --- steps ---


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


async def back_up(target: Repository, seed: int, step: int, how: str = "backup") -> str:
    """One backup; the id of its point."""
    system, data = disks(seed, step)
    last = data if how == "backup" else _Killed(data, how, target.path / "packs")
    return (await Job(FakeMachine([system, last]), path, target).run()).point


class _DyingBackend(LocalBackend):
    """A directory whose writer dies before it deletes an object of a kind."""

    def __init__(self, root: Path, kind: str) -> None:
        super().__init__(root)
        self._kind = kind

    def delete(self, names: Iterable[str]) -> None:
        listed = list(names)
        if any(name.startswith(self._kind) for name in listed):
            os._exit(0)
        super().delete(listed)


def _mark(root: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(root / ".mark" / text):
        raise AssertionError("recorder.c is not loaded")


def _sweep_twice(where: Repository) -> None:
    """Two runs end what is dead, at once."""
    with where.open_for_maintenance() as (objects, config):
        ready = threading.Barrier(2)

        def sweep_once() -> tuple[str, list[str]]:
            run = Run(objects, config, Origin(), None)
            ready.wait()
            try:
                return run.id, end_dead_runs(objects, config, run)
            finally:
                run.end()

        with ThreadPoolExecutor(2) as threads:
            sweeps = [each.result() for each in [threads.submit(sweep_once) for _ in range(2)]]
        # One of the two that ended in between may count as dead for the other, which finds nothing of it.
        swept = {run_id for _, ended in sweeps for run_id in ended} - {run_id for run_id, _ in sweeps}
        if len(swept) != 1:
            raise AssertionError(f"two sweeps ended {swept}: there was one dead run")


def prune_once(where: Repository, *, dying: str = "") -> None:
    """A prune; one that dies before it deletes an object whose name begins with `dying`."""
    with where.open_for_maintenance() as (objects, config):
        if dying:
            objects = Objects(_DyingBackend(where.path, dying), config.version)
        prune(objects, config, Origin(), rewrite_below=REWRITE_BELOW)


def _prune_beside_a_run(where: Repository) -> None:
    """A prune while another run has not ended."""
    with where.open_for_maintenance() as (objects, config):
        run = Run(objects, config, Origin(), "machine")
        prune(objects, config, Origin(), rewrite_below=REWRITE_BELOW)
        run.end()


def _forget_oldest(where: Repository) -> None:
    reader = RepositoryReader.of(where.backend(), where.unlock)
    forget(reader.objects, reader.config, Origin(), reader.points[:1])
    reader.close()


def forgotten_by(steps: Sequence[str], step: int) -> int:
    """The step of the backup whose point a `forget` removes: the oldest that is left."""
    backups = [place for place, what in enumerate(steps[:step]) if what == "backup"]
    return backups[steps[:step].count("forget")]


def _back_up_at(root: Path, where: Repository, seed: int, step: int, how: str) -> None:
    _mark(root, f"begun {step}")
    try:
        trio.run(back_up, where, seed, step, how)
    except Exception:
        if how == "backup":
            raise
    else:
        _mark(root, f"published {step}")


def play(root: Path, history: str, seed: int, step: int) -> None:
    """One step of a history, in this process."""
    where, steps = repository(root, history), HISTORIES[history]
    match steps[step]:
        case "init":
            make(root, history)
            _mark(root, "created main")
        case "init copy":
            _mark(root, "copying begun")
            make(root, history, "copy")
            _mark(root, "created copy")
        case "copy":
            _mark(root, "copying begun")
            trio.run(
                partial(copy_points, where, repository(root, history, name="copy"), codec=Zstd(level=-1))
            )
            _mark(root, "copying ended")
        case "swept":
            _sweep_twice(where)
        case "prune":
            prune_once(where)
        case "killed prune":
            prune_once(where, dying="removals/")
            raise AssertionError("the prune was to die")
        case "prune beside a run":
            _prune_beside_a_run(where)
        case "forget":
            of = forgotten_by(steps, step)
            _mark(root, f"forgetting {of}")
            _forget_oldest(where)
            _mark(root, f"forgotten {of}")
        case "add key":
            backend, config, secrets = opened(where)
            _mark(root, "keys begun")
            slot_changes.add_slot(backend, config.id, secrets, key_file(root, "second"), "second")
            _mark(root, "added second")
            _mark(root, "keys ended")
        case "new epoch":
            backend, config, secrets = opened(where)
            _mark(root, "keys begun")
            slot_changes.new_epoch(backend, config.id, secrets)
            _mark(root, "keys ended")
        case "remove key":
            backend, config, secrets = opened(where)
            table = slots.SlotTable.read(backend)
            _mark(root, "keys begun")
            _mark(root, "removing first")
            slot_changes.remove_slot(backend, config.id, secrets, table.named("first"))
            _mark(root, "removed first")
            _mark(root, "keys ended")
        case how:
            _back_up_at(root, where, seed, step, how)


# --- what is restored ---


async def restored_digests(reader: RepositoryReader, point: RestorePoint) -> tuple[tuple[str, str], ...]:
    """(key, BLAKE3) of each disk of a point, restored; in the order of the keys."""
    return tuple(sorted([(disk.key, await restored_digest(reader, point, disk.key)) for disk in point.disks]))


async def restored_digest(reader: RepositoryReader, point: RestorePoint, key: str) -> str:
    """BLAKE3 of a disk of a point, restored. Raises IntegrityError."""
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


if __name__ == "__main__":
    small_files()
    play(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
