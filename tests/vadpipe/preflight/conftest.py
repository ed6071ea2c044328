"""A running lab vCenter, VMs in it, and settings to reach it."""

import pytest

from pipeline.secrets import Secret
from pipeline.units import MiB
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.vm import power


@pytest.fixture
def lab(tmp_path):
    with LabVcenter(tmp_path / "lab", task_s=0.02) as running:
        yield running


@pytest.fixture
def vcenter(lab):
    return Vcenter(
        lab.address, "backup", Secret.from_text("lab"), thumbprint=lab.thumbprint_sha256, port=lab.port
    )


@pytest.fixture
def add_vm(lab):
    """Registers a VM with small disks; returns its moref."""

    def add(name="web01", *, disks=2, **settings):
        directory = lab.datastore("datastore1") / name
        made = [LabDisk.create(directory, f"disk{number}", 4 * MiB) for number in range(disks)]
        return lab.register_vm(directory, name, made, **settings)

    return add


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch):
    monkeypatch.setattr(power, "POLL_S", 0.02)


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path, monkeypatch):
    """The journal and VDDK's working directories are below the test's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
