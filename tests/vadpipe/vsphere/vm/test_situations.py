"""VMs and servers as the field has them: many disks, a licence without backup, reports of runs that fail."""

import logging
from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline import Disk, DiskReceipt, Job, Pipeline
from pipeline.errors import MoverError, leaves
from pipeline.extents import Extents
from pipeline.units import KiB, MiB
from sinks import IntoRepository, Point, RawDirectory, Repository, open_repository, restore
from stages import (
    ChangedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    ReadSpans,
    Refine,
    Zstd,
)
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.lab.vcenter import restoring
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.state.inventory import DatastoreTraits, VmTraits
from vadpipe.vddk.disk import Vddk
from vadpipe.vsphere.api.faults import SnapshotError, SnapshotLeaked
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.inventory.selection import SelectVms, select_vms
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.hot_add import attached_to
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.capture import VsphereCapture
from vadpipe.vsphere.vm.orphans import orphan_candidates


@pytest.fixture
def web01(vcenter: Vcenter, reader, journal: Journal) -> VcenterVm:
    return VcenterVm(vcenter, "web01", reader=reader, journal=journal, preflight=None, quiesce=Quiesce.none())


@pytest.mark.slow
@pytest.mark.parametrize("disks", [20, 60])  # 60: four SCSI controllers of 16 units, without unit 7 of each
async def test_all_disks_of_a_large_vm_are_opened_and_released(lab, web01, add_vm, reader, disks):
    moref = add_vm(disks=disks)
    async with web01.capture() as capture:
        assert len({disk.key for disk in capture.disks}) == disks
        assert capture.left_out == []
    assert len(reader.opened) == len(reader.closed) == disks
    assert lab.snapshots(moref) == {}


@pytest.mark.slow
async def test_64_disks_of_one_controller_and_30_of_another_are_opened_by_their_places(
    lab, web01, vcenter, reader
):
    """A paravirtual controller takes 64 disks from hardware version 14 on; 0 to 64 without 7, its own unit."""
    scsi, sata = restoring.KINDS.ParaVirtualSCSIController, restoring.KINDS.VirtualAHCIController
    units = [unit for unit in range(65) if unit != 7]
    spec = restoring.config(
        "web01",
        restoring.controller(scsi, key=-1000),
        restoring.controller(sata, key=-2000),
        *(restoring.disk(MiB, at=-1000, unit=unit) for unit in units),
        *(restoring.disk(MiB, at=-2000, unit=unit) for unit in range(30)),
        version="vmx-19",
        guestId="otherGuest64",
    )
    for number, change in enumerate(spec.deviceChange[2:], 1):
        change.device.key = -number
    async with vcenter.connect() as session:
        moref = await _created(session, spec)
    for key, disk in lab._inventory.disks[moref].items():
        disk.write(0, _mark(key))
    async with web01.capture() as capture:
        keys = [disk.key for disk in capture.disks]
        assert sorted(keys) == sorted([f"scsi0:{unit}" for unit in units] + [f"sata0:{n}" for n in range(30)])
        assert await _first_bytes(capture) == [_mark(disk.facts.device_key) for disk in capture.disks]
        await capture.confirm()
    assert len(reader.opened) == len(reader.closed) == 94
    assert lab.snapshots(moref) == {}


def _mark(device_key: int) -> bytes:
    return f"{device_key % 100_000:05}".encode()


async def _created(session: VcenterSession, spec: vim.vm.ConfigSpec) -> str:
    """A new VM in the lab's first folder; its moref."""

    def create() -> vim.Task:
        site = session.content.rootFolder.childEntity[0]
        return site.vmFolder.CreateVM_Task(spec, site.hostFolder.childEntity[0].resourcePool, None)

    task = await session.call("CreateVM_Task", create, changes=True)
    vm = await wait_for_task(session, task, "CreateVM_Task")
    assert isinstance(vm, vim.VirtualMachine)
    return str(vm._moId)


async def _first_bytes(capture: VsphereCapture) -> list[bytes]:
    """The first bytes of each disk, as its backup would have them."""
    found = []
    for disk in capture.disks:
        buffer = await disk.pool.acquire()
        await disk.read(buffer, 0, Extents.whole(4 * KiB))
        found.append(buffer.array[:5].tobytes())
        buffer.release()
    return found


@pytest.mark.parametrize("controller", ["lsi-sas", "ide", "sata", "nvme"])
async def test_disks_of_every_controller_are_named_after_it(web01, add_vm, controller):
    add_vm(disks=2, traits=VmTraits(controller=controller))
    bus = controller.partition("-")[0].replace("lsi", "scsi")
    async with web01.capture() as capture:
        assert [disk.key for disk in capture.disks] == [f"{bus}0:0", f"{bus}0:1"]


async def test_disks_on_several_datastores_are_read_where_they_are(lab, vcenter, web01, reader):
    home = lab.datastore("datastore1") / "web01"
    places = [home, lab.datastore("fast") / "web01", lab.datastore("fast") / "logs"]
    disks = [LabDisk.create(place, f"disk{number}", MiB) for number, place in enumerate(places)]
    for number, disk in enumerate(disks):
        disk.write(0, f"disk{number}".encode())
    moref = lab.register_vm(home, "web01", disks)
    async with web01.capture() as capture:
        assert await _first_bytes(capture) == [b"disk0", b"disk1", b"disk2"]
        await capture.confirm()
    opened = [access.path.rpartition("/")[0] for access in reader.opened]
    assert opened == ["[datastore1] web01", "[fast] web01", "[fast] logs"]
    assert lab.snapshots(moref) == {}
    async with vcenter.connect() as session:
        assert await orphan_candidates(session, [await find_vm(session, "web01")]) == []


@pytest.mark.parametrize(
    ("kind", "directory"),
    [
        ("VVOL", "naa.600a0b8000123456abcdef0123456789"),
        ("VVOL", "rfc4122.4b2b5ea5-3b0c-4c3c-8a5c-0a2f9a7d1c11"),
        ("vsan", "1ed5c85e-7c4a-5a3a-9d1e-005056a1b2c3"),
    ],
)
async def test_a_directory_with_the_name_of_an_object_is_backed_up_with_its_manifest(
    lab, web01, kind, directory
):
    home = lab.datastore("objects") / directory
    lab._inventory.datastore_traits["objects"] = DatastoreTraits(kind=kind)
    moref = lab.register_vm(home, "web01", [LabDisk.create(home, "web01", MiB)], datastore="objects")
    async with replace(web01, quiesce=Quiesce.application()).capture() as capture:
        fetched = await capture.fetch_vss_manifest()
        assert fetched.content is not None, fetched.reason
        assert directory in str(capture.configuration["vmx_path"])
    assert lab.snapshots(moref) == {}


async def test_a_vm_in_a_vapp_is_found_by_its_path_and_backed_up(lab, vcenter, web01, add_vm):
    moref = add_vm(folder="Web", traits=VmTraits(vapp="Shop"))
    async with vcenter.connect() as session:
        vm = await find_vm(session, "Web/Shop/web01")
        assert (vm.moref, vm.path.endswith("/vm/Web/Shop/web01")) == (moref, True)
        assert await select_vms(session, [SelectVms(inside=vm.path.removesuffix("/web01"))]) == [vm]
    async with replace(web01, vm=vm, quiesce=Quiesce.application()).capture() as capture:
        assert (await capture.fetch_vss_manifest()).content is not None
    assert lab.snapshots(moref) == {}


async def test_the_parent_of_a_linked_clone_is_no_orphan_and_not_attached_to_it(lab, vcenter, web01, add_vm):
    template = add_vm("template")
    parent = "[datastore1] template/disk0.vmdk"
    moref = add_vm(traits=VmTraits(linked_to=parent))
    async with vcenter.connect() as session:
        assert await attached_to(session, template) == ["web01"]  # the clone hangs on the file in use now
        lab.take_snapshot(template, "of the clone")  # as cloning makes: the shared file is below it
        assert await attached_to(session, template) == []
        assert await attached_to(session, moref) == []
        vms = [await find_vm(session, name) for name in ("template", "web01")]
        assert await orphan_candidates(session, vms) == []
    async with web01.capture() as capture:
        [disk] = capture.disks
        assert disk.facts.chain[-1] == parent
        await capture.confirm()
    assert lab.snapshots(moref) == {}


@pytest.mark.slow
@pytest.mark.parametrize("through", ["files", "vddk"])
async def test_a_linked_clone_is_backed_up_through_the_files_of_its_parent(
    lab, web01, add_vm, through, libdir, monkeypatch, tmp_path
):
    """The clone's own file holds what it wrote; all else is in a directory of another VM."""
    template = add_vm("template")
    [parent] = lab.disks(template)
    for offset, content in ((0, b"of the parent"), (MiB, b"of the parent"), (2 * MiB, b"of the parent")):
        parent.write(offset, content)
    lab.take_snapshot(template, "of the clone")
    home = lab.datastore("datastore1") / "web01"
    shared = parent.frozen_chain(parent.forks[0].frozen)
    clone = LabDisk.create(home, "web01", parent.capacity, linked_to=shared)
    moref = lab.register_vm(home, "web01", [clone])
    clone.write(MiB, b"of the clone!")
    parent.write(2 * MiB, b"of the parent, later")  # behind the snapshot that the clone hangs on
    if through == "vddk":
        monkeypatch.setenv("VADPIPE_LAB_ROOT", str(lab.root))
        web01 = replace(web01, reader=Vddk(libdir, transports="nbdssl", restart_pause_s=0))
    repository = Repository(tmp_path / "repository")
    repository.init()
    await Job(replace(web01, enable_change_tracking=True), _path, into=repository).run()
    clone.write(3 * MiB, b"since")
    await Job(web01, _path, into=repository).run()
    async with open_repository(repository.path) as stored:
        first, second = stored.points
        assert second.disks[0].receipt.unchanged > 0
        for point, changed in ((first, 1), (second, 0)):
            await restore(stored, point, RawDirectory(tmp_path / point.id))
            [image] = (tmp_path / point.id).rglob("*.raw")
            assert len(clone.differences(image)) == changed
    assert clone.read(0, 13) + clone.read(2 * MiB, 13) == b"of the parent" * 2
    assert clone.chain[1:] == shared
    assert lab.snapshots(moref) == {}


def _path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    read = ChangedExtents(disk, point.previous(disk)) | ReadSpans(disk) | MarkZeros()
    return (
        read
        | CutChunks()
        | Digest(point)
        | Refine(point, disk)
        | Dedupe(point)
        | Compress(Zstd(1))
        | IntoRepository(point, disk)
    )


async def test_snapshots_of_others_stay_and_the_newest_state_is_read(lab, web01, add_vm):
    moref = add_vm(change_tracking=True)
    [disk] = lab.disks(moref)
    for state in (b"older", b"newer"):
        disk.write(0, state)
        lab.take_snapshot(moref, state.decode())
    disk.write(0, b"today")
    before = lab.snapshots(moref)
    async with web01.capture() as capture:
        assert await _first_bytes(capture) == [b"today"]
        told = [remark for remark in capture.remarks if "not made by vadpipe" in remark]
        assert len(told) == 2
    assert lab.snapshots(moref) == before
    assert capture.snapshots_left == 2


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
