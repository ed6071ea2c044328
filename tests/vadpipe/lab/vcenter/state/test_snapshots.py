"""Snapshots over real disks, quiescing and its evidence, change tracking, power and configuration."""

import io
import json
import shutil
import subprocess
import threading
import zipfile

import pytest
from pyVmomi import vim, vmodl

from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.quiescing import QuiesceSpec, guest_quiescing, reached

MIB = 1 << 20
KIB64 = 1 << 16

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def disks_of(config):
    return [device for device in config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]


def local(vm, config):
    """The VMDKs that a configuration names, on this machine."""
    return [vm.directory / disk.backing.fileName.rpartition("/")[2] for disk in disks_of(config)]


def qemu_img(*arguments):
    done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout


def image_of(vmdk, raw):
    qemu_img("convert", "-O", "raw", vmdk, raw)
    return raw.read_bytes()


def files(vm):
    return sorted(path.name for path in vm.directory.iterdir() if path.suffix in (".vmdk", ".zip"))


@needs_qemu_img
def test_application_snapshot_freezes_the_disks(vm, tmp_path):
    vm.disks[0].write(MIB, b"before" * 1000)
    snapshot = vm.snapshot()
    vm.disks[0].write(MIB, b"after!" * 1000)
    frozen, live = local(vm, snapshot.config), local(vm, vm.api.config)
    assert set(frozen).isdisjoint(live)
    assert image_of(frozen[0], tmp_path / "frozen")[MIB : MIB + 6000] == b"before" * 1000
    assert image_of(live[0], tmp_path / "live")[MIB : MIB + 6000] == b"after!" * 1000
    for vmdk in [*frozen, *live]:
        qemu_img("check", "-f", "vmdk", vmdk)
    # Two redo logs per disk: the snapshot's own stands beside the one of the running VM.
    chain = json.loads(qemu_img("info", "--backing-chain", "--output=json", frozen[0]))
    assert [image["filename"].rpartition("/")[2] for image in chain] == [frozen[0].name, "web01_0.vmdk"]
    assert len(files(vm)) == 2 * 3 + 1


def test_snapshot_tree_and_manifest(vm):
    snapshot = vm.snapshot(vssBackupType=1, timeout=30)
    tree = vm.api.snapshot
    (entry,) = tree.rootSnapshotList
    assert tree.currentSnapshot == entry.snapshot == snapshot
    assert (entry.name, entry.description, entry.quiesced, entry.state) == (
        "backup",
        "of a test",
        True,
        "poweredOff",
    )
    assert entry.backupManifest == "[datastore1] web01/web01-vss_manifests1.zip"
    assert entry.backupManifest in [file.name for file in vm.api.layoutEx.file]
    content = (vm.directory / "web01-vss_manifests1.zip").read_bytes()
    assert len(zipfile.ZipFile(io.BytesIO(content)).namelist()) > 1
    vm.finish(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.api.snapshot is None
    assert files(vm) == ["web01_0.vmdk", "web01_1.vmdk"]
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshot.config  # noqa: B018


@needs_qemu_img
def test_removal_merges_and_keeps_what_the_guest_wrote(vm, tmp_path):
    first = vm.snapshot()
    vm.disks[0].write(0, b"1" * 512)
    second = vm.snapshot("ctx_file_share_backup")
    vm.disks[0].write(512, b"2" * 512)
    assert first.childSnapshot == [second]
    vm.finish(first.RemoveSnapshot_Task(removeChildren=False))
    (entry,) = vm.api.snapshot.rootSnapshotList
    assert (entry.snapshot, entry.childSnapshotList) == (second, [])
    frozen = image_of(local(vm, second.config)[0], tmp_path / "second")
    assert frozen[:1024] == b"1" * 512 + bytes(512)
    vm.finish(vm.api.RemoveAllSnapshots_Task())
    assert files(vm) == ["web01_0.vmdk", "web01_1.vmdk"]
    assert image_of(vm.disks[0].leaf, tmp_path / "all")[:1024] == b"1" * 512 + b"2" * 512
    qemu_img("check", "-f", "vmdk", vm.disks[0].leaf)


def test_removal_with_children(vm):
    first = vm.snapshot()
    vm.snapshot()
    vm.finish(first.RemoveSnapshot_Task(removeChildren=True))
    assert vm.api.snapshot is None
    assert files(vm) == ["web01_0.vmdk", "web01_1.vmdk"]


def test_removal_without_consolidation_says_what_is_needed(vm):
    snapshot = vm.snapshot()
    vm.finish(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=False))
    assert vm.api.snapshot is None
    assert vm.api.runtime.consolidationNeeded
    vm.finish(vm.api.ConsolidateVMDisks_Task())
    assert not vm.api.runtime.consolidationNeeded
    assert files(vm) == ["web01_0.vmdk", "web01_1.vmdk"]


def test_restart_keeps_snapshots(tmp_path, connect, make_vm, finish):
    with LabVcenter(tmp_path, task_s=0) as first:
        moref = make_vm(first, change_tracking=True)
        client = connect(first)
        vm = vim.VirtualMachine(moref, client._stub)
        snapshot = finish(client, vm.CreateSnapshotEx_Task("kept", "", False, vim.vm.WindowsQuiesceSpec()))
        frozen = [disk.backing.fileName for disk in disks_of(snapshot.config)]
    with LabVcenter(tmp_path, task_s=0) as second:
        client = connect(second)
        (entry,) = vim.VirtualMachine(moref, client._stub).snapshot.rootSnapshotList
        assert entry.name == "kept"
        assert [disk.backing.fileName for disk in disks_of(entry.snapshot.config)] == frozen
        assert f"snapshot={entry.snapshot._moId}" in (tmp_path / "vddk.conf").read_text().splitlines()


def test_redo_logs_of_a_killed_server_need_consolidation(tmp_path, connect, make_vm, finish):
    with LabVcenter(tmp_path, task_s=0) as first:
        moref = make_vm(first)
        first.disks(moref)[0].fork(quiesced_second=True)  # as far as the server came
    with LabVcenter(tmp_path, task_s=0) as second:
        client = connect(second)
        vm = vim.VirtualMachine(moref, client._stub)
        assert vm.snapshot is None
        assert vm.runtime.consolidationNeeded
        finish(client, vm.ConsolidateVMDisks_Task())
        assert not vm.runtime.consolidationNeeded
        assert second.disks(moref)[0].chain == [second.disks(moref)[0].base]


def test_callbacks_come_before_the_task_ends(vcenter, vm):
    seen = []
    vcenter.on_snapshot.append(
        lambda moref, frozen: seen.append((moref, frozen, vm.api.recentTask[-1].info.state))
    )
    snapshot = vm.snapshot()
    assert seen == [(vm.moref, local(vm, snapshot.config), "running")]
    vm.finish(vm.api.CreateSnapshot_Task("plain", "", False, False))
    assert len(seen) == 1


def members(vm):
    """Names in the newest manifest, None when the newest snapshot has none."""
    entry = vm.api.snapshot.rootSnapshotList[0]
    if entry.backupManifest is None:
        return None
    return zipfile.ZipFile(vm.directory / entry.backupManifest.rpartition("/")[2]).namelist()


def test_file_system_quiescing_leaves_one_document_and_one_redo_log(vm):
    vm.snapshot("ctx_file_share_backup")
    assert members(vm) == ["backup.xml"]
    assert files(vm) == sorted(
        [f"web01_{disk}{redo}.vmdk" for disk in (0, 1) for redo in ("", "-000001")]
        + ["web01-vss_manifests1.zip"]
    )


def test_a_spec_is_ignored_while_the_vm_is_off(vm):
    vm.finish(vm.api.PowerOffVM_Task())
    vm.snapshot()
    assert members(vm) is None
    assert vm.api.snapshot.rootSnapshotList[0].quiesced


def test_failed_quiescing_makes_no_snapshot_and_an_event(vcenter, client, make_vm, vm):
    other = vim.VirtualMachine(make_vm(vcenter, "sick", quiescing="fault"), client._stub)
    with pytest.raises(vim.fault.ApplicationQuiesceFault, match="Failed to quiesce"):
        vm.finish(other.CreateSnapshotEx_Task("x", "", False, vim.vm.WindowsQuiesceSpec()))
    assert other.snapshot is None
    assert not other.runtime.consolidationNeeded

    def events(of):
        by = vim.event.EventFilterSpec.ByEntity(entity=of, recursion="self")
        return client.content.eventManager.QueryEvents(vim.event.EventFilterSpec(entity=by))

    assert ["0x80042301" in event.fullFormattedMessage for event in events(other)] == [True]
    assert events(vm.api) == []


def test_vss_that_fails_silently_leaves_no_manifest(vcenter, client, make_vm, vm):
    other = vim.VirtualMachine(make_vm(vcenter, "crash", quiescing="crash"), client._stub)
    vm.finish(other.CreateSnapshotEx_Task("x", "", False, vim.vm.WindowsQuiesceSpec()))
    (entry,) = other.snapshot.rootSnapshotList
    assert (entry.quiesced, entry.backupManifest) == (True, None)


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({"timeout": 4}, "quiesceSpec.timeout"),
        ({"vssBackupContext": "ctx_none"}, "quiesceSpec.vssBackupContext"),
    ],
)
def test_wrong_quiesce_specs_are_refused(vm, spec, wrong):
    with pytest.raises(vmodl.fault.InvalidArgument) as refused:
        vm.api.CreateSnapshotEx_Task("x", "", False, vim.vm.WindowsQuiesceSpec(**spec))
    assert refused.value.invalidProperty == wrong


def test_one_long_operation_at_a_time(vcenter, vm):
    may_end = threading.Event()
    vcenter.on_snapshot.append(lambda *_: may_end.wait(20))
    running = vm.api.CreateSnapshotEx_Task("x", "", False, vim.vm.WindowsQuiesceSpec())
    with pytest.raises(vim.fault.TaskInProgress) as busy:
        vm.api.RemoveAllSnapshots_Task()
    assert busy.value.task == running
    may_end.set()
    vm.finish(running)
    vm.finish(vm.api.RemoveAllSnapshots_Task())


def test_injected_fault_of_a_task(vcenter, vm):
    fault = vim.fault.NoDiskSpace(file="x", datastore="datastore1", msg="no space")
    vcenter.inject("CreateSnapshotEx_Task", lambda: fault, nth=2, in_task=True)
    vm.snapshot()
    with pytest.raises(vim.fault.NoDiskSpace):
        vm.snapshot()
    assert vm.api.snapshot.rootSnapshotList[0].childSnapshotList == []


def test_power_operations_change_the_power_state(vm):
    with pytest.raises(vim.fault.InvalidPowerState) as refused:
        vm.finish(vm.api.PowerOnVM_Task())
    assert (refused.value.requestedState, refused.value.existingState) == ("poweredOn", "poweredOn")
    assert vm.api.guest.toolsRunningStatus == "guestToolsRunning"
    vm.api.ShutdownGuest()
    assert vm.api.guest.toolsRunningStatus == "guestToolsNotRunning"
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.api.RebootGuest()


def test_a_reconfiguration_changes_extra_config(vm):
    option = vim.option.OptionValue
    vm.finish(vm.api.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[option(key="a.b", value="c")])))
    assert 'a.b = "c"' in (vm.directory / "web01.vmx").read_text()
    gone = vim.vm.ConfigSpec(extraConfig=[option(key="disk.EnableUUID", value="")])
    vm.finish(vm.api.ReconfigVM_Task(gone))
    assert [(one.key, one.value) for one in vm.api.config.extraConfig] == [("a.b", "c")]
    assert not vm.api.config.flags.diskUuidEnabled


def changed_areas(api, snapshot, change_id, key=2000):
    """All changed areas, asked for as a client must; proves that the answers cover the disk."""
    found, offset = [], 0
    capacity = next(disk.capacityInBytes for disk in disks_of(snapshot.config) if disk.key == key)
    while offset < capacity:
        answer = api.QueryChangedDiskAreas(snapshot, key, offset, change_id)
        assert answer.startOffset == offset
        assert answer.length > 0
        found += [(area.start, area.length) for area in answer.changedArea]
        offset += answer.length
    assert offset == capacity
    return found


class TestChangeTracking:
    def test_ids_stand_in_the_snapshot_and_name_its_areas(self, vm):
        vm.disks[0].write(3 * KIB64, b"x")
        first = vm.snapshot()
        before = disks_of(first.config)[0].backing.changeId
        vm.finish(first.RemoveSnapshot_Task(removeChildren=False))
        vm.disks[0].write(5 * KIB64 - 1, b"xy")
        second = vm.snapshot()
        assert changed_areas(vm.api, second, before) == [(4 * KIB64, 2 * KIB64)]
        assert sum(length for _, length in changed_areas(vm.api, second, "*")) == 3 * KIB64

    def test_pages_together_are_what_the_disk_says(self, tmp_path, connect, make_vm, finish):
        with LabVcenter(tmp_path, task_s=0, changed_areas_page=3) as vcenter:
            moref = make_vm(vcenter, change_tracking=True, sizes=(8 * MIB,))
            client = connect(vcenter)
            api = vim.VirtualMachine(moref, client._stub)
            (disk,) = vcenter.disks(moref)
            disk.enable_tracking()
            start = disk.change_id
            for block in range(0, 128, 6):
                disk.write(block * KIB64, b"x" * KIB64)
            snapshot = finish(client, api.CreateSnapshot_Task("x", "", False, False))
            uuid = start.partition("/")[0]
            found = changed_areas(api, snapshot, f"{uuid}/0")
            assert found == disk.changed_areas(f"{uuid}/0", disk.forks[0].frozen)
            assert len(found) == 22
            assert vcenter.calls["QueryChangedDiskAreas"] == 8

    def test_wrong_questions(self, vm):
        snapshot = vm.snapshot()
        ask = vm.api.QueryChangedDiskAreas
        with pytest.raises(vmodl.fault.InvalidArgument) as past_the_end:
            ask(snapshot, 2000, 8 * MIB, "*")
        assert past_the_end.value.invalidProperty == "startOffset"
        with pytest.raises(vim.fault.FileFault):
            ask(snapshot, 2000, 0, "52 de c0 d9/1")
        with pytest.raises(vmodl.fault.InvalidArgument):
            ask(snapshot, 2000, 0, "nonsense")
        with pytest.raises(vmodl.fault.InvalidArgument):
            ask(snapshot, 2005, 0, "*")
        with pytest.raises(vmodl.fault.InvalidArgument):
            ask(None, 2000, 0, "*")

    def test_enabling_takes_effect_at_the_next_stun(self, vcenter, client, make_vm, vm):
        other = vim.VirtualMachine(make_vm(vcenter, "new"), client._stub)
        enable = vim.vm.ConfigSpec(changeTrackingEnabled=True)
        vm.finish(other.ReconfigVM_Task(enable))
        assert other.config.changeTrackingEnabled
        assert [disk.backing.changeId for disk in disks_of(other.config)] == [None, None]
        snapshot = vm.finish(other.CreateSnapshot_Task("x", "", False, False))
        assert all(disk.backing.changeId.endswith("/1") for disk in disks_of(snapshot.config))
        with pytest.raises(vim.fault.InvalidState):
            vm.finish(other.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))


@pytest.mark.parametrize(
    ("guest_id", "tools", "uuid", "disks", "expected"),
    [
        ("windows2019srv_64Guest", 12448, True, 2, "application"),
        ("windows2019srv_64Guest", 12448, False, 2, "file-system"),
        ("windows2019srv_64Guest", 10240, True, 2, "file-system"),
        ("windows8Server64Guest", 10240, True, 2, "application"),
        ("windows8Server64Guest", 10240, True, 8, "file-system"),  # no free SCSI slot for each disk
        ("windows9_64Guest", 12448, True, 1, "file-system"),
        ("winXPProGuest", 12448, True, 1, "crash"),
        ("ubuntu64Guest", 12448, True, 1, "crash"),
    ],
)
def test_a_guest_quiesces_as_far_as_it_can(guest_id, tools, uuid, disks, expected):
    assert guest_quiescing(guest_id, tools, uuid, disks) == expected


@pytest.mark.parametrize(
    ("context", "ability", "expected"),
    [
        ("ctx_auto", "application", "application"),
        ("ctx_auto", "file-system", "file-system"),
        ("ctx_backup", "file-system", "fault"),
        ("ctx_file_share_backup", "application", "file-system"),
        ("ctx_backup", "crash", "crash"),
    ],
)
def test_a_backup_context_decides_the_level_reached(context, ability, expected):
    assert reached(QuiesceSpec(context=context), ability) == expected
