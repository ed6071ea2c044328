"""What verify reads together is told as if each pack and each point was read by itself."""

import os
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from pipeline import Job, KiB
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    files_of,
    incremental_path,
    random_bytes,
    restore,
    stored_path,
)
from vadpipe.repository import verify
from vadpipe.repository.format import restore_point
from vadpipe.repository.maintenance import reading_packs
from vadpipe.repository.maintenance import verify as verification
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

pytestmark = pytest.mark.slow

POINTS = 20  # segments are merged at 17: so one of them lists many packs


@dataclass(frozen=True)
class Documented:
    """A VM with a disk and two documents."""

    disk: MemoryDisk
    number: int
    name: str = "vm"
    pool_size: int = 0

    @asynccontextmanager
    async def capture(self):
        documents = {"same": b"x" * 100, "other": f"point {self.number}".encode() * 50}
        yield FakeCapture(MACHINE, [self.disk], documents=documents)

    def effects(self):
        return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of a repository of many small points; each second one is stored without compression."""
    repository = Repository(tmp_path_factory.mktemp("whole") / "repository")
    repository.init()
    trio.run(many_points, repository)
    return files_of(repository.path)


async def many_points(repository):
    disk = MemoryDisk(random_bytes(1, 96 * KiB + 512))
    for number in range(POINTS):
        disk.write(number % 6 * 16 * KiB, random_bytes(number, 9 * KiB))
        path = stored_path if number % 2 else incremental_path
        await Job(Documented(disk, number), path, repository).run()


@pytest.fixture
def write(whole, tmp_path):
    def write(altered):
        root = tmp_path / os.urandom(4).hex()
        for name, content in {**whole, **altered}.items():
            if content is not None:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        return root

    return write


async def told(root):
    async with open_repository(root) as reader:
        return await verify(reader, workers=1)


async def told_alone(root, monkeypatch):
    """The report where every pack and every point is read by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(reading_packs, "_SMALL", 0)
        patch.setattr(verification._Verification, "_is_sound", lambda *_: False)
        return await told(root)


def packs_of(files):
    return sorted(name for name in files if name.startswith("packs/"))


async def test_sound_packs_are_read_together_and_counted_as_alone(whole, write, monkeypatch):
    root = write({})
    alone = await told_alone(root, monkeypatch)
    monkeypatch.setattr(reading_packs, "check_pack", None)  # nothing is read by itself
    monkeypatch.setattr(verification._Verification, "check_point", None)
    together = await told(root)
    assert together == alone
    assert (together.points, together.packs, together.damages) == (POINTS, len(packs_of(whole)), ())


async def test_many_packs_of_a_segment_are_one_batch(write):
    async with open_repository(write({})) as reader:
        work = verification._Verification(reader)
        batches = reading_packs.in_batches(work.choose(None, None, None))
    assert max(map(len, batches)) > 10
    assert sum(map(len, batches)) == POINTS


@pytest.mark.parametrize("seed", range(24))
async def test_damage_is_told_as_if_each_pack_was_read_by_itself(seed, whole, write, monkeypatch):
    draw = random.Random(seed)
    name, other = draw.sample(packs_of(whole), 2)
    content = bytearray(whole[name])
    kind = seed % 6
    if kind < 3:  # anywhere, in its table, in its header
        content[draw.randrange(*[(0, len(content)), (len(content) - 200, len(content)), (0, 48)][kind])] ^= 1
    altered = {
        3: {name: bytes(content[: draw.randrange(len(content))])},
        4: {name: None},
        5: {name: whole[other]},
    }.get(kind, {name: bytes(content)})
    root = write(altered)
    together = await told(root)
    assert together.damages
    assert together == await told_alone(root, monkeypatch)


@pytest.mark.parametrize("what", ["index/", "points/"])
async def test_other_damage_is_told_as_if_each_point_was_read_by_itself(what, whole, write, monkeypatch):
    names = sorted(name for name in whole if name.startswith(what) and not name.endswith("newest"))
    for name in names[:: max(1, len(names) // 4)]:
        content = bytearray(whole[name])
        content[len(content) // 2] ^= 1
        root = write({name: bytes(content)})
        together = await told(root)
        assert together.damages
        assert together == await told_alone(root, monkeypatch)


# --- reading one point of many ---


async def test_a_point_that_is_wanted_is_read_without_the_others(write, monkeypatch):
    root = write({})
    async with open_repository(root) as reader:
        points = reader.points
    read, real = [], restore_point.read_point
    monkeypatch.setattr(restore_point, "read_point", lambda *given: (read.append(given[2]), real(*given))[1])
    wanted = points[3]
    async with open_repository(root, wanted=wanted.id[:8]) as reader:
        assert [point.id for point in reader.points] == [wanted.id]
        assert reader.resolve(wanted.id[:8]) == wanted
        await restore(reader, wanted)
    assert len(read) == 1


async def test_the_latest_point_of_one_vm_is_the_last_of_all(write):
    root = write({})
    async with open_repository(root) as reader:
        newest = reader.points[-1]
    async with open_repository(root, wanted="latest") as reader:
        assert reader.points == (newest,)


@pytest.mark.parametrize("wanted", ["", "no such point", "latest"])
async def test_all_points_are_read_where_the_one_that_is_wanted_cannot_be_told(wanted, whole, tmp_path):
    repository = Repository(tmp_path / "repository")
    repository.init()
    disk = MemoryDisk(random_bytes(1, 16 * KiB))
    for number in range(2):
        await backup(
            repository, [disk], uuid=f"00000000-0000-0000-0000-00000000000{number}", name=f"vm{number}"
        )
    async with open_repository(repository.path, wanted=wanted) as reader:
        assert len(reader.points) == 2


async def test_a_damaged_point_that_is_wanted_is_told_like_any_other(whole, write):
    name = next(name for name in sorted(whole) if name.startswith("points/") and name.endswith(".json"))
    root = write({name: whole[name].replace(b"a", b"b", 1)})
    async with open_repository(root, wanted=name.rpartition("/")[2].partition(".")[0]) as reader:
        assert len(reader.points) == POINTS - 1
        assert len(reader.damaged) == 1
