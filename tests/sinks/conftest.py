"""A lab with a VM that is backed up."""

import pytest

from tests.sinks.new_vm_kit import Backed, filled
from tests.vadpipe.nbd.conftest import serve as serve
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.journal.intents import Journal


@pytest.fixture
def machine(tmp_path, repository, libdir, monkeypatch):
    """A VM web01 of two disks, without a point."""
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(tmp_path / "lab"))
    with LabVcenter(tmp_path / "lab", task_s=0.02) as lab:
        directory = lab.datastore("datastore1") / "web01"
        disks = [filled(directory, f"web01_{number}", number) for number in range(2)]
        moref = lab.register_vm(directory, "web01", disks)
        vcenter = settings_of(lab, patience_s=1)
        yield Backed(lab, vcenter, Journal(tmp_path / "journal"), repository, libdir, moref)


@pytest.fixture
async def backed(machine):
    """The same with a point."""
    await machine.back_up()
    return machine
