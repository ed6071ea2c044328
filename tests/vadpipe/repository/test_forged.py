"""Files with right checksums and wrong content, or that are no files at all: named damage, and no more."""

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import trio
import xxhash

from pipeline import IntegrityError, KiB, MiB, MoverError, SinkError, TransferFailed, Unchanged
from pipeline.errors import leaves
from pipeline.testing.fakes import Items
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    opened,
    random_bytes,
    restore,
    two_points,
)
from vadpipe.repository import IntoRepository, Repository, open_repository, verify
from vadpipe.repository.format.objects import Damage
from vadpipe.repository.format.packs import addresses, read_frame, read_table
from vadpipe.repository.format.restore_point import read_point


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return two_points(Repository(tmp_path_factory.mktemp("forged") / "repository")).path


@pytest.fixture
def repository(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "repository")
    return Repository(tmp_path / "repository")


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


PLACES = ["config.json", "index/*.idx", "packs/*/*.pack", "points/*/*.json"]


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        (place, instead)
        for place in PLACES
        for instead in (a_fifo, a_directory, a_link, a_broken_link, a_huge_file)
        # Where objects are listed, a directory is no object: that of its name is missing (see below).
        if not (instead is a_directory and place.startswith(("index", "points")))
    ],
)
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


@pytest.mark.parametrize("place", ["index/*.idx", "points/*/*.json"])
async def test_an_object_whose_place_a_directory_took_is_missing(repository, place):
    async with open_repository(repository.path) as reader:
        first = reader.points[0].id
    [path] = [path for path in repository.path.glob(place) if path.name.startswith(first)]
    path.unlink()
    a_directory(path)
    async with open_repository(repository.path) as reader:
        problems = [found.problem for found in (await verify(reader)).damages]
    assert any("is not in the index" in problem or f"{first} is missing" in problem for problem in problems)


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
    "version": lambda document: document.update(version=3),
    "number": lambda document: document.update(number=-1),
    "tags": lambda document: document.update(tags=7),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_point_sealed_over_impossible_fields_is_named_damage(repository, forgery):
    """Whoever has the key can seal anything."""
    path = min(repository.path.glob("points/*/*.json"))
    objects, config = opened(repository)
    name = str(path.relative_to(repository.path))
    document = read_point(objects, config, name).as_dict()
    FORGERIES[forgery](document)
    path.write_bytes(config.encode(name, document))
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
    objects, config = opened(repository)
    path = max(repository.path.glob("points/*/*.json"), key=os.path.getmtime)
    name = str(path.relative_to(repository.path))
    point = read_point(objects, config, name)
    assert point is not None
    (disk,) = point.disks
    forged = replace(disk, receipt=replace(disk.receipt, root="00" * 32))
    path.write_bytes(config.encode(name, replace(point, disks=(forged,)).as_dict()))
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
    objects, config = opened(repository)
    pack = min(repository.path.rglob("*.pack"), key=os.path.getmtime).stem
    first, second, *_ = addresses(read_table(objects, config.id, pack), pack)
    with pytest.raises(Damage, match="another frame is stored in its place"):
        read_frame(objects, config, first._replace(id=second.id))
    assert read_frame(objects, config, first).id == first.id
