"""Files that no snapshot and no VM refers to are listed, and only those; nothing is done to them."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from pipeline.units import MiB
from vadpipe.jsonable import json_object
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.faults.injection import Event
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.inventory.lookup import Vm, find_vm, find_vms
from vadpipe.vsphere.journal.intents import Intent, Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import open_snapshot
from vadpipe.vsphere.vm.orphans import Orphan, orphan_candidates, unreferenced
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead

AddVm = Callable[..., str]
PARTS = ("", "-flat", "-delta", "-sesparse", "-ctk", "-rdm", "-rdmp", "-s001", "-f012")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_belongs_to_the_descriptor_beside_it(part):
    path = f"[ds] vm/disk-000001{part}.vmdk"
    assert unreferenced([path], ["[ds] vm/disk-000001.vmdk"]) == {}
    assert unreferenced([path], ["[ds] vm/disk.vmdk"]) == {"[ds] vm/disk-000001.vmdk": [path]}


@pytest.mark.parametrize("path", ["[other] vm/disk.vmdk", "[ds] vm2/disk.vmdk", "[ds] vm/Disk.vmdk"])
def test_the_same_name_elsewhere_is_another_file(path):
    assert list(unreferenced(["[ds] vm/disk.vmdk"], [path])) == ["[ds] vm/disk.vmdk"]


_paths = st.builds(
    "[ds] {}/{}{}.vmdk".format, st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(PARTS)
)


@given(st.lists(_paths, unique=True), st.lists(_paths))
def test_each_file_is_either_referenced_or_in_one_orphan(found, referenced):
    orphans = unreferenced(found, referenced)
    listed = [path for parts in orphans.values() for path in parts]
    assert len(listed) == len(set(listed))
    kept = set(found) - set(listed)
    assert not kept & set(listed)
    assert unreferenced(kept, referenced) == {}
    assert unreferenced(listed, referenced) == orphans
    assert unreferenced(found, found) == {}


def test_an_orphan_renders_as_a_line_and_as_json():
    orphan = Orphan("[ds] a/x.vmdk", 3 * MiB, datetime(2026, 1, 2, tzinfo=UTC))
    assert str(orphan).startswith("[ds] a/x.vmdk (3.0 MiB, modified 2026-01-02) belongs to no snapshot")
    assert json_object(orphan)["size"] == 3 * MiB
    assert "size unknown)" in str(Orphan("[ds] a/x.vmdk", None, None))


@pytest.fixture
def home(lab: LabVcenter, add_vm: AddVm) -> Path:
    """The directory of a VM with two disks."""
    add_vm(disks=2, traits=VmTraits(quiesced_form="siblings"))
    return lab.datastore("datastore1") / "web01"


async def _candidates(vcenter: Vcenter) -> list[str]:
    async with vcenter.connect() as session:
        return [orphan.path for orphan in await orphan_candidates(session, [await find_vm(session, "web01")])]


async def test_a_stray_disk_is_listed_once_with_all_its_bytes(vcenter, home):
    (home / "stray.vmdk").write_bytes(b"#" * 100)
    (home / "stray-flat.vmdk").write_bytes(b"#" * 1000)
    (home / "lost-delta.vmdk").write_bytes(b"#")
    (home / "notes.txt").write_bytes(b"#")
    async with vcenter.connect() as session:
        lost, stray = await orphan_candidates(session, [await find_vm(session, "web01")])
    assert (stray.path, stray.size) == ("[datastore1] web01/stray.vmdk", 1100)
    assert stray.modified is not None
    assert lost.path == "[datastore1] web01/lost-delta.vmdk"
    assert (home / "stray-flat.vmdk").stat().st_size == 1000


@pytest.mark.slow
async def test_files_of_disks_and_snapshots_are_no_orphans(lab, vcenter, journal, home, wait_until):
    moref = lab.moref("web01")
    lab.take_snapshot(moref, "theirs")
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.application(), journal, run="r"):
            # two bases, theirs, and two redo logs each of ours
            assert len([name for name in os.listdir(home) if name.endswith(".vmdk")]) == 8
            assert await orphan_candidates(session, [vm]) == []
        lab.inject("consolidation", lambda: vim.fault.FileFault(file="x"), in_task=True)
        subject = vim.vm.Snapshot(next(iter(lab.snapshots(moref))), session.stub)
        await session.call("RemoveSnapshot_Task", lambda: subject.Remove(False, True), changes=True)
        await wait_until(lambda: lab.idle)
        assert lab.needs_consolidation(moref)
        assert await orphan_candidates(session, [vm]) == []  # the running disks still hang on them


async def test_a_disk_that_another_vm_uses_is_no_orphan(lab, vcenter, home):
    guest = LabDisk.create(home, "of_web02", MiB)
    assert await _candidates(vcenter) == ["[datastore1] web01/of_web02.vmdk"]
    lab.register_vm(home, "web02", [guest])
    assert await _candidates(vcenter) == []


async def test_a_disk_that_appears_during_the_search_is_no_orphan(lab, vcenter, home):
    moref = lab.moref("web01")
    lab.inject("SearchDatastore_Task", Event(lambda: lab.take_snapshot(moref, "meanwhile")), in_task=True)
    assert await _candidates(vcenter) == []
    assert len(lab.snapshots(moref)) == 1


async def test_a_disk_that_is_gone_or_changed_at_the_second_look_is_no_orphan(lab, vcenter, home):
    merged, written = home / "web01-000009.vmdk", home / "web01-000010.vmdk"
    for path in (merged, written):
        path.write_bytes(b"#")

    def meanwhile() -> None:
        merged.unlink()
        os.utime(written, (1, 1))

    lab.inject("SearchDatastore_Task", Event(meanwhile), nth=2)
    assert await _candidates(vcenter) == []
    assert not merged.exists()


async def test_twenty_vms_cost_at_most_two_calls_each(lab, vcenter, journal, add_vm):
    names = [f"vm{number:02}" for number in range(20)]
    for name in names:
        add_vm(name)
    async with vcenter.connect() as session:
        vms = await find_vms(session, names)
        await trio.to_thread.run_sync(_leave_intents, session, journal, vms)
        before = sum(lab.calls.values())
        assert {one.outcome for one in await look_ahead(session, journal)} == {Outcome.NOT_FOUND}
        assert await orphan_candidates(session, await find_vms(session, names)) == []
        calls = sum(lab.calls.values()) - before
    assert calls <= 2 * len(names), lab.calls


def _leave_intents(session: VcenterSession, journal: Journal, vms: list[Vm]) -> None:
    """An intent of a dead process for each VM."""
    for vm in vms:
        journal.write(
            Intent(
                server=session.server,
                server_id=session.server_id,
                vm_moref=vm.moref,
                vm_uuid=vm.uuid,
                vm_name=vm.name,
                run="r",
                abandoned=True,
            )
        )


@pytest.mark.usefixtures("home")
async def test_one_directory_costs_one_search(lab, vcenter):
    await _candidates(vcenter)
    assert lab.calls["SearchDatastore_Task"] == 1
