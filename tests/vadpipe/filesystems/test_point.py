"""Files out of a point of a repository, through the command."""

import contextlib
import io
import json
import os
import random
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio

from pipeline import Extents, GiB, MiB
from tests.conftest import command, vadpipe
from tests.vadpipe.filesystems.filesystems_kit import ext_image, golden, tool
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup
from vadpipe.cli.main import _run
from vadpipe.filesystems.copying import copy
from vadpipe.filesystems.point import open_volumes
from vadpipe.filesystems.volumes import find_place
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

pytest.importorskip("dissect.ntfs", reason="the extra `files` is not installed")


def disk_of(image, key):
    """A disk whose holes are those of a sparse file."""
    size = image.stat().st_size
    data = []
    with image.open("rb") as file:
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data.append((start, at - start))
    return MemoryDisk(np.memmap(image, np.uint8, "r"), key=key, holes=Extents.whole(size) - Extents.of(data))


def back_up(repository, **images):
    disks = [disk_of(image, key.replace("_", ":")) for key, image in images.items()]
    trio.run(backup, repository, disks)


def files(repository, *arguments, code=0):
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = _run(["files", *map(str, (repository.path, "latest", *arguments))])
    done = SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())
    assert ended == code, done
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_a_file_of_five_mebibytes_out_of_an_8_gib_ntfs_disk_reads_little(repository, tmp_path):
    image, wanted, other = tmp_path / "image", tmp_path / "wanted", tmp_path / "other"
    wanted.write_bytes(random.Random(1).randbytes(5 * MiB + 123))
    with image.open("wb") as file:
        file.truncate(8 * GiB)
    tool("mkntfs", "-F", "-Q", "-q", "-L", "SYSTEM", image)
    for number in range(6):
        other.write_bytes(random.Random(2 + number).randbytes(30 * MiB))
        tool("ntfscp", "-f", image, other, f"other{number}.bin")
        if number == 3:
            tool("ntfscp", "-f", image, wanted, "wanted.bin")
    back_up(repository, scsi0_0=image)
    image.unlink()
    begun = time.monotonic()
    done = json.loads(files(repository, "get", "/wanted.bin", tmp_path / "got", "--json").stdout)
    took = time.monotonic() - begun
    assert (tmp_path / "got").read_bytes() == wanted.read_bytes()
    print(f"{took:.2f} s, {done['bytes_read'] / MiB:.1f} MiB read")
    assert 5 * MiB < done["bytes_read"] < 64 * MiB
    assert (done["reader"], done["files"], done["bytes"]) == ("dissect.ntfs", 1, 5 * MiB + 123)


@pytest.fixture(scope="module")
def two_disks(tmp_path_factory):
    """A point with a disk of Windows, and one with two partitions: ext4, and one that is sealed with LUKS."""
    tmp_path = tmp_path_factory.mktemp("two_disks")
    repository = Repository(tmp_path / "repository")
    repository.init()
    (tmp_path / "hosts").write_bytes(b"127.0.0.1 localhost\n")
    linux = ext_image(
        tmp_path / "ext",
        ["mkdir etc", f"write {tmp_path / 'hosts'} etc/hosts", "symlink link etc/hosts"],
        "8M",
        ("-t", "ext4", "-L", "root"),
    )
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(24 * MiB)
    tool("sfdisk", "-q", disk, input="label: gpt\nsize=8MiB\nsize=8MiB,name=secret\n")
    with disk.open("r+b") as file:
        file.seek(MiB)
        file.write(linux.read_bytes())
        file.seek(9 * MiB)
        file.write(b"LUKS\xba\xbe\0\x02")
    back_up(repository, scsi0_0=golden("ntfs", tmp_path / "windows"), scsi0_1=disk)
    return repository


@pytest.mark.slow
def test_volumes_directories_and_trees_are_listed_and_fetched(two_disks, tmp_path):
    shown = files(two_disks, "list").stdout
    assert [line.split()[:5] for line in shown.splitlines()[1:]] == [
        ["scsi0:0", "scsi0:0", "NTFS", "16.0", "MiB"],
        ["scsi0:1/1", "scsi0:1", "1", "ext4", "8.0"],
        ["scsi0:1/2", "scsi0:1", "2", "LUKS", "8.0"],
    ]
    assert "not readable: it is encrypted" in shown
    document = json.loads(files(two_disks, "list", "--json").stdout)
    assert [each["label"] for each in document["volumes"]] == ["DATA", "root", ""]
    assert document["volumes"][2]["title"] == "secret"

    shown = files(two_disks, "list", "/Users/alice/Documents").stdout
    assert "letter.txt:Zone.Identifier" in shown
    assert "2020-09-13 12:26:40" in shown
    assert "scsi0:0:/Users/alice/Documents: 3 entries, by dissect.ntfs" in shown
    entries = json.loads(files(two_disks, "list", "root:/", "--json").stdout)["entries"]
    assert [(each["name"], each["kind"], each["link"]) for each in entries] == [
        ("etc", "directory", None),
        ("link", "link", "etc/hosts"),
        ("lost+found", "directory", None),
    ]

    target = tmp_path / "target"
    target.mkdir()
    files(two_disks, "get", "--disk", "scsi0:1", "1:/link", target)
    assert (target / "link").read_bytes() == b"127.0.0.1 localhost\n"
    files(two_disks, "get", "/Users", target)
    assert sorted(os.listdir(target / "Users/alice/Documents")) == [
        "big.bin",
        "gr\u00fc\u00dfe \u4f60\u597d.txt",
        "letter.txt",
        "letter.txt:Zone.Identifier",
    ]
    again = files(two_disks, "get", "/Users", target, code=1)
    assert f"{target}/Users exists already." in again.stderr
    files(two_disks, "get", "/Users", target, "--force", "--no-streams")
    done = files(two_disks, "get", "scsi0:0:/", target, code=1)
    assert "Not readable: /dedup.bin: its data is deduplicated by Windows" in done.stderr


@pytest.mark.slow
def test_mistakes_are_told_with_their_remedy(two_disks, tmp_path):
    sealed = files(two_disks, "list", "scsi0:1/2:/", code=1)
    assert "scsi0:1/2 is LUKS, and its files cannot be read: it is encrypted" in sealed.stderr
    missing = files(two_disks, "get", "/etc/none", tmp_path, code=2)
    assert "No volume has /etc/none. There are: scsi0:0 (NTFS), scsi0:1/1 (ext4)." in missing.stderr
    assert "There is no volume 'C'. Drive letters" in files(two_disks, "list", "C:/", code=2).stderr
    assert "`get` needs a path" in files(two_disks, "get", code=2).stderr
    assert "is no directory" in files(two_disks, "get", "root:/etc", tmp_path / "a" / "b", code=1).stderr
    place = {**os.environ, "VADPIPE_REPOSITORY": str(two_disks.path)}
    done = subprocess.run(
        command("files", "latest", "list", "root:/etc"),
        env=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hosts" in done.stdout, done.stderr


@pytest.mark.slow
def test_damage_of_the_repository_costs_the_file_that_it_hits(repository, tmp_path):
    commands = []
    for name in ("good", "hit"):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(3 * MiB))
        commands.append(f"write {tmp_path / name} {name}")
    back_up(repository, scsi0_0=ext_image(tmp_path / "image", commands, "16M"))
    wanted = (tmp_path / "hit").read_bytes()[MiB : MiB + 64]
    packs = [path for path in (repository.path / "packs").rglob("*") if path.is_file()]
    (pack,) = [path for path in packs if wanted in path.read_bytes()]
    content = bytearray(pack.read_bytes())
    content[content.index(wanted)] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    done = files(repository, "get", "/", tmp_path / "got", code=1)
    assert "Not readable: /hit: " in done.stderr
    assert pack.name in done.stderr
    assert (tmp_path / "got/good").read_bytes() == (tmp_path / "good").read_bytes()
    assert sorted(os.listdir(tmp_path / "got")) == ["good", "lost+found"]


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 5, 9])
async def test_a_cancelled_copy_leaves_whole_files_only(two_disks, tmp_path, after):
    scope = trio.CancelScope()
    left = [after]

    def check():
        left[0] -= 1
        if not left[0]:
            trio.from_thread.run_sync(scope.cancel)
        trio.from_thread.check_cancelled()

    async with open_repository(two_disks.backend()) as reader:
        point = reader.resolve("latest")
        async with open_volumes(reader, point, point.disks) as opened:

            def work(target, check):
                place = find_place(opened.volumes, "DATA:/Users")
                return copy(place.files, place.entry, "/Users", target, check=check)

            with scope:
                await opened.run(work, tmp_path, check)
            assert scope.cancelled_caught
            (tmp_path / "whole").mkdir()
            await opened.run(work, tmp_path / "whole", lambda: None)
    for place, _, names in os.walk(tmp_path / "Users"):
        for name in names:
            path = Path(place) / name
            assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.slow
def test_without_the_extra_the_volumes_are_listed_and_the_extra_is_named(two_disks, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "dissect.py").write_text("raise ImportError('as without the extra')")
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    done = vadpipe(
        "files", two_disks.path, "latest", "list", "--reader", "libraries", environment={"PYTHONPATH": path}
    )
    assert done.returncode == 0
    assert "scsi0:1/1" in done.stdout
    assert "pip install 'vadpipe[files]'" in done.stdout
