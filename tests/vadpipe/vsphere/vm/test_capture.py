"""A VM captured: every disk open and accounted for, everything released in the right order."""

import json
from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline.buffers import BufferPool
from pipeline.errors import ConfigError, SourceError
from pipeline.extents import Extents
from pipeline.protocols import Disk, Machine
from pipeline.units import KiB
from stages.vcenter_vm import VcenterVm
from stages.vss_manifest import VssManifest
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vddk.access import DiskAccess
from vadpipe.vmdk.vmx import REDACTED
from vadpipe.vsphere.api.faults import SnapshotError, SnapshotLeaked
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.manifest.copy import CopyOnDatastore
from vadpipe.vsphere.manifest.external import Vifs
from vadpipe.vsphere.manifest.https import OverHttps
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.vm.capture import VsphereCapture


@pytest.fixture
def web01(vcenter: Vcenter, reader, journal: Journal) -> VcenterVm:
    return VcenterVm(vcenter, "web01", reader=reader, journal=journal, preflight=None)


def test_a_vsphere_vm_is_a_machine_and_its_disks_are_disks(web01):
    as_machine: Machine[VsphereCapture] = web01
    assert as_machine.name == "web01"
    assert {"key", "label", "capacity", "change_id", "pool", "allocated", "changed", "read"} <= set(dir(Disk))


def test_settings_say_what_would_be_touched_without_io(vcenter, reader):
    nowhere = replace(vcenter, server="nowhere.invalid")
    settings = VcenterVm(nowhere, "web01", reader=reader, enable_change_tracking=True)
    touched = " ".join(settings.effects())
    assert "snapshot of web01 on nowhere.invalid with application quiescing" in touched
    assert "change tracking" in touched
    without = VcenterVm(nowhere, "web01", reader=reader, quiesce=Quiesce.none())
    assert "without quiescing" in " ".join(without.effects())
    assert "lab" not in repr(vcenter.password)


async def test_the_disks_read_as_they_were_when_quiesced(lab, web01, add_vm, reader):
    moref = add_vm(disks=2, change_tracking=True)
    guest = lab.disks(moref)[1]
    guest.write(128 * KiB, b"before" * 1000)
    lab.guests.service.inventory.vms[moref].extra_config["guestinfo.userdata"] = "hunter2!"
    async with web01.capture() as capture:
        guest.write(128 * KiB, b"after!" * 1000)
        assert capture.machine.name == "web01"
        assert capture.quiescing_asked == "application"
        assert [disk.key for disk in capture.disks] == ["scsi0:0", "scsi0:1"]
        disk = capture.disks[1]
        assert disk.change_id is not None
        assert disk.pool is capture.disks[0].pool
        allocated = await disk.allocated(0, disk.capacity)
        assert Extents.whole(6000, 128 * KiB) - allocated == Extents.empty()
        buffer = await disk.pool.acquire()
        await disk.read(buffer, 128 * KiB, Extents.whole(8 * KiB, 128 * KiB))
        assert bytes(buffer.array[:6000]) == b"before" * 1000
        buffer.release()
        told = json.dumps(dict(capture.configuration))
        assert json.loads(told)["name"] == "web01"
        assert json.loads(told)["settings"]["guestinfo.userdata"] == REDACTED
        assert "hunter2!" not in told
        assert capture.snapshots_left is None
    assert capture.snapshots_left == 0
    assert guest.read(128 * KiB, 6) == b"after!"
    access = reader.opened[1]
    assert (access.vm, access.thumbprint, access.server) == (moref, lab.thumbprint, lab.address)
    assert access.snapshot is not None
    assert access.snapshot.startswith("snapshot-")


async def test_disks_are_closed_before_the_snapshot_is_removed(lab, web01, add_vm, reader):
    add_vm(disks=2)
    async with web01.capture():
        assert reader.closed == []
    assert reader.closed == [0, 0]
    assert lab.calls["RemoveSnapshot_Task"] == 1


@pytest.mark.slow
async def test_changes_between_two_captures_are_read(lab, web01, add_vm):
    moref = add_vm()
    enabling = replace(web01, enable_change_tracking=True)
    async with enabling.capture() as first:
        since = first.disks[0].change_id
        assert first.remarks == []
    assert since is not None
    lab.disks(moref)[0].write(64 * KiB, b"x")
    async with enabling.capture() as second:
        page = await second.disks[0].changed(since, 0)
    assert page.extents == Extents.whole(64 * KiB, 64 * KiB)


async def test_the_manifest_comes_while_the_snapshot_exists(web01, add_vm):
    add_vm()
    async with web01.capture() as capture:
        assert (await capture.fetch_vss_manifest()).content
    async with replace(web01, quiesce=Quiesce.none()).capture() as capture:
        fetched = await capture.fetch_vss_manifest()
        assert (fetched.absent, fetched.reason) == (True, "quiescing was not asked for")


@pytest.mark.slow
async def test_the_manifest_comes_by_the_chosen_ways(lab, web01, add_vm):
    add_vm()
    ways = [Vifs(program="no-such-vifs"), CopyOnDatastore("[datastore1] kept"), OverHttps()]
    chosen = replace(web01, manifest=ways)
    async with chosen.capture() as capture:
        evidence = await VssManifest().finish(capture)
    assert evidence.reached == "application"
    vifs, copy = evidence.verdict["fetching"]
    assert vifs["way"] == "vifs"
    assert "not installed" in vifs["problem"]
    assert copy["remark"].startswith("A copy is kept as [datastore1] kept/")
    assert "Copies the VSS manifest into [datastore1] kept, and leaves it there." in chosen.effects()
    (kept,) = (lab.datastore("datastore1") / "kept").iterdir()
    assert kept.read_bytes() == evidence.documents["vss-manifest.zip"]  # it outlived the snapshot


@pytest.mark.slow
async def test_a_late_manifest_is_waited_for_within_its_limit(lab, web01, add_vm, wait_until):
    add_vm()
    lab.manifests.named, lab.manifests.late = False, True
    async with replace(web01, manifest_late_s=0).capture() as capture:
        assert (await capture.fetch_vss_manifest()).absent
    async with replace(web01, manifest_late_s=60).capture() as capture, trio.open_nursery() as nursery:
        searches = lab.calls["SearchDatastore_Task"]

        async def release() -> None:
            await wait_until(lambda: lab.calls["SearchDatastore_Task"] >= searches + 2)
            lab.manifests.release()

        nursery.start_soon(release)
        assert (await capture.fetch_vss_manifest()).content


@pytest.mark.slow
async def test_what_an_earlier_run_left_is_swept_and_reported(lab, web01, add_vm):
    add_vm()
    for number in (1, 2):  # at the end of the run, and in the sweep after it
        lab.inject("RemoveSnapshot_Task", vim.fault.SnapshotLocked, number)
    with pytest.raises(SnapshotLeaked):
        async with web01.capture() as capture:
            pass
    assert capture.snapshots_left == 1
    async with web01.capture() as capture:
        (remark,) = capture.remarks
        assert "removed" in remark
    assert capture.snapshots_left == 0


async def test_what_a_run_gave_up_on_is_tried_once_more_at_its_end(lab, web01, add_vm):
    add_vm()
    lab.inject("RemoveSnapshot_Task", vim.fault.SnapshotLocked)
    with pytest.raises(SnapshotLeaked):
        async with web01.capture() as capture:
            pass
    assert "At the end: snapshot" in capture.remarks[-1]
    assert capture.snapshots_left == 0


async def test_a_capture_that_cannot_open_a_disk_leaves_no_snapshot(lab, web01, add_vm, reader, monkeypatch):
    add_vm()

    def refuse(access: DiskAccess, pool: BufferPool) -> None:
        raise SourceError("the reader says no")

    monkeypatch.setattr(reader, "open", refuse)
    with pytest.raises(SourceError, match="says no") as caught:
        async with web01.capture():
            pass
    assert caught.value.__notes__ == ["disk Hard disk 1 (scsi0:0)"]
    assert lab.calls["RemoveSnapshot_Task"] == 1
    assert web01.journal is not None
    assert web01.journal.intents() == []


@pytest.mark.parametrize("pattern", ["scsi0:1", "Hard disk 2", "*:1"])
async def test_an_excluded_disk_is_left_out_with_a_remark_in_the_report_and_the_point(
    lab, web01, add_vm, reader, pattern
):
    add_vm(disks=2)
    async with replace(web01, exclude=[pattern]).capture() as capture:
        assert [disk.key for disk in capture.disks] == ["scsi0:0"]
    assert len(reader.opened) == 1
    said = "Hard disk 2 (scsi0:1) is left out: the configuration excludes it."
    assert list(capture.remarks).count(said) == 1
    assert (capture.left_out, capture.attention) == ([], [])
    assert capture.configuration["left_out"] == [said]


async def test_an_independent_disk_that_is_excluded_needs_no_attention(lab, web01, add_vm):
    add_vm(disks=2, traits=VmTraits(disk_mode="independent_persistent"))
    async with web01.capture() as capture:
        assert "Hard disk 2 (scsi0:1) is left out: it is independent" in capture.left_out[0]
    async with replace(web01, exclude=["scsi0:1"]).capture() as capture:
        assert capture.left_out == []


async def test_an_exclude_that_matches_no_disk_is_refused_before_the_snapshot(lab, web01, add_vm):
    add_vm(disks=2)
    with pytest.raises(ConfigError, match=r"'scsi1:\*'.*web01.*scsi0:0 \(Hard disk 1\), scsi0:1"):
        async with replace(web01, exclude=["scsi1:*"]).capture():
            pass
    assert not [call for call in lab.calls if call.startswith("CreateSnapshot")]


async def test_a_vm_without_disks_is_an_error(lab, web01):
    lab.register_vm(lab.datastore("datastore1") / "web01", "web01", [])
    with pytest.raises(SnapshotError, match="none of its disks"):
        async with web01.capture():
            pass
    assert lab.calls["RemoveSnapshot_Task"] == 1


async def test_a_reader_that_opens_another_disk_is_refused(lab, web01, add_vm, reader, monkeypatch):
    add_vm()
    other = LabDisk.create(lab.datastore("datastore1") / "other", "disk", 1 << 20)
    open_disk = reader.open
    path = f"[datastore1] other/{other.leaf.name}"
    monkeypatch.setattr(reader, "open", lambda access, pool: open_disk(replace(access, path=path), pool))
    with pytest.raises(SourceError, match=r"vSphere says .* bytes, its reader"):
        async with web01.capture():
            pass


async def test_a_cancelled_capture_releases_everything(lab, web01, add_vm, reader):
    add_vm(disks=2)
    with trio.CancelScope() as scope:
        async with web01.capture():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert lab.calls["RemoveSnapshot_Task"] == 1
    assert lab.calls["Logout"] == 1
