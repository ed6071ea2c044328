"""Change tracking is trusted in one order: note the ids, remove the snapshot, consolidate, make the next one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import ChangeTrackingInvalid
from stages.vcenter_vm import VcenterVm
from vadpipe.lab.vcenter.faults.injection import Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.remove import Consolidate, ConsolidationNeeded

CREATE, REMOVE, ASK, DISKS = (
    "CreateSnapshotEx_Task",
    "RemoveSnapshot_Task",
    "ConsolidateVMDisks_Task",
    "consolidation",
)


@pytest.fixture
def log(lab: LabVcenter) -> list[str]:
    """What tasks did to VMs, as it was done; a creation tells what it found."""
    done: list[str] = []

    def created() -> None:
        moref = lab.moref("web01")
        found = ["snapshots"] * bool(lab.snapshots(moref)) + ["redo logs"] * lab.needs_consolidation(moref)
        done.append(f"create on {' and '.join(found) or 'nothing'}")

    lab.inject(CREATE, Event(created), in_task=True, chance=1)
    for name, said in ((REMOVE, "removed"), (ASK, "asked"), (DISKS, "consolidated")):
        lab.inject(name, Event(lambda said=said: done.append(said)), in_task=True, after=True, chance=1)
    return done


@pytest.fixture
def vcenter(vcenter: Vcenter) -> Vcenter:
    return replace(vcenter, patience_s=0.15)


@pytest.fixture
def machine(vcenter: Vcenter, reader, journal: Journal) -> Callable[..., VcenterVm]:
    def make(consolidate: Consolidate = "ask") -> VcenterVm:
        return VcenterVm(
            vcenter, "web01", reader=reader, journal=journal, quiesce=Quiesce.none(), consolidate=consolidate
        )

    return make


async def test_run_after_run_keeps_the_order(lab, machine, add_vm, log):
    add_vm(change_tracking=True)
    for _ in range(2):
        async with machine().capture() as capture:
            assert capture.disks[0].change_id is not None
            log.append("noted")
    run = ["create on nothing", "noted", "consolidated", "removed"]
    assert log == [*run, *run]


async def test_the_order_is_kept_after_a_killed_run(lab, machine, journal, add_vm, log):
    add_vm(change_tracking=True)
    for nth in (1, 2):  # the run's own removal, and the sweep at its end
        lab.inject(REMOVE, lambda: vim.fault.SnapshotFault(), nth)
    with pytest.raises(Exception, match="could not be removed"):
        async with machine().capture():
            log.clear()
    assert len(journal.intents()) == 1
    async with machine().capture() as capture:
        assert capture.disks[0].change_id is not None
    assert log == ["consolidated", "removed", "create on nothing", "consolidated", "removed"]


@pytest.mark.slow
async def test_the_order_is_kept_after_a_removal_that_failed_at_the_disks(lab, machine, add_vm, log):
    add_vm(change_tracking=True)
    lab.inject(DISKS, lambda: vim.fault.FileFault(file="x"), in_task=True)
    with pytest.raises(ConsolidationNeeded):
        async with machine("never").capture():
            log.clear()
    async with machine().capture() as capture:
        assert capture.disks[0].change_id is not None
    assert log[:3] == ["consolidated", "asked", "create on nothing"]


@pytest.mark.slow
async def test_untracked_disks_stay_untracked_after_a_quiescing_retry(
    lab, vcenter, reader, journal, add_vm, log
):
    add_vm(change_tracking=True)
    # The snapshot is made all the same, and the answer is that the guest could not be quiesced.
    fault = vim.fault.ApplicationQuiesceFault
    lab.inject(CREATE, lambda: fault(msg="quiesce"), in_task=True, after=True)
    quiesce = Quiesce.application(retries=1, retry_after_s=0.01)
    async with VcenterVm(vcenter, "web01", reader=reader, journal=journal, quiesce=quiesce).capture():
        assert log == ["create on nothing", "consolidated", "removed", "create on nothing"]


@pytest.mark.slow
async def test_disks_that_needed_consolidation_are_untracked_now_and_next_time(lab, machine, add_vm, log):
    moref = add_vm(change_tracking=True)
    lab.inject(DISKS, lambda: vim.fault.FileFault(file="x"), in_task=True)
    with pytest.raises(ConsolidationNeeded):
        async with machine("never").capture() as capture:
            since = capture.disks[0].change_id
            assert since is not None
            assert not any("read in full" in remark for remark in capture.remarks)
    async with machine("never").capture() as capture:
        assert log[-1] == "create on redo logs"
        assert any("read in full" in remark for remark in capture.remarks)
        assert capture.disks[0].change_id is None
        with pytest.raises(ChangeTrackingInvalid):
            await capture.disks[0].changed(since, 0)
    assert not lab.needs_consolidation(moref)  # this removal took the older redo logs with it
    async with machine().capture() as capture:
        assert capture.disks[0].change_id is not None
