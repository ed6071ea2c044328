"""Restoring to raw images: one file for each disk, nothing replaced unless asked, nothing mixed."""

import errno
import fcntl
import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError, MiB, SinkError
from sinks.images import image_name, point_directory
from sinks.raw import RawDirectory, StandardOutput
from sinks.restoring import Contents, disks_of, restore
from sinks.targets import parse_target
from sinks.vmdk import VmdkDirectory
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes
from vadpipe.cli.restore import restore as restore_command
from vadpipe.repository import open_repository


def stored(repository, *keys):
    disks = [MemoryDisk(random_bytes(seed, MiB), key=key) for seed, key in enumerate(keys)]
    trio.run(backup, repository, disks)
    return disks


def restored(repository, target, *, force=False, keys=()):
    async def work():
        async with open_repository(repository.path) as reader:
            return await restore(reader, reader.points[-1], RawDirectory(target), keys=keys, force=force)

    return trio.run(work)


def images_of(repository, target):
    """The directory of the newest point's images below `target`."""

    async def work():
        async with open_repository(repository.path) as reader:
            point = reader.points[-1]
            return point_directory(target, Contents(reader, point, point.disks))

    return trio.run(work)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("scsi0:0", "scsi0-0"),
        ("scsi0-0", "scsi0%2D0"),
        ("nvme1:12", "nvme1-12"),
        ("web 1", "web%201"),
        ("web-1", "web-1"),
        ("数据", "%E6%95%B0%E6%8D%AE"),
        ("../x", "%2E.%2Fx"),
        ("a~b", "a%7Eb"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E."),
    ],
)
def test_a_simple_key_stays_readable_and_others_are_encoded(key, name):
    assert image_name(key) == name


@pytest.mark.slow
@given(
    st.lists(st.text(alphabet="aA0:-_.~%/ é数", max_size=8) | st.text(max_size=300), unique=True, max_size=40)
)
def test_two_keys_never_have_one_name(keys):
    names = [image_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all("/" not in name and len(name.encode()) <= 200 for name in names)


@pytest.mark.parametrize("keys", [("web 1", "web-1"), ("数据", "系统"), ("scsi0:0", "scsi0-0")])
def test_disks_with_alike_keys_become_two_images(repository, tmp_path, keys):
    disks = stored(repository, *keys)
    receipt = restored(repository, tmp_path / "out")
    assert list(receipt.failures) == []
    for disk, done in zip(disks, receipt.disks, strict=True):
        assert np.array_equal(np.fromfile(done.place, np.uint8), disk.content)
    assert len(os.listdir(images_of(repository, tmp_path / "out"))) == 2


def test_keys_that_differ_in_case_only_are_refused_before_anything_is_written(repository, tmp_path):
    """Some file systems have one file for both."""
    stored(repository, "Web", "web")
    with pytest.raises(SinkError, match=r"equal or differ in case only: Web, web.*--disk"):
        restored(repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for key in ("Web", "web"):
        restored(repository, tmp_path / key, keys=[key])


@dataclass
class Planted:
    """A directory with something in the place of the second image."""

    directory: Path
    victim: Path

    def plant(self, kind):
        place = self.directory / "scsi0-1.raw"
        self.directory.mkdir(parents=True)
        self.victim.write_bytes(b"dear")
        if kind == "file":
            place.write_bytes(b"dear")
        elif kind == "directory":
            place.mkdir()
        else:
            place.symlink_to(self.victim if kind == "link" else "nowhere")
        return place


@pytest.mark.parametrize("kind", ["file", "directory", "link", "broken link"])
def test_nothing_is_replaced_and_nothing_written_beside_it(repository, tmp_path, kind):
    stored(repository, "scsi0:0", "scsi0:1")
    planted = Planted(images_of(repository, tmp_path / "out"), tmp_path / "victim")
    place = planted.plant(kind)
    with pytest.raises(SinkError, match=rf"{place} exists already.*--force; nothing was written"):
        restored(repository, tmp_path / "out")
    assert os.listdir(planted.directory) == ["scsi0-1.raw"]
    assert planted.victim.read_bytes() == b"dear"


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_force_replaces_the_image_and_never_what_a_link_names(repository, tmp_path, kind):
    disks = stored(repository, "scsi0:0", "scsi0:1")
    planted = Planted(images_of(repository, tmp_path / "out"), tmp_path / "victim")
    place = planted.plant(kind)
    restored(repository, tmp_path / "out", force=True)
    assert np.array_equal(np.fromfile(place, np.uint8), disks[1].content)
    assert not place.is_symlink()
    assert planted.victim.read_bytes() == b"dear"
    assert not (planted.directory / "nowhere").exists()


def test_force_does_not_replace_a_directory(repository, tmp_path):
    stored(repository, "scsi0:0", "scsi0:1")
    planted = Planted(images_of(repository, tmp_path / "out"), tmp_path / "victim")
    planted.plant("directory")
    with pytest.raises(SinkError, match="exists already"):
        restored(repository, tmp_path / "out", force=True)


async def test_a_second_restore_into_one_directory_is_refused(repository, tmp_path):
    disk = MemoryDisk(random_bytes(1, 4 * MiB))
    await backup(repository, [disk])
    target = RawDirectory(tmp_path / "out")
    async with open_repository(repository.path) as reader:
        point = reader.points[0]
        async with target.open(Contents(reader, point, point.disks)) as opened:
            with pytest.raises(SinkError, match=r"Another restore is writing into .*/out"):
                await restore(reader, point, target)
            assert list((tmp_path / "out").rglob("*.*")) == []
        await restore(reader, point, target)
    assert np.array_equal(np.fromfile(opened.place(point.disks[0]), np.uint8), disk.content)


@pytest.mark.parametrize("is_locked", [True, False])
def test_what_a_killed_restore_left_is_removed_and_nothing_else(repository, tmp_path, monkeypatch, is_locked):
    """Without a lock another restore may be writing it."""
    stored(repository, "scsi0:0")
    directory = images_of(repository, tmp_path / "out")
    directory.mkdir(parents=True)
    left, link = ".0123456789abcdef.partial", ".fedcba9876543210.partial"
    others = [".web01.partial", ".0123456789ABCDEF.partial", "0123456789abcdef.partial"]
    for name in (left, *others):
        (directory / name).write_bytes(b"dear")
    (directory / link).symlink_to(others[0])
    if not is_locked:
        monkeypatch.setattr(fcntl, "flock", mock_error(errno.ENOLCK))
    restored(repository, tmp_path / "out")
    remaining = {link, *others, "scsi0-0.raw"} | (set() if is_locked else {left})
    assert set(os.listdir(directory)) == remaining


def test_a_restore_that_is_refused_removes_nothing(repository, tmp_path):
    stored(repository, "scsi0:0")
    directory = images_of(repository, tmp_path / "out")
    directory.mkdir(parents=True)
    for name in (".0123456789abcdef.partial", "scsi0-0.raw"):
        (directory / name).write_bytes(b"dear")
    with pytest.raises(SinkError, match="exists already"):
        restored(repository, tmp_path / "out")
    assert len(os.listdir(directory)) == 2


def mock_error(code):
    """A function that fails with this error of the system."""

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("form", ["raw", "vmdk"])
def test_disks_that_cannot_be_written_leave_the_buffers_to_the_others(
    repository, tmp_path, monkeypatch, form
):
    """Ten disks, six buffers: each failure is kept until the end, and must not keep a buffer."""
    stored(repository, *(f"scsi0:{unit}" for unit in range(10)))
    monkeypatch.setattr(os, "pwrite", mock_error(errno.ENOSPC))

    async def work():
        async with open_repository(repository.path) as reader:
            with trio.fail_after(20):
                return await restore(reader, reader.points[-1], parse_target(f"{form}:{tmp_path / 'out'}"))

    receipt = trio.run(work)
    assert len(receipt.failures) == 10
    assert all("No space left on device" in str(failure.exceptions[0]) for failure in receipt.failures)


async def test_an_image_that_appears_meanwhile_is_not_replaced(repository, tmp_path):
    """Where directories cannot be locked, the name decides: the second image fails, and nothing is mixed."""
    await backup(repository, [MemoryDisk(random_bytes(1, MiB))])
    target = RawDirectory(tmp_path / "out")

    async with open_repository(repository.path) as reader:
        point = reader.points[0]
        directory = point_directory(tmp_path / "out", Contents(reader, point, point.disks))

        def appear(disk, report):
            (directory / "scsi0-0.raw").write_bytes(b"dear")

        receipt = await restore(reader, reader.points[0], target, watch=appear)
    (failed,) = receipt.failures
    assert "exists already" in repr(failed.exceptions)
    assert receipt.disks == []
    assert (directory / "scsi0-0.raw").read_bytes() == b"dear"
    assert os.listdir(directory) == ["scsi0-0.raw"]


def test_the_command_takes_force(repository, tmp_path):
    (disk,) = stored(repository, "scsi0:0")
    directory = images_of(repository, tmp_path / "out")
    directory.mkdir(parents=True)
    (directory / "scsi0-0.raw").write_bytes(b"dear")
    arguments = [str(repository.path), "latest", f"raw:{tmp_path / 'out'}", "--json"]
    refused = CliRunner().invoke(restore_command, arguments, standalone_mode=False)
    assert isinstance(refused.exception, SinkError)
    done = CliRunner().invoke(restore_command, [*arguments, "--force"], standalone_mode=False)
    assert json.loads(done.stdout)["ok"]
    assert np.array_equal(np.fromfile(directory / "scsi0-0.raw", np.uint8), disk.content)


@pytest.mark.parametrize(
    "text", ["", "raw", "raw:", "null", "NULL:", "vdi:x", "null:x", "vmdk:", "vmdk:?level=1"]
)
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ConfigError, match=r"is no target of a restore\. Write raw:DIR or raw:-, vmdk:DIR"):
        parse_target(text)


def test_a_directory_may_have_a_colon():
    assert parse_target("raw:a:b") == RawDirectory(Path("a:b"))
    assert parse_target("raw:a?b=c") == RawDirectory(Path("a?b=c"))  # it has no options
    assert parse_target("raw:-") == StandardOutput()


def test_options_stand_behind_a_question_mark():
    assert parse_target("vmdk:a?b") == VmdkDirectory(Path("a?b"))
    stream = parse_target("vmdk:/a?format=streamOptimized&level=9")
    assert stream == VmdkDirectory(Path("/a"), "streamOptimized", 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vmdk:a?format=vhd", "'vhd' is no format of a VMDK. Write one of monolithicSparse"),
        ("vmdk:a?level=10", "level=10 is not between 1 and 9"),
        ("vmdk:a?level=x", "level='x' is no number"),
        ("nbd://[::1/disk", "'//[::1/disk' names no NBD server"),
        ("nbds://host:x/disk", "'//host:x/disk' names no NBD server"),
        ("nbd+unix://[/disk?socket=/run/nbd", "'//[/disk' names no NBD server"),
        ("vmdk:a?size=1", "A target vmdk: has no option 'size'. It has format, level."),
    ],
)
def test_an_option_that_is_wrong_is_named(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_target(text)


@pytest.mark.parametrize("target", ["vmdk:{}", "vmdk:{}?format=monolithicFlat", "ova:{}"])
def test_a_disk_that_no_vmdk_can_hold_is_refused_before_anything_is_written(repository, tmp_path, target):
    trio.run(
        backup, repository, [MemoryDisk(random_bytes(1, MiB)), MemoryDisk(random_bytes(1, 1000), key="b")]
    )

    async def work():
        async with open_repository(repository.path) as reader:
            await restore(reader, reader.points[-1], parse_target(target.format(tmp_path / "out")))

    with pytest.raises(ConfigError, match="whole sectors of 512 bytes; the disk has 1000 bytes"):
        trio.run(work)
    assert not (tmp_path / "out").exists()


def test_only_the_disks_that_are_named_are_restored(repository, tmp_path):
    stored(repository, "scsi0:0", "scsi0:1", "scsi0:2")
    receipt = restored(repository, tmp_path / "restored", keys=["scsi0:1"])
    assert [disk.key for disk in receipt.disks] == ["scsi0:1"]
    assert [path.name for path in (tmp_path / "restored").rglob("*.*")] == ["scsi0-1.raw"]


def test_a_disk_that_the_point_does_not_have_is_refused(repository, tmp_path):
    stored(repository, "scsi0:0")
    with pytest.raises(ConfigError, match=r"has no disk 'scsi0:9'.*It has: scsi0:0"):
        restored(repository, tmp_path / "restored", keys=["scsi0:9"])


def test_a_plan_refuses_a_disk_that_the_point_does_not_have(repository, tmp_path):
    stored(repository, "scsi0:0")

    async def work():
        async with open_repository(repository.path) as reader:
            return disks_of(reader.points[-1], ["scsi0:0", "scsi9:9"])

    with pytest.raises(ConfigError, match=r"has no disk 'scsi9:9'\. It has: scsi0:0"):
        trio.run(work)


def test_two_points_and_two_vms_have_directories_of_their_own(repository, tmp_path):
    disk = MemoryDisk(random_bytes(1, MiB))
    expected = []
    for name in ("web", "web", "a/../b"):
        expected.append((name, disk.content.copy()))
        trio.run(partial(backup, repository, [disk], name=name, uuid=f"uuid of {name}"))
        disk.write(0, random_bytes(len(expected) + 7, 8192))

    async def work():
        async with open_repository(repository.path) as reader:
            return [
                (point, await restore(reader, point, RawDirectory(tmp_path / "out")))
                for point in reader.points
            ]

    done = trio.run(work)
    assert len(done) == 3
    for point, receipt in done:
        [image] = receipt.disks
        parent = {"web": "web", "a/../b": "a%2F..%2Fb"}[point.machine.name]
        assert Path(image.place) == tmp_path / "out" / parent / point.id / "scsi0-0.raw"
        assert any(
            name == point.machine.name and np.array_equal(np.fromfile(image.place, np.uint8), content)
            for name, content in expected
        )


def test_a_restore_that_is_refused_leaves_no_empty_directories(repository, tmp_path):
    stored(repository, "scsi0:0")
    for pack in repository.path.rglob("*.pack"):
        pack.write_bytes(b"gone")
    receipt = restored(repository, tmp_path / "new" / "out")
    assert len(receipt.failures) == 1
    assert not (tmp_path / "new").exists()
