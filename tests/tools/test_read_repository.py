"""The program that restores without vadpipe: the same bytes, from packs and points alone."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import MiB
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes
from tests.vadpipe.repository.test_golden import FORMAT_1, FORMAT_2, states
from vadpipe.repository import open_repository
from vadpipe.repository.format.ways import KeyFile, Passphrase, make_key_file
from vadpipe.repository.store import Repository

PROGRAM = Path(__file__).parents[2] / "tools" / "read_repository.py"


def run(repository, *arguments, **environment):
    command = [sys.executable, PROGRAM, str(repository), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None, check=False)


def restored(repository, point, disk, target, **environment):
    done = run(repository, "restore", point, disk, target, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, np.fromfile(target, np.uint8)


def test_it_shares_no_code_with_the_product():
    tree = ast.parse(PROGRAM.read_text())
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert names - sys.stdlib_module_names == {"zstandard", "blake3", "cryptography"}
    assert len(PROGRAM.read_text().splitlines()) < 600


@pytest.mark.slow
@pytest.mark.parametrize("golden", [FORMAT_1, FORMAT_2])
def test_the_golden_points_are_restored(tmp_path, golden):
    for number, (point, state) in enumerate(zip(("813e", "58d6"), states(), strict=True)):
        said, content = restored(golden, point, "scsi0:0", tmp_path / f"{number}.raw")
        assert np.array_equal(content, state)
        assert said.endswith(": proved\n")


@pytest.fixture
async def disks(repository):
    """Two points of two disks; the second shares most of the first. Returns the contents of the second."""
    first, second = (MemoryDisk(random_bytes(seed, 9 * MiB + 512), key=f"scsi0:{seed}") for seed in range(2))
    first.content[MiB : 3 * MiB] = 0
    await backup(repository, [first, second])
    first.write(5 * MiB, random_bytes(3, 200_000))
    await backup(repository, [first, second])
    return [first.content, second.content]


@pytest.mark.slow
async def test_disks_are_restored_without_the_index(repository, disks, tmp_path):
    async with open_repository(repository.path) as reader:
        point = reader.points[-1].id
    shutil.rmtree(repository.path / "index")
    for number, content in enumerate(disks):
        _, image = restored(repository.path, point, f"scsi0:{number}", tmp_path / f"{number}.raw")
        assert np.array_equal(image, content)


@pytest.mark.slow
async def test_without_blake3_it_restores_and_says_that_nothing_is_proved(repository, disks, tmp_path):
    (tmp_path / "blake3.py").write_text("raise ImportError")
    async with open_repository(repository.path) as reader:
        point = reader.points[-1].id
    said, image = restored(repository.path, point, "scsi0:0", tmp_path / "0.raw", PYTHONPATH=str(tmp_path))
    assert np.array_equal(image, disks[0])
    assert "not proved" in said


@pytest.mark.slow
async def test_a_damaged_frame_costs_its_bytes_only(repository, disks, tmp_path):
    async with open_repository(repository.path) as reader:
        point = reader.points[-1].id
    pack = max((repository.path / "packs").glob("??/*.pack"), key=lambda path: path.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(b"damage")
    lost = 0
    for number, content in enumerate(disks):
        done = run(repository.path, "restore", point, f"scsi0:{number}", tmp_path / f"{number}.raw")
        image = np.fromfile(tmp_path / f"{number}.raw", np.uint8)
        assert len(image) == len(content)
        wrong = np.flatnonzero(image != content)
        assert done.returncode == bool(len(wrong))
        assert ("are lost" in done.stdout) == bool(len(wrong))
        assert not image[wrong].any()
        lost += len(wrong)
    assert 0 < lost <= 2 * MiB


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "there").touch()
    for arguments, said in (
        (("restore", "8", "scsi9:9", tmp_path / "x"), "has no disk 'scsi9:9'"),
        (("restore", "ffff", "scsi0:0", tmp_path / "x"), "0 points begin with 'ffff'"),
        (("restore", "8", "scsi0:0", tmp_path / "there"), "File exists"),
        (("document", "8", "none.zip", tmp_path / "x"), "has no document 'none.zip'"),
    ):
        done = run(FORMAT_1, *arguments)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert run(tmp_path, "list").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["key file", "passphrase"])
async def test_a_sealed_repository_is_restored_with_its_key(tmp_path, way):
    key_file, other = tmp_path / "key", tmp_path / "other"
    make_key_file(key_file)
    make_key_file(other)
    words = tmp_path / "words"
    words.write_text("correct horse battery staple\n")
    opens = KeyFile(key_file) if way == "key file" else Passphrase.from_file(words)
    repository = Repository(tmp_path / "sealed", unlock=[opens])
    repository.init(opens)
    disk = MemoryDisk(random_bytes(1, 3 * MiB + 512))
    await backup(repository, [disk])
    first = disk.content.copy()
    disk.write(MiB, random_bytes(2, MiB))
    await backup(repository, [disk])
    option = ["--key-file", key_file] if way == "key file" else ["--passphrase-file", words]
    assert run(*option, tmp_path / "sealed", "list").stdout.count("scsi0:0") == 2
    async with repository.read() as reader:
        ids = [point.id for point in reader.points]
    for number, (point, state) in enumerate(zip(ids, (first, disk.content), strict=True)):
        target = tmp_path / f"{number}.raw"
        done = run(*option, tmp_path / "sealed", "restore", point, "scsi0:0", target)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.fromfile(target, np.uint8), state)
    refused = run("--key-file", other, tmp_path / "sealed", "list")
    assert refused.returncode == 1
    assert "no key slot is opened by this key" in refused.stderr
    assert "is sealed" in run(tmp_path / "sealed", "list").stderr
