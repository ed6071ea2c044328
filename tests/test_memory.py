"""Memory is bounded by the settings, not by the disk: 4 TiB thin, read through VDDK, children included."""

import os
import random

import pytest

from pipeline import GiB, MiB, TiB, format_size
from tests.conftest import NIGHTLY, command, vadpipe
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.process_tree import run_measured
from vadpipe.lab.vcenter.server import LabVcenter

LIMIT = 256 * MiB
CAPACITY = 4 * TiB


def big_disk(directory, amount):
    """4 TiB, with that many bytes of half compressible data in pieces all over it."""
    disk = LabDisk.create(directory, "big", CAPACITY)
    chance = random.Random(4)
    for number in range(amount // (8 * MiB)):
        noise = chance.randbytes(64 * 1024)
        piece = b"".join(
            noise[: 32 * 1024] + number.to_bytes(8) * 4096 + bytes([at]) * 4096 for at in range(120)
        )
        disk.write(number * (CAPACITY // (amount // (8 * MiB))) // 65536 * 65536, piece[: 8 * MiB])
    return disk


@pytest.mark.slow
@pytest.mark.parametrize(
    "amount", [pytest.param(128 * MiB, id="short"), pytest.param(GiB, id="1GiB", marks=pytest.mark.campaign)]
)
def test_peak_memory_of_two_runs_and_of_a_restore(tmp_path, libdir, amount):
    directory = tmp_path / "datastores" / "datastore1" / "big"
    disk = big_disk(directory, amount)
    with LabVcenter(tmp_path, password="lab") as vcenter:
        vcenter.register_vm(directory, "big", [disk])
        environment = {
            **os.environ,
            "VC_SERVER": vcenter.address,
            "VC_PORT": str(vcenter.port),
            "VC_USER": "backup",
            "VC_PASSWORD": "lab",
            "VC_THUMBPRINT": vcenter.thumbprint,
            "VDDK_LIBDIR": str(libdir),
            "VADPIPE_LAB_ROOT": str(tmp_path),
            "VM": "big",
            "REPOSITORY": str(tmp_path / "repository"),
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        assert vadpipe("init", tmp_path / "repository").returncode == 0
        run = run_measured(command("run", NIGHTLY), environment)
        assert run.returncode == 0, run.stderr
        for place in range(0, CAPACITY, CAPACITY // 512):  # in all data, and where there is none
            disk.write(place + 65536, random.Random(place).randbytes(4096))
        again = run_measured(command("run", NIGHTLY), environment)
        assert again.returncode == 0, again.stderr
        restore = run_measured(command("restore", tmp_path / "repository", "latest", "null:"), environment)
        assert restore.returncode == 0, restore.stderr
    peaks = [format_size(measured.peak_rss) for measured in (run, again, restore)]
    print("peaks of the run {}, of the next one {}, of the restore {}".format(*peaks))
    assert "logical 4.0 TiB" in run.stdout
    assert "incremental" in again.stdout
    assert run.peak_rss < LIMIT
    assert again.peak_rss < LIMIT
    assert restore.peak_rss < LIMIT
