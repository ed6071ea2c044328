"""VMs and servers as the field has them: many disks, a licence without backup, reports of runs that fail."""

import logging
from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import MoverError, SnapshotError, SnapshotLeaked, leaves
from stages.vcenter_vm import VcenterVm
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.hot_add import attached_to
from vadpipe.vsphere.snapshot.quiesce import Quiesce


@pytest.fixture
def web01(vcenter: Vcenter, reader, journal: Journal) -> VcenterVm:
    return VcenterVm(vcenter, "web01", reader=reader, journal=journal, preflight=None, quiesce=Quiesce.none())


@pytest.mark.slow
@pytest.mark.parametrize("disks", [20, 60])  # 60: what four SCSI controllers of 15 units take
async def test_all_disks_of_a_large_vm_are_opened_and_released(lab, web01, add_vm, reader, disks):
    moref = add_vm(disks=disks)
    async with web01.capture() as capture:
        assert len({disk.key for disk in capture.disks}) == disks
        assert capture.left_out == []
    assert len(reader.opened) == len(reader.closed) == disks
    assert lab.snapshots(moref) == {}


async def test_a_host_whose_licence_forbids_backups_refuses_with_the_cause(lab, web01, add_vm, journal):
    moref = add_vm()
    for method in ("CreateSnapshotEx_Task", "CreateSnapshot_Task"):
        lab.inject(method, vim.fault.RestrictedVersion, chance=1)
    with pytest.raises(MoverError, match="the licence of the host") as caught:
        async with web01.capture():
            pass
    assert caught.value.remedy
    assert lab.snapshots(moref) == {}
    assert journal.intents() == []


async def test_a_failed_run_reports_what_an_earlier_run_left(lab, web01, add_vm):
    moref = add_vm()
    foreign = lab.take_snapshot(moref, "before the update")
    for nth in (1, 2):  # at the end of the first run, and in the sweep after it
        lab.inject("RemoveSnapshot_Task", vim.fault.SnapshotLocked, nth)
    with pytest.raises(SnapshotLeaked):
        async with web01.capture():
            pass
    lab.inject("CreateSnapshotEx_Task", vim.fault.TooManySnapshotLevels)
    with pytest.raises(SnapshotError) as caught:
        async with web01.capture():
            pass
    notes = " ".join(caught.value.__notes__)
    assert "Left by an earlier run: snapshot 'vadpipe" in notes
    assert f"web01 has the snapshot 'before the update' ({foreign}, " in notes


async def test_a_failed_body_reports_weaker_quiescing(web01, add_vm):
    add_vm(power="poweredOff")
    with pytest.raises(MoverError) as caught:
        async with replace(web01, quiesce=Quiesce.application()).capture():
            raise MoverError("the body failed.")
    (error,) = leaves(caught.value)
    assert any("'application' was asked for" in note for note in error.__notes__)


async def test_the_life_of_a_snapshot_is_logged_with_durations(web01, add_vm, caplog):
    add_vm()
    with caplog.at_level(logging.INFO, "vadpipe.vsphere"):
        async with web01.capture() as capture:
            moref = capture.snapshot.moref
    text = caplog.text
    assert f"web01: snapshot {moref} created in " in text
    assert "web01: scsi0:0 opened through " in text
    assert f"({moref}) removed in " in text
    assert "lab" not in {record.getMessage() for record in caplog.records}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_stays_behind_is_logged_as_a_warning_with_the_remedy(lab, web01, add_vm, caplog):
    add_vm()
    lab.inject("RemoveSnapshot_Task", vim.fault.SnapshotLocked, chance=1)
    with pytest.raises(SnapshotLeaked):
        async with web01.capture():
            pass
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("could not be removed" in line and "vadpipe cleanup" in line for line in warnings)


async def test_only_a_disk_in_use_counts_as_attached_to_another_vm(lab, vcenter, add_vm):
    moref = add_vm()
    add_vm("proxy", disks=1, traits=VmTraits(proxy=True))
    attached = lab.root / "hotadd" / moref
    attached.mkdir(parents=True)
    async with vcenter.connect() as session:
        assert await attached_to(session, moref) == []
        (attached / lab.disks(moref)[0].base.name).touch()
        assert await attached_to(session, moref) == ["proxy"]
        lab.take_snapshot(
            moref, "of somebody else"
        )  # its file is below the one in use now, as for linked clones
        assert await attached_to(session, moref) == []
        assert await attached_to(session, (await find_vm(session, "proxy")).moref) == []
