"""What a real vCenter answers and simulators do not: a test for each line of what was collected about it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from pyVmomi import vim
from pyVmomi.VmomiSupport import F_OPTIONAL

from pipeline.errors import MoverError, leaves
from pipeline.units import MiB
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.faults.injection import Delay
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.faults import SnapshotLeaked
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.hardware import chains, configuration, vm_disks
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.manifest.locate import directory_state
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.remove import find_ours
from vadpipe.vsphere.snapshot.snapshot import open_snapshot
from vadpipe.vsphere.snapshot.tree import description_with, snapshots_of
from vadpipe.vsphere.vm.orphans import orphan_candidates
from vadpipe.vsphere.vm.sweep import Outcome, sweep


@pytest.fixture
def web01(vcenter: Vcenter, reader, journal: Journal) -> VcenterVm:
    return VcenterVm(vcenter, "web01", reader=reader, journal=journal)


# config.files.snapshotDirectory comes with a trailing slash; simulators give none.


@pytest.mark.parametrize("slash", [True, False])
async def test_snapshot_directory_ends_in_a_slash_or_not(lab, vcenter, web01, add_vm, *, slash):
    add_vm(traits=VmTraits(directory_slash=slash))
    (lab.datastore("datastore1") / "web01" / "stray.vmdk").write_bytes(b"")
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        state = await directory_state(session, vm)
        assert state.directory.endswith("/") is slash
        assert state.problem == ""
        (orphan,) = await orphan_candidates(session, [vm])
        assert orphan.path == "[datastore1] web01/stray.vmdk"
    async with web01.capture() as capture:
        fetched = await capture.fetch_vss_manifest()
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"


# A quiesced snapshot without memory: state=poweredOff, quiesced=true, backupManifest=[ds] VM/VM-vss_manifests1.zip.


@pytest.mark.parametrize("relative", [True, False])
async def test_backup_manifest_is_a_full_path_or_a_relative_one(web01, add_vm, *, relative):
    add_vm(traits=VmTraits(relative_manifest=relative))
    async with web01.capture() as capture:
        (node,) = await snapshots_of(capture.session, capture.snapshot.vm.moref)
        assert str(node.backup_manifest).startswith("[datastore1]") is not relative
        fetched = await capture.fetch_vss_manifest()
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert fetched.content is not None
    assert "backupManifest" in fetched.reason


async def test_a_quiesced_snapshot_of_a_running_vm_says_powered_off(web01, add_vm):
    add_vm()
    async with web01.capture() as capture:
        session, vm = capture.session, capture.snapshot.vm

        def look() -> tuple[str, str, bool]:
            subject = vm.reference(session)
            (entry,) = subject.snapshot.rootSnapshotList
            return subject.runtime.powerState, entry.state, entry.quiesced

        assert await session.call("look", look) == ("poweredOn", "poweredOff", True)
        assert capture.snapshot.quiesce.kind == "application"
        assert capture.attention == []
        assert capture.snapshot.remarks == []


# vCenter may serve NBD for a snapshot from any host that sees the datastore.


async def test_no_disk_is_opened_by_the_host_that_the_vm_runs_on(lab, web01, add_vm, reader):
    add_vm()
    async with replace(web01, preflight=None).capture() as capture:
        assert (await capture.fetch_vss_manifest()).content is not None
    # Where the VM runs is only asked to see whether it stays there.
    assert {path for _, path in lab.asked if "host" in path.lower()} == {"runtime.host"}
    (access,) = reader.opened
    assert access.server == lab.address  # vCenter chooses the host, and tells it where the disk was opened


# Sessions end after 30 idle minutes by default; a restarted vCenter forgets all of them (NotAuthenticated).


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[LabVcenter, list[float]]]:
    """A lab with a VM, and the clock of its sessions: a list of one number, seconds."""
    clock = [0.0]
    with LabVcenter(tmp_path / "idle", task_s=0, clock=lambda: clock[0]) as lab:
        directory = lab.datastore("datastore1") / "web01"
        lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk0", MiB)])
        yield lab, clock


async def test_a_session_of_30_idle_minutes_ends_and_nobody_sees_it(idle, journal):
    lab, clock = idle
    settings = settings_of(lab)
    async with settings.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
            clock[0] += 29 * 60
            await snapshots_of(session, vm.moref)
            assert lab.calls["Login"] == 1
            clock[0] += 31 * 60
            assert len(await snapshots_of(session, vm.moref)) == 1
            assert lab.calls["Login"] == 2
            clock[0] += 31 * 60
    assert lab.calls["Login"] == 3  # the removal logged in again
    assert lab.snapshots(vm.moref) == {}


async def test_a_restarted_vcenter_knows_no_session_and_nobody_sees_it(lab, vcenter, journal, add_vm):
    moref = add_vm()
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
            await trio.to_thread.run_sync(lab.restart)
            assert len(await snapshots_of(session, vm.moref)) == 1
            await trio.to_thread.run_sync(lab.restart)
    assert lab.calls["Login"] == 3
    assert lab.snapshots(moref) == {}


# Tasks survive a re-login and are found again through the VM's recentTask or by our snapshot's description.


async def test_a_task_is_found_again_after_a_new_login(lab, vcenter, add_vm, wait_for_call):
    moref = add_vm()
    lab.inject("CreateSnapshot_Task", Delay(), in_task=True)
    made: list[object] = []
    async with vcenter.connect() as session:
        subject = (await find_vm(session, "web01")).reference(session)
        task = await session.call(
            "CreateSnapshot_Task", lambda: subject.CreateSnapshot("a", "", False, False), changes=True
        )

        async def wait() -> None:
            made.append(await wait_for_task(session, task, "CreateSnapshot_Task"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_for_call(lab, "WaitForUpdatesEx")
            lab.expire_sessions()
            lab.calm()
    assert lab.calls["Login"] == 2
    (snapshot,) = made
    assert [str(snapshot._moId)] == list(lab.snapshots(moref))  # type: ignore[attr-defined]
    assert lab.calls["CreateSnapshot_Task"] == 1


async def test_a_task_of_a_lost_answer_is_found_through_recent_task_and_its_snapshot_by_the_description(
    lab, vcenter, add_vm
):
    moref = add_vm()
    lab.inject("CreateSnapshot_Task", Delay(0.2), in_task=True)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        subject, said = vm.reference(session), description_with("a" * 32)
        await session.call(
            "CreateSnapshot_Task", lambda: subject.CreateSnapshot("ours", said, False, False), changes=True
        )
        lab.expire_sessions()
        assert lab.snapshots(moref) == {}  # it is still being made, and in no tree
        found = await find_ours(session, moref, "a" * 32)
        assert found is not None
        assert [found.moref] == list(lab.snapshots(moref))
        assert await find_ours(session, moref, "b" * 32) is None


# Unset properties.


def _may_be_unset(kind: type, path: str) -> bool:
    """By the declarations of the API: whether any step of the path is optional."""
    for name in path.split("."):
        declared = kind._GetPropertyInfo(name)  # type: ignore[attr-defined]
        if declared.flags & F_OPTIONAL:
            return True
        kind = declared.type
    return False


@pytest.mark.slow
async def test_any_property_that_may_be_unset_may_be_unset(lab, vcenter, web01, journal, add_vm):
    """It works without, or ends with an error of ours; nothing is left behind in either case."""
    moref = add_vm(change_tracking=True, traits=VmTraits(quiesced_form="siblings"))
    impatient = replace(web01, vcenter=replace(vcenter, patience_s=0.01))

    async def everything() -> None:
        async with impatient.capture() as capture:
            await capture.fetch_vss_manifest()
            await orphan_candidates(capture.session, [capture.snapshot.vm])

    await everything()
    optional = sorted({path for kind, path in lab.asked if _may_be_unset(kind, path)})
    assert {"config.files.snapshotDirectory", "layoutEx", "info.result", "snapshot"} <= set(optional)
    for path in optional:
        lab.leave_unset(path)
        try:
            await everything()
        except BaseException as exc:
            errors = leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
            assert all(isinstance(error, MoverError) for error in errors), path
        lab.leave_unset()
        async with vcenter.connect() as session:
            await sweep(session, journal)
        assert lab.snapshots(moref) == {}, path
        assert not lab.needs_consolidation(moref), path


async def test_a_tree_that_cannot_be_seen_is_not_an_empty_one(lab, vcenter, journal, add_vm):
    """An inaccessible VM has no `snapshot`; taking that for "none" would forget ours."""
    traits = VmTraits()
    moref = add_vm(traits=traits)
    async with replace(vcenter, patience_s=0.05).connect() as session:
        vm = await find_vm(session, "web01")
        with pytest.raises(SnapshotLeaked):
            async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
                lab.leave_unset("snapshot")
        lab.leave_unset("snapshot")
        traits.connection = "inaccessible"
        (kept,) = await sweep(session, journal)
        assert kept.outcome is Outcome.KEPT
        assert "is inaccessible" in kept.reason
        traits.connection = "connected"
        lab.leave_unset()
        assert len(lab.snapshots(moref)) == 1
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
    assert lab.snapshots(moref) == {}


def test_devices_with_only_their_required_properties_are_read():
    bare = vim.vm.device.VirtualDisk(key=2000, capacityInKB=1024)
    nameless = vim.vm.device.VirtualDisk(
        key=2001,
        controllerKey=1000,
        unitNumber=1,
        capacityInKB=2048,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[ds] a/b.vmdk", diskMode="persistent"
        ),
    )
    controller = vim.vm.device.VirtualLsiLogicController(key=1000, busNumber=0, sharedBus="noSharing")
    card = vim.vm.device.VirtualE1000(key=4000)
    devices = [bare, nameless, controller, card]
    of_bare, of_nameless = vm_disks(devices)
    assert (of_bare.key, of_bare.capacity, of_bare.left_out != "") == ("disk2000", MiB, True)
    assert (of_nameless.key, of_nameless.label, of_nameless.capacity) == ("scsi0:1", "scsi0:1", 2 * MiB)
    assert (of_nameless.change_id, of_nameless.uuid) == (None, None)
    assert chains(devices) == {2000: [], 2001: ["[ds] a/b.vmdk"]}
    config = vim.vm.ConfigInfo(
        name="web01",
        files=vim.vm.FileInfo(),
        hardware=vim.vm.VirtualHardware(numCPU=1, memoryMB=1, device=devices),
    )
    described = configuration(config, [])
    assert described["firmware"] is None
    assert not described["secure_boot"]
