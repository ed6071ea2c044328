"""A point becomes a new VM: made, written, proved and completed, or taken away again."""

import pytest

from tests.sinks.new_vm_kit import Backed, filled
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.journal.intents import Journal

pytestmark = pytest.mark.slow


@pytest.fixture
async def backed(tmp_path, repository, libdir, monkeypatch):
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(tmp_path / "lab"))
    with LabVcenter(tmp_path / "lab", task_s=0.02) as lab:
        directory = lab.datastore("datastore1") / "web01"
        disks = [filled(directory, f"web01_{number}", number) for number in range(2)]
        moref = lab.register_vm(directory, "web01", disks)
        vcenter = settings_of(lab, patience_s=1)
        made = Backed(lab, vcenter, Journal(tmp_path / "journal"), repository, libdir, moref)
        await made.back_up()
        yield made


async def test_the_disks_of_the_new_vm_hold_what_was_backed_up(backed):
    receipt = await backed.restore()
    assert receipt.failures == []
    assert backed.restored() == backed.digests
    assert "web01-restored: disks restored and proven." in receipt.remarks
    assert backed.journal.intents() == []
