"""Redo logs that outlive their snapshot are consolidated or named; what is not ours is told, and left alone."""

from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import EXIT_ATTENTION, SourceError, leaves
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vsphere_kit import take_and_remove
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.remove import ConsolidationNeeded
from vadpipe.vsphere.snapshot.snapshot import open_snapshot
from vadpipe.vsphere.snapshot.tree import description_with
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead, sweep

pytestmark = pytest.mark.slow  # each waits first whether it comes by itself

DISKS = "consolidation"


async def test_a_removal_that_fails_at_the_disks_is_consolidated(lab, vcenter, journal, add_vm):
    moref = add_vm()
    lab.inject(DISKS, lambda: vim.fault.FileFault(file="[datastore1] x"), in_task=True)
    await take_and_remove(vcenter, journal)
    assert lab.calls["ConsolidateVMDisks_Task"] == 1
    assert not lab.needs_consolidation(moref)
    assert journal.intents() == []


async def test_a_locked_disk_is_waited_for(lab, vcenter, journal, add_vm):
    moref = add_vm()
    for nth in (1, 2, 3):
        lab.inject(DISKS, lambda: vim.fault.FileLocked(file="[datastore1] x"), nth, in_task=True)
    await take_and_remove(vcenter, journal)
    assert not lab.needs_consolidation(moref)


async def test_the_policy_never_reports_consolidation_without_asking_for_it(lab, vcenter, journal, add_vm):
    moref = add_vm()
    lab.inject(DISKS, lambda: vim.fault.FileFault(file="[datastore1] x"), in_task=True)
    with pytest.raises(ConsolidationNeeded, match="consolidate='never' forbids it") as caught:
        await take_and_remove(vcenter, journal, consolidate="never")
    assert caught.value.exit_code == EXIT_ATTENTION
    assert "ConsolidateVMDisks_Task" not in lab.calls
    assert lab.needs_consolidation(moref)
    async with vcenter.connect() as session:
        (kept,) = await sweep(session, journal, consolidate="never")
        assert kept.outcome is Outcome.KEPT
        (would,) = await look_ahead(session, journal)
        assert would.outcome is Outcome.WOULD_CONSOLIDATE
        assert lab.needs_consolidation(moref)
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.CONSOLIDATED
    assert not lab.needs_consolidation(moref)


async def test_failed_consolidation_is_raised_beside_the_error_of_the_body(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject(DISKS, lambda: vim.fault.NoDiskSpace(file="x", datastore="datastore1"), in_task=True, chance=1)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with vcenter.connect() as session:
            vm = await find_vm(session, "web01")
            async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
                raise ValueError("body")
    body, named = leaves(caught.value)
    assert isinstance(body, ValueError)
    assert isinstance(named, ConsolidationNeeded)
    assert "datastore is full" in str(named)
    assert len(journal.intents()) == 1  # for the next sweep


async def test_snapshots_of_others_are_reported_and_left_alone(lab, vcenter, journal, add_vm, reader):
    moref = add_vm()
    foreign = [
        lab.take_snapshot(moref, "before the update"),
        lab.take_snapshot(moref, "vadpipe x", description_with("0" * 32)),
    ]
    machine = VcenterVm(vcenter, "web01", reader=reader, journal=journal)
    with pytest.raises(SourceError, match="snapshots-left"):  # preflight, for the one with our mark
        async with machine.capture():
            pass
    async with replace(machine, preflight=None).capture() as capture:
        assert len(lab.snapshots(moref)) == 3
        told = " ".join(capture.remarks)
        assert f"'before the update' ({foreign[0]}, " in told
        assert "not made by vadpipe; it is left alone" in told
        assert f"({foreign[1]}, " in told
        assert "made by another run of vadpipe" in told
    assert list(lab.snapshots(moref)) == foreign
    assert capture.snapshots_left == 2


async def test_a_snapshot_description_names_the_run_and_the_host(lab, vcenter, journal, add_vm, reader):
    moref = add_vm()
    async with replace(VcenterVm(vcenter, "web01", reader=reader), journal=journal).capture():
        (intent,) = journal.intents()
        (description,) = lab.snapshots(moref).values()
    assert intent.run in description
    assert intent.host in description
    assert description.endswith(f"[vadpipe:{intent.token}]")
