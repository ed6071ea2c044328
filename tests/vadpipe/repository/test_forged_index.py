"""Index segments with right checksums and wrong content: named damage, and never a wrong restore."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import CLUSTER, IntegrityError, MiB, MoverError, TransferFailed
from pipeline.errors import leaves
from tests.vadpipe.repository.index_kit import with_right_checks
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    full_path,
    random_bytes,
    restore,
    two_points,
)
from vadpipe.repository import Repository, open_repository, verify
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format.config import Origin, read_config
from vadpipe.repository.format.objects import Objects
from vadpipe.repository.format.packs import FRAME_ROW
from vadpipe.repository.index.segments import CHUNK_ROW, FRAMES, ROWS, Segment
from vadpipe.repository.maintenance.repair import repair


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return two_points(Repository(tmp_path_factory.mktemp("forged") / "repository")).path


@pytest.fixture
def repository(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "repository")
    return Repository(tmp_path / "repository")


def forge(repository, change):
    """Let `change` alter the chunk rows and frame rows of the first segment. Returns its path."""
    objects = Objects(LocalBackend(repository.place))
    config = read_config(objects.backend)
    path = min(Path(repository.place).glob("index/*.idx"), key=os.path.getmtime)
    name = f"index/{path.name}"
    segment = Segment(objects, name, config.id)
    content = bytearray(path.read_bytes())
    rows = np.frombuffer(content, CHUNK_ROW, segment.chunks, segment._start[ROWS])
    frames = np.frombuffer(content, FRAME_ROW, segment.frames, segment._start[FRAMES])
    change(rows, frames)
    objects.backend.replace(name, [with_right_checks(objects, name, bytearray(content), config.id)])
    return str(path)


def points_of(repository):
    return sorted(Path(repository.place).glob("points/*/*"))


def exchange_two_places(rows, frames):
    """Two chunks of one frame change places."""
    frame = int(np.bincount(rows["frame"]).argmax())
    one, other = np.flatnonzero(rows["frame"] == frame)[:2]
    rows["place"][[one, other]] = rows["place"][[other, one]]


def exchange_two_digests(rows, frames):
    frame = int(np.bincount(rows["frame"]).argmax())
    one, other = np.flatnonzero(rows["frame"] == frame)[:2]
    rows["digest"][[one, other]] = rows["digest"][[other, one]]


def another_frame(rows, frames):
    rows["frame"][0] = (rows["frame"][0] + 1) % len(frames)


def no_such_frame(rows, frames):
    rows["frame"] = len(frames) + 7


def no_such_pack(rows, frames):
    frames["pack"] = 99


def far_away(rows, frames):
    frames["offset"] = 1 << 63


def enormous(rows, frames):
    frames["size"] = 0xFFFF_FFFF


def another_length(rows, frames):
    frames["length"] += CLUSTER


def another_count(rows, frames):
    frames["chunks"] += 1


def many_chunks(rows, frames):
    frames["chunks"] += 7


def exchange_two_frames(rows, frames):
    """Two frames change their places in the pack."""
    for name in ("offset", "size"):
        frames[name][[0, 1]] = frames[name][[1, 0]]


def between_frames(rows, frames):
    frames["offset"][0] += 8


@pytest.mark.parametrize("change", [another_length, exchange_two_frames, between_frames])
async def test_a_wrong_place_of_a_frame_is_a_damage_of_the_segment_and_not_of_the_pack(repository, change):
    segment = forge(repository, change)
    async with open_repository(repository.place) as reader:
        damages = (await verify(reader)).damages
    assert {found.file for found in damages} == {segment}
    assert any(found.hits for found in damages)


@pytest.mark.parametrize("change", [another_length, exchange_two_frames, between_frames])
async def test_a_segment_with_wrong_places_is_replaced_by_repair(repository, change):
    segment = forge(repository, change)
    with repository.open_for_maintenance() as (objects, config):
        report = repair(objects, config, Origin())
    assert report.segments == [Path(segment).stem]
    assert report.packs == []
    async with open_repository(repository.place) as reader:
        assert (await verify(reader)).damages == ()


async def test_exchanged_rows_of_the_index_are_found_by_verify(repository):
    segment = forge(repository, exchange_two_places)
    async with open_repository(repository.place) as reader:
        (found,) = (await verify(reader)).damages
    assert found.file == segment
    assert found.problem.startswith("2 of its rows name a frame or a place where their chunk is not stored")


@pytest.mark.parametrize("change", [exchange_two_places, another_frame, another_length])
async def test_wrong_rows_of_the_index_never_reach_a_point(repository, change):
    """The rows lead to wrong places; a backup that used them would be consistent, proved and wrong."""
    segment = forge(repository, change)
    points = points_of(repository)
    with pytest.raises(TransferFailed) as failed:
        await backup(repository, [MemoryDisk(random_bytes(1, 2 * MiB))], full_path)
    assert failed.group_contains(IntegrityError, match="says that a chunk lies where another one is stored")
    named = {leaf.facts["segment"] for leaf in leaves(failed.value) if isinstance(leaf, MoverError)}
    assert named == {segment}
    assert points_of(repository) == points


@pytest.mark.parametrize(
    "change",
    [
        exchange_two_digests,
        another_frame,
        no_such_frame,
        no_such_pack,
        far_away,
        enormous,
        another_length,
        another_count,
        many_chunks,
        exchange_two_places,
    ],
)
async def test_a_forged_segment_is_named_damage(repository, change):
    forge(repository, change)
    truth = random_bytes(1, 2 * MiB)
    async with open_repository(repository.place) as reader:
        assert (await verify(reader)).damages
    async with open_repository(repository.place) as reader:
        assert await outcome(restore(reader, reader.points[0])) in (truth.tobytes(), IntegrityError)
    if await outcome(backup(repository, [MemoryDisk(truth)], full_path)) is not IntegrityError:
        async with open_repository(repository.place) as reader:
            assert await outcome(restore(reader, reader.points[-1])) in (truth.tobytes(), IntegrityError)


async def outcome(work):
    """The bytes that were restored, the id of a point, or the one kind of error that came."""
    try:
        done = await work
    except (TransferFailed, MoverError) as failed:
        (kind,) = {type(leaf) for leaf in leaves(failed)}
        return kind
    return done if isinstance(done, str) else done.tobytes()
