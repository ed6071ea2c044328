"""The examples really run."""

import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from pipeline import MiB
from pipeline.errors import EXIT_ATTENTION
from tests.conftest import EXAMPLES, vadpipe
from vadpipe.cli import EXIT_INTERRUPTED
from vadpipe.cli.commands import vadpipe as command

QEMU_IMG = shutil.which("qemu-img")
SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)
SIZE = 40 * MiB + 512 * 3  # no whole number of clusters

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_accepts_the_units(tmp_path):
    service = (EXAMPLES / "vadpipe.service").read_text()
    (tmp_path / "vadpipe.service").write_text(service.replace("/opt/vadpipe/bin/vadpipe", sys.executable))
    (tmp_path / "vadpipe.timer").write_text((EXAMPLES / "vadpipe.timer").read_text())
    units = [str(tmp_path / "vadpipe.service"), str(tmp_path / "vadpipe.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vadpipe" not in done.stderr, done.stderr


def test_the_service_runs_a_command_that_exists_with_the_exit_codes_of_a_run():
    units = {}
    for kind in ("service", "timer"):
        units[kind] = ConfigParser(strict=False, interpolation=None)
        units[kind].optionxform = str
        units[kind].read(EXAMPLES / f"vadpipe.{kind}")
    service = units["service"]["Service"]
    _, *arguments = service["ExecStart"].split()
    context = command.make_context("vadpipe", arguments[:1], resilient_parsing=True)
    run = command.get_command(context, arguments[0])
    assert run.make_context("run", arguments[1:]).params["config"] == Path("/etc/vadpipe/nightly.py")
    assert service["SuccessExitStatus"].split() == [str(EXIT_ATTENTION), str(EXIT_INTERRUPTED)]
    assert units["timer"]["Install"]["WantedBy"] == "timers.target"


@pytest.fixture
def vm_directory(tmp_path):
    """A VMDK of every subformat that qemu-img knows, each with other content."""
    if QEMU_IMG is None:
        pytest.skip("qemu-img is missing")
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
