"""Changed areas are believed only where the answer holds together."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyVmomi import vim

from pipeline.errors import ChangeTrackingInvalid
from pipeline.extents import Extents
from pipeline.units import KiB, MiB
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import ConnectionLost
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.changes import Page, changed_areas, enable_change_tracking, flaw, same_tracking
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import Snapshot, open_snapshot

CAPACITY = 4 * MiB


@pytest.mark.parametrize(
    ("since", "now", "same"),
    [
        ("52 8a/1", "52 8a/7", True),
        ("52 8A/1", "52 8a/7", True),
        ("52 8a/1", "52 8b/7", False),
        ("*", "52 8a/7", False),
        ("", "", False),
        ("/1", "/2", False),
        ("52 8a", "52 8a", False),
    ],
)
def test_change_ids_of_one_tracking_are_recognised(since, now, same):
    assert same_tracking(since, now) is same


def _page(offset: int, length: int, *areas: tuple[int, int]) -> Page:
    table = np.array(areas, dtype=np.int64).reshape(-1, 2)
    return Page(offset, length, table[:, 0], table[:, 1])


@pytest.mark.parametrize(
    "page",
    [
        _page(0, 100),
        _page(0, 50, (0, 50)),
        _page(0, 100, (99, 1), (0, 10)),
    ],
)
def test_a_consistent_page_of_changes_has_no_flaw(page):
    assert flaw(page, 0, 100) == ""


@pytest.mark.parametrize(
    "page",
    [
        _page(10, 90),  # begins elsewhere
        _page(0, 0),  # no progress
        _page(0, -5),
        _page(0, 101),  # beyond the disk
        _page(0, 50, (40, 20)),  # an area beyond the page
        _page(0, 50, (-1, 2)),
        _page(0, 50, (10, 0)),
        _page(0, 50, (10, -1)),
    ],
)
def test_an_inconsistent_page_of_changes_has_a_flaw(page):
    assert flaw(page, 0, 100) != ""


async def _change_id(session: VcenterSession, journal: Journal) -> str:
    vm = await find_vm(session, "web01")
    async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
        change_id = snapshot.disks[0].change_id
    assert change_id is not None
    return change_id


async def _changed(session: VcenterSession, snapshot: Snapshot, since: str) -> tuple[Extents, int]:
    """All pages of the first disk: the extents and the number of pages."""
    found, offset, pages = Extents.empty(), 0, 0
    while offset < CAPACITY:
        page = await changed_areas(session, snapshot.vm, snapshot.moref, snapshot.disks[0], since, offset)
        assert page.offset == offset
        found, offset, pages = found | page.extents, offset + page.length, pages + 1
    return found, pages


@pytest.fixture
def small_pages(tmp_path: Path) -> Iterator[LabVcenter]:
    with LabVcenter(tmp_path / "paged", task_s=0.02, changed_areas_page=2) as lab:
        directory = lab.datastore("datastore1") / "web01"
        disk = LabDisk.create(directory, "disk0", CAPACITY)
        lab.register_vm(directory, "web01", [disk], change_tracking=True)
        yield lab


@pytest.mark.slow
async def test_pages_cover_the_disk_and_hold_what_was_written(small_pages, journal):
    settings = settings_of(small_pages)
    written = Extents.of([(number * 512 * KiB, 4 * KiB) for number in range(7)])
    async with settings.connect() as session:
        since = await _change_id(session, journal)
        disk = small_pages.disks(small_pages.moref("web01"))[0]
        for offset, length in written:
            disk.write(offset, b"x" * length)
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            found, pages = await _changed(session, snapshot, since)
    assert pages == 4
    assert written - found == Extents.empty()
    assert found == written.aligned(64 * KiB, CAPACITY)


@pytest.mark.slow
async def test_change_ids_that_cannot_be_trusted_are_refused(lab, vcenter, journal, add_vm):
    moref = add_vm(change_tracking=True)
    async with vcenter.connect() as session:
        since = await _change_id(session, journal)
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            with pytest.raises(ChangeTrackingInvalid, match="not on the disk"):
                await changed_areas(session, vm, snapshot.moref, snapshot.disks[0], since, CAPACITY)
            lab.inject("QueryChangedDiskAreas", lambda: vim.fault.FileFault(file="disk0-ctk.vmdk"))
            with pytest.raises(ChangeTrackingInvalid, match="refused"):
                await _changed(session, snapshot, since)
            assert await _changed(session, snapshot, since) == (Extents.empty(), 1)
        lab.disks(moref)[0].reset_tracking()
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            with pytest.raises(ChangeTrackingInvalid, match="reset") as caught:
                await _changed(session, snapshot, since)
    assert caught.value.facts["disk"] == "scsi0:0"
    assert "read in full" in caught.value.remedy


async def test_a_lost_connection_does_not_invalidate_change_tracking(lab, vcenter, journal, add_vm):
    add_vm(change_tracking=True)
    async with vcenter.connect() as session:
        since = await _change_id(session, journal)
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            lab.inject("QueryChangedDiskAreas", Drop.BEFORE, chance=1)
            with pytest.raises(ConnectionLost):
                await _changed(session, snapshot, since)


async def test_a_disk_without_change_tracking_is_read_in_full(vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            assert snapshot.disks[0].change_id is None
            with pytest.raises(ChangeTrackingInvalid, match="no change id"):
                await _changed(session, snapshot, "uuid/1")


async def test_tracking_is_enabled_only_without_snapshots(lab, vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r"):
            assert "no snapshots" in await enable_change_tracking(session, vm)
        assert "ReconfigVM_Task" not in lab.calls
        assert await enable_change_tracking(session, vm) == ""
        assert await enable_change_tracking(session, vm) == ""  # it is on: nothing to do
        assert lab.calls["ReconfigVM_Task"] == 1
        assert await _change_id(session, journal)
