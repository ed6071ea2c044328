"""The documented escalation against redo logs that stay: taken where allowed, with snapshots of ours only."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import EXIT_ATTENTION, ConfigError
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vsphere_kit import take_and_remove
from vadpipe.lab.vcenter.faults.injection import Drop, Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import SnapshotLeaked
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.snapshot.remove import ConsolidationNeeded
from vadpipe.vsphere.vm.sweep import Outcome, sweep

pytestmark = pytest.mark.slow  # each waits first whether it comes by itself

DISKS = "consolidation"


@pytest.fixture
def vcenter(vcenter: Vcenter) -> Vcenter:
    return replace(vcenter, patience_s=0.15)


@pytest.fixture
def stuck(lab: LabVcenter) -> Callable[..., None]:
    """Lets the removal fail at the disks, ConsolidateVMDisks always, and further removals as often as told."""

    def stick(removals: int = 0, fault: Callable[[], vim.fault.VimFault] | None = None) -> None:
        fails = fault or (lambda: vim.fault.FileFault(file="[datastore1] web01/disk0-000001.vmdk"))
        for nth in range(1, removals + 2):
            lab.inject(DISKS, fails, nth, in_task=True)
        lab.inject("ConsolidateVMDisks_Task", fails, in_task=True, chance=1)

    return stick


@pytest.mark.parametrize("consolidate", [True, False, "always"])
def test_unknown_values_of_consolidate_are_config_errors(vcenter, consolidate):
    with pytest.raises(ConfigError, match="'never', 'ask', 'escalate'"):
        VcenterVm(vcenter, "web01", reader=None, consolidate=consolidate)


def test_effects_mention_the_snapshots_of_an_escalation(vcenter):
    machine = VcenterVm(vcenter, "web01", reader=None)
    assert "further snapshots" not in " ".join(machine.effects())
    assert "further snapshots" in " ".join(replace(machine, consolidate="escalate").effects())


async def test_ask_only_calls_consolidate_vm_disks(lab, vcenter, journal, add_vm, stuck):
    add_vm()
    stuck()
    with pytest.raises(ConsolidationNeeded, match="tried without success: ConsolidateVMDisks") as caught:
        await take_and_remove(vcenter, journal, "ask")
    assert caught.value.exit_code == EXIT_ATTENTION
    assert "--consolidate escalate" in caught.value.remedy
    assert lab.calls.get("CreateSnapshot_Task", 0) == 0


async def test_an_escalation_snapshot_consolidates_redo_logs(lab, vcenter, journal, add_vm, stuck):
    moref = add_vm()
    stuck()
    told: list[tuple[int, list[str]]] = []
    lab.inject(
        "CreateSnapshot_Task",
        Event(lambda: told.append((len(journal.intents()), list(lab.snapshots(moref).values())))),
        in_task=True,
        after=True,
    )
    await take_and_remove(vcenter, journal, "escalate")
    ((intents, (description,)),) = told
    assert intents == 1  # the same intent announces it
    assert "[vadpipe:" in description
    assert not lab.needs_consolidation(moref)
    assert lab.snapshots(moref) == {}
    assert (lab.calls["CreateSnapshot_Task"], lab.calls["RemoveSnapshot_Task"]) == (1, 2)
    assert journal.intents() == []


async def test_the_last_step_of_the_escalation_is_quiesced(lab, vcenter, journal, add_vm, stuck):
    moref = add_vm(quiescing="file-system")
    stuck(removals=1)
    quiesced: list[str] = []
    lab.on_snapshot.append(lambda moref, frozen: quiesced.append(moref))
    await take_and_remove(vcenter, journal, "escalate")
    assert quiesced == [moref]
    assert lab.calls["CreateSnapshot_Task"] == 2
    assert not lab.needs_consolidation(moref)
    assert journal.intents() == []


async def test_a_failed_escalation_names_every_step_and_leaves_no_snapshot(
    lab, vcenter, journal, add_vm, stuck
):
    moref = add_vm(quiescing="fault")
    stuck(removals=5)
    with pytest.raises(ConsolidationNeeded) as caught:
        await take_and_remove(vcenter, journal, "escalate")
    for step in ("ConsolidateVMDisks", "made and removed", "with quiescing"):
        assert step in caught.value.problem
    assert lab.snapshots(moref) == {}
    assert len(journal.intents()) == 1  # for the next sweep


async def test_no_snapshot_is_made_for_consolidation_while_the_vm_has_others(
    lab, vcenter, journal, add_vm, stuck
):
    moref = add_vm()
    foreign = lab.take_snapshot(moref, "before the update")
    stuck()
    with pytest.raises(ConsolidationNeeded, match=r"snapshots of others \(before the update\)"):
        await take_and_remove(vcenter, journal, "escalate")
    assert list(lab.snapshots(moref)) == [foreign]
    assert lab.calls.get("CreateSnapshot_Task", 0) == 0


async def test_a_full_datastore_gets_no_further_snapshot(lab, vcenter, journal, add_vm, stuck):
    add_vm()
    stuck(fault=lambda: vim.fault.NoDiskSpace(file="x", datastore="datastore1"))
    with pytest.raises(ConsolidationNeeded, match="datastore is full"):
        await take_and_remove(vcenter, journal, "escalate")
    assert lab.calls.get("CreateSnapshot_Task", 0) == 0


async def test_a_lost_answer_during_escalation_leaves_no_second_snapshot(
    lab, vcenter, journal, add_vm, stuck
):
    moref = add_vm()
    stuck()
    lab.inject("CreateSnapshot_Task", Drop.AFTER)
    await take_and_remove(vcenter, journal, "escalate")
    assert lab.snapshots(moref) == {}
    assert not lab.needs_consolidation(moref)


async def test_a_snapshot_of_the_escalation_that_stays_is_reported(lab, vcenter, journal, add_vm, stuck):
    moref = add_vm()
    stuck()
    lab.inject("RemoveSnapshot_Task", lambda: vim.fault.SnapshotFault(), 2)
    with pytest.raises(SnapshotLeaked, match="to consolidate the disks could not be removed") as caught:
        await take_and_remove(vcenter, journal, "escalate")
    assert not isinstance(caught.value, ConsolidationNeeded)
    (description,) = lab.snapshots(moref).values()
    (intent,) = journal.intents()
    assert intent.token in description


async def test_the_sweep_removes_what_a_killed_escalation_left(lab, vcenter, journal, add_vm, stuck):
    moref = add_vm()
    stuck()
    created = trio.Event()
    trio_token = trio.lowlevel.current_trio_token()
    lab.inject(
        "CreateSnapshot_Task",
        Event(lambda: trio_token.run_sync_soon(created.set)),
        in_task=True,
        after=True,
    )
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with pytest.raises(ConsolidationNeeded):
            await take_and_remove(vcenter, journal, "never")
        async with trio.open_nursery() as nursery:  # a sweep that is cancelled in the middle, as by a kill

            async def escalate() -> None:
                await sweep(session, journal, consolidate="escalate")

            nursery.start_soon(escalate)
            await created.wait()
            nursery.cancel_scope.cancel()
        assert len(lab.snapshots(moref)) == 1
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert vm.moref == moref
    assert lab.snapshots(moref) == {}
    assert not lab.needs_consolidation(moref)
    assert journal.intents() == []
