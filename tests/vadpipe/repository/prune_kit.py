"""What the tests of removals and of prune share: repositories in memory, and their points checked."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from pipeline import KiB, MiB, MoverError
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    Watched,
    backup,
    incremental_path,
    names,
    random_bytes,
    restore,
)
from tests.vadpipe.repository.test_golden import KEY_FILE
from vadpipe.repository import Repository, runs, verify
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.objects import pack_id
from vadpipe.repository.format.restore_point import read_points
from vadpipe.repository.format.ways import KeyFile
from vadpipe.repository.maintenance import forgetting
from vadpipe.repository.maintenance.prune import prune


def empty_repository(*, sealed: bool = False) -> Repository:
    """A repository in memory."""
    made = Repository(MemoryBackend(), unlock=[KeyFile(KEY_FILE)] if sealed else [])
    made.init(KeyFile(KEY_FILE) if sealed else None)
    return made


def over(repository: Repository, watch) -> Repository:
    """The same repository, each call told to `watch` before it is made."""
    return Repository(Watched(repository.place, watch), unlock=repository.unlock, origin=repository.origin)


def pruned(repository: Repository, **how):
    with repository.open_for_maintenance() as (objects, config):
        return prune(objects, config, repository.origin, **how)


def forget(repository: Repository, *points: str) -> None:
    with repository.open_for_maintenance() as (objects, config):
        there, _ = read_points(objects, config)
        forgetting.forget(
            objects, config, repository.origin, [point for point in there if point.id in points]
        )


def packs(repository: Repository) -> set[str]:
    return {name.rpartition("/")[2][:24] for name in names(repository, "packs/")}


def kept_in(repository: Repository) -> dict:
    """What the store of a repository in memory holds now; given to `put_back`."""
    return dict(repository.place._content)


def put_back(repository: Repository, content: dict) -> None:
    repository.place._content = dict(content)


class Machine:
    """A VM of two disks: `small` never changes, `large` is written anew. Knows what each point holds."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.small = MemoryDisk(random_bytes(1, 256 * KiB), key="small")
        self.large = MemoryDisk(random_bytes(2, MiB), key="large")
        self.states: dict[str, list[np.ndarray]] = {}

    @property
    def disks(self) -> list[MemoryDisk]:
        return [self.small, self.large]

    def change(self, seed: int) -> None:
        self.large.write(0, random_bytes(seed, MiB))

    async def back_up(self, repository: Repository | None = None) -> str:
        point = await backup(repository or self.repository, self.disks, incremental_path)
        return self.note(point)

    def note(self, point: str) -> str:
        self.states[point] = [disk.content.copy() for disk in self.disks]
        return point

    async def check(self, *points: str) -> None:
        """These points are there, and no other, all restore, and verify finds nothing."""
        async with self.repository.read() as reader:
            assert {point.id for point in reader.points} == set(points)
            assert reader.damaged == ()
            for point in reader.points:
                for disk, state in zip(self.disks, self.states[point.id], strict=True):
                    assert np.array_equal(await restore(reader, point, disk.key), state), point.id
        await self.check_quickly(*points)

    async def check_quickly(self, *points: str) -> None:
        """These points are there, and no other, and verify reads all that they need."""
        async with self.repository.read() as reader:
            assert {point.id for point in reader.points} == set(points)
            # A pack of a prune that died is no damage: the next one removes it.
            problems = [(found.file, found.problem) for found in (await verify(reader)).damages]
            problems = [problem for problem in problems if "no run is writing" not in problem[1]]
            assert problems == [], problems


def finish(repository: Repository) -> None:
    """Prune until nothing is left to do."""
    runs._alive.clear()
    for _ in range(5):
        report = pruned(repository)
        if not (report.deleted_packs or report.named_packs or names(repository, "removals/")):
            return
    raise AssertionError(f"prune does not come to an end: {names(repository, 'removals/')}")


def attempt(work) -> bool:
    """Whether it ended without an error; any other than a MoverError is raised."""
    with suppress(MoverError):
        work()
        return True
    return False


def unknown_pack(run_id: str) -> str:
    return f"packs/{run_id[:2]}/{pack_id(run_id, 0)}.pack"
