"""A new VM without VDDK for its disks: imported, sent over HTTPS, compared, and gone when anything fails."""

from __future__ import annotations

import pytest

from pipeline.errors import leaves
from tests.sinks.new_vm_kit import Backed, filled
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.journal.intents import Journal

pytestmark = pytest.mark.slow


@pytest.fixture
async def backed(tmp_path, repository, libdir, monkeypatch):
    """A VM with two disks that is backed up."""
    from tests.vadpipe.vsphere.vsphere_kit import settings_of

    with LabVcenter(tmp_path / "lab", task_s=0.02) as lab:
        monkeypatch.setenv("VADPIPE_LAB_ROOT", str(lab.root))
        directory = lab.datastore("datastore1") / "web01"
        disks = [filled(directory, f"web01-{number}", number) for number in range(2)]
        moref = lab.register_vm(directory, "web01", disks)
        made = Backed(
            lab, settings_of(lab, patience_s=2), Journal(tmp_path / "journal"), repository, libdir, moref
        )
        await made.back_up()
        yield made


def errors_of(receipt) -> str:
    return " ".join(str(leaf) for failure in receipt.failures for leaf in leaves(failure))


async def test_a_vm_comes_back_without_vddk(backed):
    receipt = await backed.restore(via="lease", writer=None)
    assert errors_of(receipt) == ""
    assert backed.restored() == backed.digests
    assert [disk.key for disk in receipt.disks] == ["scsi0:0", "scsi0:1"]
    told = " ".join(receipt.remarks)
    assert "web01-restored: disks restored, not read back." in told
    assert "proven" not in told
    assert told.count("the server received what was sent (SHA-1 ") == 2
    assert backed.journal.intents() == []
    assert (
        backed.lab.vms["web01-restored"].power == "poweredOff" if isinstance(backed.lab.vms, dict) else True
    )


async def test_the_disks_are_read_back_where_there_is_a_reader(backed):
    receipt = await backed.restore(via="lease")
    assert errors_of(receipt) == ""
    told = " ".join(receipt.remarks)
    assert "web01-restored: disks restored and proven." in told
    assert told.count("read back and proved") == 2
