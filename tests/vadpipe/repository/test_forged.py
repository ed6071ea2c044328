"""Files with right checksums and wrong content, or that are no files at all: named damage, and no more."""

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import trio
import xxhash

from pipeline import CLUSTER, IntegrityError, KiB, MiB, MoverError, SinkError, TransferFailed, Unchanged
from pipeline.errors import leaves
from pipeline.testing.fakes import Items
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    full_path,
    incremental_path,
    random_bytes,
    restore,
)
from vadpipe.repository import IntoRepository, Repository, open_repository, verify
from vadpipe.repository.files import Damage
from vadpipe.repository.packs import addresses, read_frame, read_table
from vadpipe.repository.restore_point import read_point
from vadpipe.repository.segments import FRAMES, ROWS, Segment


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("forged") / "repository")
    repository.init()
    disk = MemoryDisk(random_bytes(1, 2 * MiB))
    trio.run(backup, repository, [disk], incremental_path)
    disk.write(0, random_bytes(2, MiB))
    trio.run(backup, repository, [disk], incremental_path)
    return repository.path


@pytest.fixture
def repository(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "repository")
    return Repository(tmp_path / "repository")


def rewritten(path, config, change):
    """A segment written anew after `change(digest, frame, place, frames)`: all its checksums are right."""
    segment = Segment(path, config.id)
    count = segment.chunks
    heads, chunk = segment.column(HEADS, 0, count), segment.column(CHUNKS, 0, count).copy()
    digest = np.concatenate((heads.astype(">u8").view(np.uint8).reshape(-1, 8), chunk["rest"]), axis=1)
    columns = digest, chunk["frame"].astype(np.int64), chunk["place"].astype(np.int64)
    frames, packs = segment.column(FRAMES, 0, segment.frames).copy(), segment.packs()
    change(*columns, frames)
    path.unlink()
    write_segment(path, config.id, path.name[:16], 0, columns, frames, packs)


def exchange_two_rows(digest, frame, place, frames):
    """Two chunks of one frame change places."""
    one, other = np.flatnonzero(frame == np.bincount(frame).argmax())[:2]
    place[[one, other]] = place[[other, one]]


def first_segment(repository):
    return min(repository.path.glob("index/*.idx"), key=os.path.getmtime)


async def test_exchanged_rows_of_the_index_are_found_by_verify(repository):
    segment = first_segment(repository)
    rewritten(segment, read_config(Layout(repository.path)), exchange_two_rows)
    async with open_repository(repository.path) as reader:
        (found,) = (await verify(reader)).damages
    assert found.file == str(segment)
    assert found.problem.startswith("2 of its rows name a frame or a place where their chunk is not stored")


async def test_exchanged_rows_of_the_index_never_reach_a_point(repository):
    """The rows lead to wrong places; a backup that used them would be consistent, proved and wrong."""
    segment = first_segment(repository)
    rewritten(segment, read_config(Layout(repository.path)), exchange_two_rows)
    points = sorted(repository.path.glob("points/*/*"))
    with pytest.raises(TransferFailed) as failed:
        await backup(repository, [MemoryDisk(random_bytes(1, 2 * MiB))], full_path)
    assert failed.group_contains(IntegrityError, match="says that a chunk lies where another one is stored")
    assert {str(leaf.facts["segment"]) for leaf in leaves(failed.value) if isinstance(leaf, MoverError)} == {
        str(segment)
    }
    assert sorted(repository.path.glob("points/*/*")) == points


def another_frame(digest, frame, place, frames):
    frame[0] = (frame[0] + 1) % len(frames)


def no_such_frame(digest, frame, place, frames):
    frame[:] = len(frames) + 7


def no_such_pack(digest, frame, place, frames):
    frames["pack"] = 99


def far_away(digest, frame, place, frames):
    frames["offset"] = 1 << 63


def enormous(digest, frame, place, frames):
    frames["size"] = 0xFFFF_FFFF


def another_length(digest, frame, place, frames):
    frames["length"] += CLUSTER


@pytest.mark.parametrize(
    "change", [another_frame, no_such_frame, no_such_pack, far_away, enormous, another_length]
)
async def test_a_forged_segment_is_named_damage(repository, change):
    rewritten(first_segment(repository), read_config(Layout(repository.path)), change)
    truth = random_bytes(1, 2 * MiB)
    async with open_repository(repository.path) as reader:
        assert (await verify(reader)).damages
    async with open_repository(repository.path) as reader:
        assert await outcome(restore(reader, reader.points[0])) in (truth.tobytes(), IntegrityError)
    if await outcome(backup(repository, [MemoryDisk(truth)], full_path)) is not IntegrityError:
        async with open_repository(repository.path) as reader:
            assert await outcome(restore(reader, reader.points[-1])) in (truth.tobytes(), IntegrityError)


async def outcome(work):
    """The bytes that were restored, the id of a point, or the one kind of error that came."""
    try:
        done = await work
    except (TransferFailed, MoverError) as failed:
        (kind,) = {type(leaf) for leaf in leaves(failed)}
        return kind
    return done if isinstance(done, str) else done.tobytes()


def a_fifo(path):
    os.mkfifo(path)


def a_directory(path):
    path.mkdir()


def a_link(path):
    path.symlink_to("/dev/zero")


def a_broken_link(path):
    path.symlink_to("nowhere")


def a_huge_file(path):
    with open(path, "wb") as file:
        file.truncate(20 << 30)


@pytest.mark.parametrize("instead", [a_fifo, a_directory, a_link, a_broken_link, a_huge_file])
@pytest.mark.parametrize("place", ["config.json", "index/*.idx", "packs/*/*.pack", "points/*/*.json"])
async def test_what_is_no_file_is_named_damage(repository, place, instead):
    """No hang, no traceback and no memory; whatever else can be read is read."""
    path = min(repository.path.glob(place))
    path.unlink()
    instead(path)
    errors = []
    with trio.fail_after(20):
        try:
            async with open_repository(repository.path) as reader:
                errors += reader.damaged
                if place.startswith("points"):
                    assert len(reader.points) == 1
                damages = (await verify(reader)).damages
                assert any(path.name in found.file for found in damages)
                for point in reader.points:
                    try:
                        await restore(reader, point)
                    except TransferFailed as failed:
                        errors += leaves(failed)
        except MoverError as error:
            errors.append(error)
    assert errors
    assert all(isinstance(error, IntegrityError | SinkError) for error in errors)
    assert any(str(path) in str(error) for error in errors)


@pytest.mark.slow
def test_a_huge_file_takes_no_memory(repository):
    """Under an address space of 2 GiB more than the program itself."""
    for place in ("index/*.idx", "packs/*/*.pack", "points/*/*.json"):
        path = min(repository.path.glob(place))
        path.unlink()
        a_huge_file(path)
    code = (
        "import resource, sys, trio\n"
        "from vadpipe.repository import open_repository, verify\n"
        "async def main():\n"
        "    async with open_repository(sys.argv[1]) as reader:\n"
        "        print(len(reader.damaged), len((await verify(reader)).damages) >= 2)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)\n"
        "trio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repository.path], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "2 True\n", done.stderr


async def test_a_segment_that_is_cut_off_under_a_reader_is_damage(repository):
    """A mapped file would end the process with SIGBUS."""
    async with open_repository(repository.path) as reader:
        for path in repository.path.glob("index/*.idx"):
            os.truncate(path, KiB // 2)
        with pytest.raises(TransferFailed) as failed:
            await restore(reader, reader.points[0])
    assert failed.group_contains(IntegrityError, match="is damaged: it is cut off")


def test_a_pack_that_claims_many_frames_is_refused(repository):
    path = min(repository.path.glob("packs/*/*.pack"))
    count, start = (1 << 32) - 1, 1 << 40
    footer = struct.pack("<8sIIQ", b"VADPEND1", count, 0, start)
    size = start + 56 * count + 32
    with open(path, "r+b") as file:
        file.truncate(size)
        file.seek(size - 32)
        file.write(footer + struct.pack("<Q", xxhash.xxh3_64_intdigest(footer)))

    async def found():
        async with open_repository(repository.path) as reader:
            return (await verify(reader)).damages

    assert any("larger than any" in damage.problem for damage in trio.run(found))


FORGERIES = {
    "capacity": lambda document: document["disks"][0].update(capacity=-5),
    "capacity of another type": lambda document: document["disks"][0].update(capacity="5"),
    "more than is there": lambda document: document["disks"][0].update(capacity=1 << 62),
    "pages": lambda document: document["disks"][0].update(pages="xyz"),
    "root": lambda document: document["disks"][0].update(root="00"),
    "disks": lambda document: document.update(disks=7),
    "documents": lambda document: document.update(documents={"a": {"length": -1, "parts": []}}),
    "machine": lambda document: document.update(machine={}),
    "version": lambda document: document.update(version=2),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_point_sealed_over_impossible_fields_is_named_damage(repository, forgery, monkeypatch):
    """Whoever has the key can seal anything."""
    path = min(repository.path.glob("points/*/*.json"))
    keys = read_config(Layout(repository.path)).keys
    point = read_point(path, keys)
    document = point.as_dict()
    FORGERIES[forgery](document)
    monkeypatch.setattr("vadpipe.repository.restore_point.RestorePoint.as_dict", lambda self: document)
    path.write_bytes(encode(point, keys))
    monkeypatch.undo()
    async with open_repository(repository.path) as reader:
        report = await verify(reader)
        assert report.damages
        if len(reader.points) == 2:
            with pytest.raises(TransferFailed) as failed:
                await restore_all(reader)
            assert all(isinstance(leaf, IntegrityError) for leaf in leaves(failed.value))
        else:
            assert [str(path)] == [error.facts["point"] for error in reader.damaged]


async def restore_all(reader):
    from pipeline import Flow
    from sinks import NullSink
    from vadpipe.repository import ReadPoint

    for point in reader.points:
        await (Flow(ReadPoint(reader, point, "scsi0:0")) | NullSink()).run()


@pytest.fixture
def wrong_root(repository):
    """The newest point names another root than its page list has; its seal is right."""
    config, layout = read_config(Layout(repository.path)), Layout(repository.path)
    path = max(layout.points.glob("*/*.json"), key=os.path.getmtime)
    point = read_point(path, config.keys)
    (disk,) = point.disks
    forged = replace(disk, receipt=replace(disk.receipt, root="00" * 32))
    path.write_bytes(encode(replace(point, disks=(forged,)), config.keys))
    return repository


async def test_a_page_list_that_does_not_have_the_root_is_not_restored(wrong_root):
    async with open_repository(wrong_root.path) as reader:
        with pytest.raises(TransferFailed) as caught:
            await restore(reader, reader.points[-1])
        assert "its page list does not have its root" in str(leaves(caught.value)[0])
        assert (await verify(reader)).damages


async def test_nothing_is_taken_over_from_a_page_list_that_does_not_have_the_root(wrong_root):
    disk = MemoryDisk(random_bytes(3, 2 * MiB))
    async with wrong_root.open() as store, store.begin(MACHINE) as point:
        sink = IntoRepository(point, disk)
        items = Items([Unchanged(0, disk.capacity)])
        with pytest.raises(TransferFailed) as caught:
            await (items | sink).run()
    assert "its page list does not have its root" in str(leaves(caught.value)[0])


def test_a_frame_in_the_place_of_another_is_damage(repository):
    layout = Layout(repository.path)
    config = read_config(layout)
    rows = read_table(first_pack(layout), config.id)
    first, second, *_ = addresses(rows, first_pack(layout).stem)
    with pytest.raises(Damage, match="another frame is stored in its place"):
        read_frame(layout, replace(first, id=second.id), config.keys)
    assert read_frame(layout, first, config.keys).id == first.id


def first_pack(layout):
    return min(layout.packs.rglob("*.pack"), key=os.path.getmtime)
