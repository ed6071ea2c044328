"""The examples really run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import MiB
from tests.conftest import EXAMPLES, vadpipe

QEMU_IMG = shutil.which("qemu-img")
SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)
SIZE = 40 * MiB + 512 * 3  # no whole number of clusters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is missing"),
]


@pytest.fixture
def vm_directory(tmp_path):
    """A VMDK of every subformat that qemu-img knows, each with other content."""
    directory = tmp_path / "vm"
    directory.mkdir()
    random = np.random.default_rng(3)
    for place, subformat in enumerate(SUBFORMATS):
        raw = tmp_path / f"{subformat}.raw"
        content = np.zeros(SIZE, np.uint8)
        content[:MiB] = place + 1  # compresses
        content[20 * MiB : 24 * MiB] = random.integers(0, 256, 4 * MiB, np.uint8)  # does not
        content[SIZE - 700 :] = 7
        content.tofile(raw)
        target = directory / f"{subformat}.vmdk"
        made = [QEMU_IMG, "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, target]
        subprocess.run(made, check=True)
        raw.unlink()
    return directory


def test_local_backs_up_every_subformat_and_restores_it(vm_directory, tmp_path):
    environment = {"VM_DIRECTORY": str(vm_directory), "REPOSITORY": str(tmp_path / "repository")}
    assert vadpipe("init", tmp_path / "repository").returncode == 0
    done = vadpipe("run", EXAMPLES / "local.py", environment=environment)
    assert done.returncode == 0, done.stderr
    done = vadpipe("restore", tmp_path / "repository", "latest", f"raw:{tmp_path / 'restored'}", "--json")
    assert done.returncode == 0, done.stderr
    disks = {disk["key"]: Path(disk["path"]) for disk in json.loads(done.stdout)["disks"]}
    assert set(disks) == set(SUBFORMATS)
    for subformat, image in disks.items():
        witness = tmp_path / "witness.raw"
        converted = [QEMU_IMG, "convert", "-O", "raw", vm_directory / f"{subformat}.vmdk", witness]
        subprocess.run(converted, check=True)
        assert image.read_bytes() == witness.read_bytes(), subformat


@pytest.mark.parametrize(
    ("example", "lines"), [("embed.py", 1), ("from_threads.py", 1), ("from_asyncio.py", 2)]
)
def test_an_embedding_program_reads_every_disk(vm_directory, example, lines):
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, vm_directory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == lines * len(SUBFORMATS)
    assert all(any(name in line for name in SUBFORMATS) for line in done.stdout.splitlines())


def test_a_truncated_vmdk_is_one_message(vm_directory, tmp_path):
    os.truncate(vm_directory / "monolithicSparse.vmdk", 3 * MiB)
    environment = {"VM_DIRECTORY": str(vm_directory), "REPOSITORY": str(tmp_path / "repository")}
    vadpipe("init", tmp_path / "repository")
    done = vadpipe("run", EXAMPLES / "local.py", environment=environment)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "monolithicSparse.vmdk" in line
    assert "Traceback" not in line
