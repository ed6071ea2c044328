"""The same client code against govmomi's simulator: a second opinion from a codec that is not pyVmomi's."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import SourceError
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vcsim_kit import NEEDS_VCSIM, running_vcsim, vcsim
from tests.vadpipe.vsphere.vsphere_kit import dead_intent, make_snapshot
from vadpipe.vsphere.api.faults import LoginRefused
from vadpipe.vsphere.api.properties import read_all
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import Vm, find_vm
from vadpipe.vsphere.manifest.fetch import fetch_manifest
from vadpipe.vsphere.manifest.https import OverHttps
from vadpipe.vsphere.manifest.locate import directory_state
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import open_snapshot
from vadpipe.vsphere.snapshot.tree import description_with, snapshots_left, snapshots_of
from vadpipe.vsphere.vm.orphans import orphan_candidates
from vadpipe.vsphere.vm.sweep import Outcome, sweep

__all__ = ["vcsim"]

pytestmark = NEEDS_VCSIM
WEB01 = "DC0_H0_VM0"


@pytest.fixture
def slow_vcsim() -> Iterator[Vcenter]:
    """Every call that a task needs takes its time."""
    calls = ("CreateSnapshot_Task", "RemoveSnapshot_Task", "WaitForUpdatesEx", "CreatePropertyCollector")
    with running_vcsim("-method-delay", ",".join(f"{call}:100" for call in calls)) as settings:
        yield settings


async def _make_windows_with_tools(session: VcenterSession, vm: Vm) -> None:
    """By the simulator's own way to set any property: extraConfig with the prefix SET."""
    values = {"guest.toolsRunningStatus": "guestToolsRunning", "config.guestId": "windows2019srv_64Guest"}
    options = [vim.option.OptionValue(key=f"SET.{path}", value=value) for path, value in values.items()]
    subject, spec = vm.reference(session), vim.vm.ConfigSpec(extraConfig=options)
    task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
    await wait_for_task(session, task, "ReconfigVM_Task")


async def _end_session(session: VcenterSession, by: VcenterSession) -> None:
    def end() -> None:
        manager = session.content.sessionManager
        assert manager is not None
        key = manager.currentSession.key
        vim.SessionManager("SessionManager", by.stub).TerminateSession([key])

    await session.call("TerminateSession", end)


async def test_a_login_finds_a_vm_by_name_and_path(vcsim):
    async with vcsim.connect() as session:
        assert session.is_vcenter
        vm = await find_vm(session, WEB01)
        assert (vm.name, vm.datacenter) == (WEB01, "DC0")
        assert (await find_vm(session, vm.path)) == vm
        with pytest.raises(SourceError, match=WEB01):
            await find_vm(session, "DC0_H0_VM")


async def test_a_wrong_password_is_refused(vcsim):
    with pytest.raises(LoginRefused):
        async with replace(vcsim, password=Secret.from_text("wrong")).connect():
            pass


async def test_a_session_that_was_ended_is_renewed(vcsim):
    async with vcsim.connect() as session, vcsim.connect() as other:
        await _end_session(session, other)
        assert (await find_vm(session, WEB01)).name == WEB01


async def test_a_snapshot_comes_and_goes(vcsim, journal):
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        async with open_snapshot(
            session, vm, Quiesce.application(policy="try"), journal, run="r"
        ) as snapshot:
            assert await snapshots_left(session, vm) == 1
            assert snapshot.disks
            assert snapshot.configuration["name"] == WEB01
        assert await snapshots_left(session, vm) == 0
    assert journal.intents() == []


async def test_a_quiesced_snapshot_needs_no_newer_call(vcsim, journal):
    """It does not offer CreateSnapshotEx_Task; the older call carries the wish."""
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        await _make_windows_with_tools(session, vm)
        async with open_snapshot(session, vm, Quiesce.application(), journal, run="r") as snapshot:
            (node,) = await snapshots_of(session, vm.moref)
            assert (node.moref, node.quiesced, node.backup_manifest) == (snapshot.moref, True, None)
            assert snapshot.quiesce.kind == "application"
            assert snapshot.family == {node.moref}
            before = await directory_state(session, vm)
            fetched = await fetch_manifest(session, snapshot, before, [OverHttps()])
            assert fetched.content is None
    assert journal.intents() == []


async def test_tasks_are_waited_for_where_calls_take_their_time(slow_vcsim, journal):
    async with slow_vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            assert [node.moref for node in await snapshots_of(session, vm.moref)] == [snapshot.moref]
        assert await snapshots_left(session, vm) == 0
        with trio.CancelScope() as scope:
            async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await snapshots_left(session, vm) == 0
    assert journal.intents() == []


async def test_a_snapshot_outlives_the_session_that_made_it_and_is_removed(vcsim, journal):
    async with vcsim.connect() as session, vcsim.connect() as other:
        vm = await find_vm(session, WEB01)
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
            await _end_session(session, other)
            assert await snapshots_left(other, vm) == 1
        assert await snapshots_left(other, vm) == 0
    assert journal.intents() == []


async def test_a_disk_that_nothing_refers_to_is_an_orphan_candidate(vcsim):
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        assert await orphan_candidates(session, [vm]) == []
        stray = f"[LocalDS_0] {WEB01}/stray.vmdk"
        manager = session.content.virtualDiskManager
        assert manager is not None
        spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=1024
        )
        place = vim.Datacenter(await session.call("read", lambda: _datacenter(session)), session.stub)
        task = await session.call(
            "CreateVirtualDisk_Task", lambda: manager.CreateVirtualDisk(stray, place, spec), changes=True
        )
        await wait_for_task(session, task, "CreateVirtualDisk_Task")
        assert [orphan.path for orphan in await orphan_candidates(session, [vm])] == [stray]


def _datacenter(session: VcenterSession) -> str:
    (row,) = read_all(session.content, {vim.Datacenter: ["name"]})
    return row.moref


async def test_the_sweep_takes_ours_and_leaves_theirs(vcsim, journal):
    async with vcsim.connect() as session:
        vm = await find_vm(session, WEB01)
        intent = await dead_intent(session, journal, WEB01)
        for description in ("theirs", description_with(intent.token)):
            await make_snapshot(session, "x", description, WEB01)
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert [node.description for node in await snapshots_of(session, vm.moref)] == ["theirs"]
    assert journal.intents() == []


async def test_a_capture_ends_clean_where_no_disk_can_be_read(vcsim, journal):
    """The simulator has no disk content: opening fails, and everything else is undone."""

    class Reader:
        def open(self, access: object, pool: object) -> None:
            raise SourceError("no disk content here")

    with pytest.raises(SourceError, match="no disk content"):
        quiesce = Quiesce.application(policy="try")  # Tools do not run in its VMs
        machine = VcenterVm(vcsim, WEB01, reader=Reader(), journal=journal, quiesce=quiesce, preflight=None)
        async with machine.capture():
            pass
    async with vcsim.connect() as session:
        assert await snapshots_left(session, await find_vm(session, WEB01)) == 0
