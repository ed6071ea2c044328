"""libguestfs over our own server. Its appliance takes from seconds to a minute, so one run shows all."""

import os
import shutil

import pytest
import trio

from pipeline import MiB
from tests.vadpipe.filesystems.filesystems_kit import ext_image, lvm_disks
from tests.vadpipe.filesystems.test_point import back_up, disk_of
from tests.vadpipe.repository.repository_kit import backup
from vadpipe.filesystems import guestfish as module
from vadpipe.filesystems.contract import Kind, Unreadable, resolve
from vadpipe.filesystems.copying import copy
from vadpipe.filesystems.guestfish import _quoted, guestfish
from vadpipe.filesystems.point import open_volumes
from vadpipe.filesystems.readers import volume_readers
from vadpipe.filesystems.volumes import find_place
from vadpipe.repository.reader import open_repository


def test_arguments_are_quoted_so_that_no_name_is_a_command():
    assert _quoted("/etc/hosts") == b"/etc/hosts"
    assert _quoted("a b") == b'"\\x61\\x20\\x62"'
    assert (
        _quoted(b'x"\n!rm -rf /\xff')
        == b'"\\x78\\x22\\x0a\\x21\\x72\\x6d\\x20\\x2d\\x72\\x66\\x20\\x2f\\xff"'
    )
    assert _quoted("") == b'""'
    assert _quoted("-option") == b"-option"


@pytest.fixture
def linux(repository, tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    image = ext_image(
        tmp_path / "image",
        [
            "mkdir d",
            f"write {tmp_path / 'file'} d/file",
            "symlink link d/file",
            "mkdir d/e",
            f"write {tmp_path / 'file'} d/a_b_c",
            "set_inode_field d/file mtime 20200913122640",
        ],
        "16M",
        ("-t", "ext4", "-L", "root", "-O", "^metadata_csum"),
    )
    raw = image.read_bytes()
    assert raw.count(b"a_b_c") == 1
    image.write_bytes(raw.replace(b"a_b_c", b'a "\n;'))
    back_up(repository, scsi0_0=image)
    return repository


@pytest.mark.slow
@pytest.mark.campaign
async def test_guestfish_reads_what_the_libraries_read(linux, tmp_path):
    if shutil.which("guestfish") is None:
        pytest.skip("guestfish is not installed")
    async with open_repository(linux.backend()) as reader:
        point = reader.resolve("latest")
        async with (
            open_volumes(reader, point, point.disks) as opened,
            volume_readers(reader, point, point.disks, "libguestfs") as chosen,
        ):

            def work():
                place = find_place(opened.volumes, "root:/", chosen.open)
                files = place.files
                assert (files.reader, files.label) == ("libguestfs", "root")
                assert sorted(each.name for each in files.entries(place.entry)) == ["d", "link", "lost+found"]
                file = resolve(files, "/link")
                assert (file.kind, file.size) == (Kind.FILE, 1_280_000)
                assert file.modified_ns // 10**9 == 1_600_000_000
                assert files.link(files.find(place.entry, "link")) == "d/file"
                with pytest.raises(Unreadable, match="libguestfs: mount-ro"):
                    chosen._start().run("mount-ro", "/dev/sdz", "/none")
                return copy(files, place.entry, "/root", tmp_path, check=trio.from_thread.check_cancelled)

            done = await opened.run(work)
    assert (done.files, done.directories, done.links, done.failed) == (2, 4, 1, [])
    whole = bytes(range(256)) * 5000
    assert (tmp_path / "root/d/file").read_bytes() == whole
    assert (tmp_path / 'root/d/a "\n;').read_bytes() == whole


@pytest.mark.slow
@pytest.mark.campaign
async def test_guestfish_and_the_libraries_read_the_same_logical_volumes(repository, tmp_path):
    if shutil.which("guestfish") is None:
        pytest.skip("guestfish is not installed")
    (tmp_path / "big").write_bytes(os.urandom(50 * MiB))
    one, two = lvm_disks(tmp_path, [f"write {tmp_path / 'big'} big"])
    await backup(repository, [disk_of(one, "scsi0:0"), disk_of(two, "scsi0:1")])
    async with open_repository(repository.backend()) as reader:
        point = reader.resolve("latest")
        for wanted in ("libraries", "libguestfs"):
            async with (
                open_volumes(reader, point, point.disks) as opened,
                volume_readers(reader, point, point.disks, wanted) as chosen,
            ):

                def work(chosen=chosen, opened=opened, wanted=wanted):
                    for name in ("root", "data"):
                        place = find_place(opened.volumes, f"vgtest/{name}:/big", chosen.open)
                        copy(place.files, place.entry, "/big", tmp_path / f"{wanted}-{name}")

                await opened.run(work)
            for name in ("root", "data"):
                assert (tmp_path / f"{wanted}-{name}").read_bytes() == (tmp_path / "big").read_bytes()


@pytest.mark.slow
async def test_a_guestfish_that_does_not_start_is_told_with_what_it_said(linux, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "guestfish"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'libguestfs: error: no appliance' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "PROGRAM", str(program))
    async with open_repository(linux.backend()) as reader:
        point = reader.resolve("latest")
        async with guestfish(reader, point, point.disks) as start:
            with pytest.raises(Unreadable, match="no appliance"):
                await trio.to_thread.run_sync(start)


@pytest.mark.slow
async def test_a_guestfish_that_hangs_is_ended_with_its_children(linux, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "guestfish"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "PROGRAM", str(program))
    async with open_repository(linux.backend()) as reader:
        point = reader.resolve("latest")
        with trio.move_on_after(1) as scope:
            async with guestfish(reader, point, point.disks) as start:
                await trio.to_thread.run_sync(start)
    assert scope.cancelled_caught
    number = int((tmp_path / "pid").read_text())
    with trio.move_on_after(10), pytest.raises(ProcessLookupError):
        while True:  # until init has taken what was its child
            os.killpg(number, 0)
            await trio.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.killpg(number, 0)
