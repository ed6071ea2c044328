"""A snapshot exists inside `async with` and is gone afterwards, whatever happened inside."""

from collections.abc import Callable

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import EXIT_ATTENTION, MoverError, leaves
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.faults.kinds import fault_maker
from vadpipe.vsphere.api.faults import QuiesceFailed, SnapshotError, SnapshotLeaked
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import Snapshot, open_snapshot
from vadpipe.vsphere.snapshot.tree import snapshots_left, snapshots_of
from vadpipe.vsphere.vm.sweep import Outcome, sweep


def _denied() -> vim.fault.NoPermission:
    return vim.fault.NoPermission(
        object=vim.VirtualMachine("vm-1"), privilegeId="VirtualMachine.State.RemoveSnapshot"
    )


async def _take(
    session: VcenterSession,
    journal: Journal,
    body: Callable[[Snapshot], None] | None = None,
    quiesce: Quiesce | None = None,
    remove_within_s: float = 60,
) -> None:
    vm = await find_vm(session, "web01")
    async with open_snapshot(
        session, vm, quiesce or Quiesce.none(), journal, run="run1", remove_within_s=remove_within_s
    ) as snapshot:
        if body is not None:
            body(snapshot)


async def _left(session: VcenterSession) -> int:
    return await snapshots_left(session, await find_vm(session, "web01"))


def _fail(_: Snapshot) -> None:
    raise ValueError("body")


async def test_a_snapshot_exists_inside_and_is_gone_afterwards(vcenter, journal, add_vm):
    add_vm(disks=2)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.application(), journal, run="run1") as snapshot:
            (node,) = await snapshots_of(session, vm.moref)
            (intent,) = journal.intents()
            assert (node.moref, node.name, node.token) == (snapshot.moref, "vadpipe run1", intent.token)
            assert intent.vm_uuid == vm.uuid
            assert [disk.key for disk in snapshot.disks] == ["scsi0:0", "scsi0:1"]
            assert [disk.label for disk in snapshot.disks] == ["Hard disk 1", "Hard disk 2"]
            assert all(disk.path.endswith("-000002.vmdk") for disk in snapshot.disks)  # where VSS wrote
            assert snapshot.left_out == []
        assert await _left(session) == 0
    assert journal.intents() == []


async def test_a_snapshot_is_removed_when_the_body_fails(vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        with pytest.raises(ValueError, match="body"):
            await _take(session, journal, _fail)
        assert await _left(session) == 0
    assert journal.intents() == []


async def test_without_a_journal_nothing_is_created(lab, vcenter, journal, add_vm):
    add_vm()
    journal.directory.touch()  # a file where the directory should be
    async with vcenter.connect() as session:
        with pytest.raises(MoverError, match="journal"):
            await _take(session, journal)
    assert "CreateSnapshotEx_Task" not in lab.calls


@pytest.mark.parametrize("drop", list(Drop))
async def test_a_lost_answer_makes_neither_two_snapshots_nor_none(lab, vcenter, journal, add_vm, drop):
    add_vm()
    lab.inject("CreateSnapshotEx_Task", drop)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            nodes = await snapshots_of(session, vm.moref)
            assert [node.moref for node in nodes] == [snapshot.moref]
        assert await _left(session) == 0
    assert lab.calls["CreateSnapshotEx_Task"] == (2 if drop is Drop.BEFORE else 1)
    assert journal.intents() == []


@pytest.mark.parametrize("drop", list(Drop))
async def test_a_lost_answer_to_the_removal_is_looked_into(lab, vcenter, journal, add_vm, drop):
    add_vm()
    lab.inject("RemoveSnapshot_Task", drop)
    async with vcenter.connect() as session:
        await _take(session, journal)
        assert await _left(session) == 0
    assert journal.intents() == []


async def test_a_snapshot_is_removed_after_the_server_restarted(lab, vcenter, journal, add_vm):
    add_vm()

    def restart(_: Snapshot) -> None:
        lab.expire_sessions()
        lab.drop_connections()

    async with vcenter.connect() as session:
        await _take(session, journal, restart)
        assert await _left(session) == 0


async def test_a_snapshot_is_removed_when_the_body_is_cancelled(vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with trio.CancelScope() as scope:
            async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await _left(session) == 0


async def test_a_snapshot_is_removed_when_its_creation_is_cancelled(
    lab, vcenter, journal, add_vm, wait_for_call
):
    add_vm()
    async with vcenter.connect() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take, session, journal)
            await wait_for_call(lab, "CreateSnapshotEx_Task")
            nursery.cancel_scope.cancel()
        assert lab.calls["RemoveSnapshot_Task"] == 1
        assert await _left(session) == 0
    assert journal.intents() == []


async def test_a_guest_that_cannot_be_quiesced_is_reported_with_its_own_words(lab, vcenter, journal, add_vm):
    add_vm(quiescing="fault")
    async with vcenter.connect() as session:
        with pytest.raises(QuiesceFailed) as caught:
            await _take(session, journal, quiesce=Quiesce.application(retries=0))
        assert await _left(session) == 0
    assert caught.value.facts["vss_code"] == "0x80042301"
    assert "VssSyncStart" in str(caught.value)
    assert "vssadmin" in caught.value.remedy
    assert journal.intents() == []


async def test_a_failed_quiesce_survives_events_that_cannot_be_read(lab, vcenter, journal, add_vm):
    add_vm(quiescing="fault")
    lab.inject("QueryEvents", _denied)
    async with vcenter.connect() as session:
        with pytest.raises(QuiesceFailed):
            await _take(session, journal, quiesce=Quiesce.application(retries=0))


async def test_a_refused_snapshot_leaves_no_intent(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject("CreateSnapshotEx_Task", vim.fault.TooManySnapshotLevels)
    async with vcenter.connect() as session:
        with pytest.raises(SnapshotError, match="chain of snapshots"):
            await _take(session, journal)
    assert journal.intents() == []


async def test_a_snapshot_that_cannot_be_removed_is_reported_and_left_to_the_sweep(
    lab, vcenter, journal, add_vm
):
    add_vm()
    lab.inject("RemoveSnapshot_Task", _denied)
    taken: list[Snapshot] = []
    async with vcenter.connect() as session:
        with pytest.raises(SnapshotLeaked) as caught:
            await _take(session, journal, taken.append)
        assert caught.value.exit_code == EXIT_ATTENTION
        assert caught.value.facts["snapshot"] == taken[0].moref
        assert taken[0].moref in str(caught.value)
        assert "RemoveSnapshot" in str(caught.value)
        assert await _left(session) == 1
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert await _left(session) == 0
    assert journal.intents() == []


async def test_a_removal_that_fails_with_object_not_found_is_a_leak(lab, vcenter, journal, add_vm):
    moref = add_vm()
    lab.inject("RemoveSnapshot_Task", fault_maker("ManagedObjectNotFound"), in_task=True)
    async with vcenter.connect() as session:
        with pytest.raises(SnapshotLeaked):
            await _take(session, journal)
    assert len(lab.snapshots(moref)) == 1


async def test_both_errors_come_out_when_body_and_removal_fail(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject("RemoveSnapshot_Task", _denied)
    async with vcenter.connect() as session:
        with pytest.raises(BaseExceptionGroup) as caught:
            await _take(session, journal, _fail)
    assert [type(leaf) for leaf in leaves(caught.value)] == [ValueError, SnapshotLeaked]


async def test_a_leaked_snapshot_is_reported_when_the_body_was_cancelled(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject("RemoveSnapshot_Task", _denied)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with pytest.raises(BaseExceptionGroup) as caught, trio.CancelScope() as scope:
            async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
                scope.cancel()
                await trio.sleep_forever()
    assert [type(leaf) for leaf in leaves(caught.value)] == [SnapshotLeaked]


async def test_a_busy_vm_is_waited_for(lab, vcenter, journal, add_vm):
    add_vm()
    for nth in (1, 2):
        lab.inject("RemoveSnapshot_Task", lambda: vim.fault.TaskInProgress(task=vim.Task("task-1")), nth)
    async with vcenter.connect() as session:
        await _take(session, journal)
        assert await _left(session) == 0
    assert lab.calls["RemoveSnapshot_Task"] == 3


async def test_the_removal_has_a_deadline(lab, vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        with pytest.raises(SnapshotLeaked, match="not done after 0 s"):
            await _take(session, journal, remove_within_s=0)
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert await _left(session) == 0
