"""A VM that is moved at any moment: either nothing of it matters, or no point is published."""

from collections.abc import Callable

import pytest
from pyVmomi import vim

from pipeline import Job
from pipeline.units import KiB
from stages import VssManifest
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.conftest import LabReader
from vadpipe.lab.campaigns.points import DirectoryPoint, DirectoryTarget, path
from vadpipe.lab.vcenter.faults.injection import Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import HostTraits
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.unmoved import Moved
from vadpipe.vsphere.vm.capture import VsphereCapture

AddVm = Callable[..., str]
Move = Callable[[], None]
HOST, FILES = "host", "files"


@pytest.fixture
def moref(add_vm: AddVm) -> str:
    return add_vm(disks=2, change_tracking=True)


@pytest.fixture(params=[HOST, FILES])
def move(request: pytest.FixtureRequest, lab: LabVcenter, moref: str) -> Move:
    """vMotion, and storage vMotion."""
    host = lab.add_host(HostTraits("esxi02.lab.local"))
    lab.datastore("datastore2")
    if request.param == HOST:
        return lambda: lab.move(moref, host=host)
    return lambda: lab.move(moref, datastore="datastore2")


@pytest.fixture
def job(
    lab: LabVcenter, vcenter: Vcenter, reader: LabReader, journal: Journal, tmp_path
) -> Job[VsphereCapture, DirectoryPoint]:
    machine = VcenterVm(vcenter, "web01", reader=reader, journal=journal, enable_change_tracking=True)
    return Job(machine, path, DirectoryTarget(tmp_path / "points"), finish=[VssManifest()])


@pytest.mark.parametrize("call", ["CreateContainerView", "SearchDatastore_Task"])
@pytest.mark.slow
async def test_a_move_before_the_snapshot_does_not_matter(lab, job, move, moref, call):
    lab.inject(call, Event(move), after=True)
    receipt = await job.run()
    assert receipt.attention == []
    assert receipt.evidence.reached == "application"
    assert lab.snapshots(moref) == {}


@pytest.mark.slow
async def test_a_vm_moved_during_the_read_publishes_nothing(lab, job, move, moref):
    class Moving:
        async def finish(self, capture):
            move()
            return await VssManifest().finish(capture)

    moving = Job(job.machine, job.path, job.into, finish=[Moving()])
    with pytest.raises(Moved) as caught:
        await moving.run()
    assert caught.value.transient
    assert "was moved while it was read" in str(caught.value)
    assert job.into.points() == []
    assert lab.snapshots(moref) == {}
    await job.run()
    assert len(job.into.points()) == 1


@pytest.mark.slow
async def test_a_snapshot_that_moves_before_its_removal_is_removed(lab, job, move, moref):
    lab.inject("RemoveSnapshot_Task", Event(move))
    receipt = await job.run()
    assert receipt.attention == []
    assert lab.snapshots(moref) == {}
    assert not lab.needs_consolidation(moref)


@pytest.mark.slow
async def test_the_sweep_finds_a_moved_snapshot_whose_removal_failed(lab, job, move, moref):
    for nth in (1, 2):  # the run's own removal, and the sweep at its end
        lab.inject("RemoveSnapshot_Task", vim.fault.SnapshotLocked, nth)
    assert (await job.run()).attention
    assert len(lab.snapshots(moref)) == 1
    move()
    receipt = await job.run()
    assert any("removed" in remark for remark in receipt.remarks)
    assert lab.snapshots(moref) == {}


@pytest.mark.slow
async def test_a_snapshot_that_somebody_else_removed_fails_the_run(lab, job, moref):
    class Removing:
        async def finish(self, capture):
            lab._inventory.vms[moref].snapshots.clear()
            return await VssManifest().finish(capture)

    with pytest.raises(Moved, match="the snapshot is gone"):
        await Job(job.machine, job.path, job.into, finish=[Removing()]).run()
    assert job.into.points() == []


async def test_a_vm_moved_while_read_fails_the_run(lab, job, moref):
    """What makes the check worth its calls: the reader itself notices nothing."""
    lab.datastore("datastore2")
    guest = lab.disks(moref)[0]
    guest.write(0, b"precious" * KiB)
    async with job.machine.capture() as capture:
        leaf = lab.datastore("datastore1") / "web01" / f"{guest.name}.vmdk"
        with leaf.open("rb") as stale:
            assert b"precious" in stale.read()
            lab.move(moref, datastore="datastore2")
            stale.seek(0)
            assert not any(stale.read())
        with pytest.raises(Moved, match="datastore2"):
            await capture.confirm()
    assert guest.read(0, 8) == b"precious"
