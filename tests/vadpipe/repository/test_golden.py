"""The formats, byte for byte: tiny repositories with fixed ids, keys and times; that of format 1 is only read.

A change that fails here changes the format: it needs a new version, and a reader for this one.
`python -m tests.vadpipe.repository.test_golden` writes the files of format 2 anew; those of format 1 never change.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from blake3 import blake3
from click.testing import CliRunner

from pipeline import CLUSTER, KiB, SinkError
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import (
    MACHINE,
    MemoryDisk,
    backup,
    files_of,
    fixed_origin,
    random_bytes,
    restore,
    stored_path,
)
from vadpipe.cli.repository import points
from vadpipe.repository import Repository, open_repository, verify
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.format.config import Origin, create_repository
from vadpipe.repository.format.ways import KeyFile, make_key_file

GOLDEN = Path(__file__).parent / "golden"
FORMAT_1 = GOLDEN / "format1"
FORMAT_2 = GOLDEN / "format2"
SEALED = GOLDEN / "format2-sealed"
KEY_FILE = GOLDEN / "format2-sealed.key"

DOCUMENT = b"<config/>"


def the_disk() -> MemoryDisk:
    content = random_bytes(1, 5 * CLUSTER + 512)
    content[: 4 * CLUSTER] = 0
    content[CLUSTER : CLUSTER + 8] = np.frombuffer(b"clusters", np.uint8)
    return MemoryDisk(content)


def states() -> list[np.ndarray]:
    """What the disk holds in each of the two points: five clusters and a tail."""
    disk = the_disk()
    first = disk.content.copy()
    disk.write(2 * CLUSTER, random_bytes(2, CLUSTER))
    return [first, disk.content]


def ways(golden: Path) -> list[KeyFile]:
    """What opens a golden repository."""
    return [KeyFile(KEY_FILE)] if golden == SEALED else []


async def make_repository(path: Path, *, sealed: bool) -> None:
    """Two points of the disk, the second one with a tag and a document."""
    origin, unlock = fixed_origin(), [KeyFile(KEY_FILE)] if sealed else []
    create_repository(LocalBackend(path), origin, KeyFile(KEY_FILE) if sealed else None, "golden")
    disk = the_disk()
    await backup(Repository(path, unlock=unlock, origin=origin), [disk], stored_path)
    disk.write(2 * CLUSTER, random_bytes(2, CLUSTER))
    tagged = Repository(path, unlock=unlock, origin=origin, tags=["monthly"])
    async with tagged.open() as store, store.begin(MACHINE) as point:
        receipt = await stored_path(disk, point).run()
        capture = FakeCapture(MACHINE, [disk], documents={"vm-config.xml": DOCUMENT})
        await point.publish(capture, [receipt], None)


def compare(made: Path, golden: Path) -> None:
    made_files = {name: content for name, content in files_of(made).items() if not name.startswith("tmp/")}
    golden_files = files_of(golden)
    assert list(made_files) == list(golden_files)
    for name, content in golden_files.items():
        assert made_files[name] == content, f"{name} differs"


@pytest.mark.parametrize(("golden", "sealed"), [(FORMAT_2, False), (SEALED, True)])
async def test_the_files_are_the_golden_ones(tmp_path, golden, sealed):
    await make_repository(tmp_path / "made", sealed=sealed)
    compare(tmp_path / "made", golden)


@pytest.mark.parametrize("golden", [FORMAT_1, FORMAT_2, SEALED])
async def test_the_golden_files_are_read(golden):
    before = files_of(golden)
    async with open_repository(golden, unlock=ways(golden)) as reader:
        assert [point.number for point in reader.points] == ([0, 0] if golden == FORMAT_1 else [1, 2])
        assert [point.previous for point in reader.points] == [None, reader.points[0].id]
        for point, state in zip(reader.points, states(), strict=True):
            assert np.array_equal(await restore(reader, point), state)
        if golden != FORMAT_1:
            assert reader.points[1].tags == ("monthly",)
            assert reader.points[1].previous_seal == reader.points[0].seal
            assert await reader.document(reader.points[1], "vm-config.xml") == DOCUMENT
        report = await verify(reader)
    assert report.damages == ()
    assert report.bytes < 64 * KiB
    assert files_of(golden) == before


def test_no_golden_file_of_a_sealed_repository_tells_content():
    told = [
        b"clusters",
        DOCUMENT,
        b"monthly",
        b"fake",
        MACHINE.uuid.encode(),
        bytes(random_bytes(2, 64)),
        b"Hard disk",
    ]
    plain = b"".join(files_of(FORMAT_2).values()) + repr(list(files_of(FORMAT_2))).encode()
    sealed = b"".join(files_of(SEALED).values()) + repr(list(files_of(SEALED))).encode()
    assert [text in plain for text in told] == [True] * len(told)
    assert [text in sealed for text in told] == [False] * len(told)


# --- format 1 ---


def test_the_points_of_format_1_are_listed():
    listed = CliRunner().invoke(points, [str(FORMAT_1)], standalone_mode=False)
    assert listed.exception is None
    assert "58d6fd3dc6090686" in listed.output
    assert "813e9b729141e7f3" in listed.output


async def test_format_1_is_not_written_and_the_remedy_is_named():
    before = files_of(FORMAT_1)
    with pytest.raises(
        SinkError, match=rf"format version 1, which is only read.*vadpipe copy {FORMAT_1} NEW"
    ):
        await backup(Repository(FORMAT_1), [the_disk()])
    [problem] = Repository(FORMAT_1).missing()
    assert "format version 1" in problem
    with pytest.raises(SinkError, match="There is a repository"):
        Repository(FORMAT_1).init()
    assert files_of(FORMAT_1) == before


if __name__ == "__main__":
    for directory, is_sealed in ((FORMAT_2, False), (SEALED, True)):
        shutil.rmtree(directory, ignore_errors=True)
        if is_sealed and not KEY_FILE.exists():
            make_key_file(KEY_FILE, Origin(random=lambda size: blake3(b"the golden key").digest(size)))
        trio.run(partial(make_repository, directory, sealed=is_sealed))
        shutil.rmtree(directory / "tmp", ignore_errors=True)
        shutil.rmtree(directory / "runs", ignore_errors=True)
