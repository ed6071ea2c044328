"""What is laid beside a restored VM for its applications: on its datastore, in its drive, beside its images."""

import os
import shutil
import subprocess

import pytest
from pyVmomi import vim

from pipeline import Evidence, observed
from pipeline.errors import SinkError, leaves
from sinks import Qcow2Directory, RawDirectory, VmdkDirectory, open_repository
from sinks.images import SHEET, publish_directory
from sinks.restoring import restore, sheet_of
from tests.sinks.new_vm_kit import at_step
from vadpipe.lab.vcenter.faults.kinds import fault_maker
from vadpipe.lab.vcenter.faults.on_demand import refusing
from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.classify import classify_manifest

pytestmark = pytest.mark.slow

MANIFEST = manifest_zip(Request(), ManifestRecipe())
ISO = "web01-restored-restore-sheet.iso"


class Documents:
    """A finisher that found the documents of a guest."""

    async def finish(self, capture):
        verdict = classify_manifest(MANIFEST)
        documents = {"vss-manifest.zip": MANIFEST}
        return Evidence(str(verdict.level), True, ["because"], verdict.as_dict(), documents)


@pytest.fixture
async def documented(machine):
    """A VM whose point has VSS documents."""
    await machine.back_up(Documents())
    return machine


async def expected(backed):
    async with open_repository(backed.repository.path) as reader:
        return sheet_of(reader, reader.points[-1])


def isos(backed):
    return sorted((backed.lab.root / "datastores").rglob("*.iso"))


def files_on(image):
    """The files of a CD image by their Joliet names, as isoinfo reads them."""
    if shutil.which("isoinfo") is None:
        pytest.skip("isoinfo is not installed (package genisoimage)")

    def isoinfo(*arguments):
        command = ["isoinfo", "-i", image, "-J", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    listed = [line for line in isoinfo("-f").decode().splitlines() if line and line != "/documents"]
    return {path.lstrip("/"): isoinfo("-x", path) for path in listed}


async def drives_of(backed, name="web01-restored"):
    async with backed.vcenter.connect() as session:
        subject = vim.VirtualMachine(backed.lab.moref(name), session.stub)
        row = await session.properties(subject, ["config.hardware.device"])
    return [one for one in row.get("config.hardware.device") if isinstance(one, vim.vm.device.VirtualCdrom)]


@pytest.mark.parametrize("via", ["vddk", "lease"])
async def test_the_sheet_lies_beside_the_new_vm_with_the_documents_byte_for_byte(documented, via):
    receipt = await documented.restore(via=via)
    assert not receipt.failures
    assert not receipt.attention
    [image] = isos(documented)
    assert image.name == ISO
    assert image.parent.name == "web01-restored"
    said = " ".join(receipt.remarks)
    assert "web01-restored: disks restored and proven." in said
    assert f"What its applications need is in [datastore1] web01-restored/{ISO}." in said
    assert "application restored" not in said
    assert await drives_of(documented) == []
    found = files_on(image)
    assert found == await expected(documented)
    assert found["documents/vss-manifest.zip"] == MANIFEST
    assert "README.txt" in found


async def test_the_sheet_in_a_drive_is_connected_when_the_vm_is_switched_on(documented):
    receipt = await documented.restore(sheet="drive")
    assert not receipt.attention
    [drive] = await drives_of(documented)
    assert drive.backing.fileName == f"[datastore1] web01-restored/{ISO}"
    assert drive.connectable.startConnected
    assert drive.controllerKey in (200, 201)
    assert documented.restored() == documented.digests


async def test_the_first_drive_that_the_plan_makes_takes_the_sheet(machine):
    machine.lab._inventory.vms[machine.moref].traits.cdroms = 2
    await machine.back_up(Documents())
    receipt = await machine.restore(sheet="drive")
    assert not receipt.attention
    first, second = await drives_of(machine)
    assert first.backing.fileName.endswith(ISO)
    assert first.connectable.startConnected
    assert not second.connectable.startConnected


async def test_a_sheet_that_is_refused_needs_attention_and_the_vm_stays(documented):
    documented.lab.inject("/folder", refusing(403))
    receipt = await documented.restore(sheet="drive", power_on=True)
    assert not receipt.failures
    refused, off = receipt.attention
    assert refused.startswith("The sheet for its applications was not laid beside it: ")
    assert "Datastore.FileManagement" in refused
    assert "not switched on" in off
    assert isos(documented) == []
    assert documented.restored() == documented.digests
    assert documented.journal.intents() == []


async def test_a_drive_that_is_refused_needs_attention_and_the_sheet_stays(documented):
    def refuse():
        documented.lab.inject("ReconfigVM_Task", fault_maker("NoPermission"))

    with observed(at_step("What its applications need", refuse)):
        receipt = await documented.restore(sheet="drive")
    [refused] = receipt.attention
    assert refused.startswith("The sheet for its applications is not in a CD drive: ")
    assert [image.name for image in isos(documented)] == [ISO]


async def test_a_point_without_documents_has_no_sheet_and_nothing_is_said(backed, tmp_path):
    receipt = await backed.restore(sheet="drive")
    images = await backed.restore(RawDirectory(tmp_path / "images"))
    assert isos(backed) == []
    assert await drives_of(backed) == []
    assert "applications" not in " ".join([*receipt.remarks, *receipt.attention, *images.remarks])
    assert not list((tmp_path / "images").rglob(SHEET))


async def test_no_sheet_is_laid_down_when_none_is_wanted(documented):
    receipt = await documented.restore(sheet="none")
    assert isos(documented) == []
    assert "applications" not in " ".join(receipt.remarks)


async def test_a_restore_that_fails_after_the_sheet_takes_it_away(documented):
    """It is deleted by its name: destroying a VM need not take away other files than its own."""
    there, before = [], documented.lab.calls.get("/folder", 0)

    def fail():
        there.extend(isos(documented))
        raise SinkError("the disk of the journal is full")

    with pytest.raises((SinkError, BaseExceptionGroup)) as failed, observed(at_step("whole", fail)):
        await documented.restore()
    assert any("journal" in str(leaf) for leaf in leaves(failed.value))
    assert len(there) == 1
    assert isos(documented) == []
    assert documented.names == ["web01"]
    assert documented.lab.calls["/folder"] == before + 3  # PUT, GET, DELETE
    assert documented.journal.intents() == []


@pytest.mark.parametrize("target", [RawDirectory, VmdkDirectory, Qcow2Directory])
async def test_the_sheet_lies_beside_the_images_of_a_point(documented, tmp_path, target):
    receipt = await documented.restore(target(tmp_path / "images"))
    assert not receipt.failures
    assert not receipt.attention
    [place] = (tmp_path / "images").rglob(SHEET)
    assert place.parent.parent.name == "web01"
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {str(path.relative_to(place)): path.read_bytes() for path in files} == await expected(documented)
    assert receipt.remarks == [f"What its applications need is in {place}."]
    assert not [name for name in os.listdir(place.parent) if name.startswith(".")]


async def test_a_sheet_that_is_there_stays_and_force_replaces_it(documented, tmp_path):
    async def restored(key, *, force=False):
        async with open_repository(documented.repository.path) as reader:
            target = RawDirectory(tmp_path / "images")
            return await restore(reader, reader.points[-1], target, keys=[key], force=force)

    await restored("scsi0:0")
    [place] = (tmp_path / "images").rglob(SHEET)
    (place / "README.txt").write_text("mine")
    second = await restored("scsi0:1")
    assert second.remarks == [f"What its applications need is in {place}, which was there already."]
    assert (place / "README.txt").read_text() == "mine"
    await restored("scsi0:1", force=True)
    assert (place / "README.txt").read_bytes() == (await expected(documented))["README.txt"]


def test_a_directory_is_published_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "full")

    place = tmp_path / SHEET
    (tmp_path / f".{SHEET}.killed").mkdir()
    assert publish_directory(place, {"a": b"1", "documents/b": b"2"}, replace=False)
    assert not publish_directory(place, {"a": b"3"}, replace=False)
    monkeypatch.setattr("sinks.images.write_durably", full)
    with pytest.raises(OSError, match="full"):
        publish_directory(place, {"a": b"4"}, replace=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "documents", SHEET]
    assert (place / "a").read_bytes() == b"1"
