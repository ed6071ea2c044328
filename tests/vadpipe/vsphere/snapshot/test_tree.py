"""A snapshot of quiesced applications in each form that it has: what the writers left is read, and ours removed."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.extents import Extents
from pipeline.units import KiB
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vsphere_kit import intent_of
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.quiesce import Quiesce, create_snapshot
from vadpipe.vsphere.snapshot.tree import description_with, family_of, lies_on, snapshots_of
from vadpipe.vsphere.vm.capture import VsphereCapture
from vadpipe.vsphere.vm.sweep import Outcome, sweep

AddVm = Callable[..., str]
FORMS = ("one snapshot", "siblings", "unmarked sibling")
PLACE, LENGTH = 128 * KiB, 4 * KiB

BASE = ["[ds] a/a.vmdk"]
LAYER = ["[ds] a/a-000002.vmdk", *BASE]
DEEPER = ["[ds] a/a-000004.vmdk", *LAYER]
OTHER = ["[ds] a/b.vmdk"]


@pytest.mark.parametrize(
    ("upper", "lower", "lies"),
    [
        ({2000: LAYER}, {2000: BASE}, True),
        ({2000: LAYER, 2001: OTHER}, {2000: BASE, 2001: OTHER}, True),
        ({2000: BASE}, {2000: BASE}, False),  # the same files
        ({2000: BASE}, {2000: LAYER}, False),  # the other way round
        ({2000: DEEPER}, {2000: BASE}, False),  # not directly
        ({2000: LAYER, 2001: DEEPER}, {2000: BASE, 2001: OTHER}, False),
        ({2000: LAYER, 2001: OTHER}, {2000: BASE}, False),  # other disks
        ({2000: LAYER[:1]}, {2000: BASE}, False),  # the server does not tell what it hangs on
        ({2000: ["[ds] a/x.vmdk"]}, {2000: []}, False),
        ({}, {}, False),
    ],
)
def test_a_layer_hangs_directly_on_every_file_that_it_changes(upper, lower, lies):
    assert lies_on(upper, lower) is lies


@pytest.fixture
def web01(
    lab: LabVcenter, vcenter: Vcenter, reader, journal: Journal, add_vm: AddVm
) -> Callable[..., VcenterVm]:
    """A VM whose guest has "frozen" on its disk when it is quiesced, and whose writers then write "vss"."""

    def make(form: str, disks: int = 1) -> VcenterVm:
        moref = add_vm(disks=disks, change_tracking=True, traits=VmTraits(quiesced_form=form))
        for disk in lab.disks(moref):
            disk.write(PLACE, b"frozen".ljust(LENGTH))

        def write_as_writers_do(_moref: str, frozen: object) -> None:
            for disk, image in zip(lab.disks(moref), frozen, strict=True):
                disk.write_frozen(image, PLACE, b"vss".ljust(LENGTH))

        lab.on_snapshot.append(write_as_writers_do)
        return VcenterVm(vcenter, "web01", reader=reader, journal=journal)

    return make


async def _content(capture: VsphereCapture) -> list[bytes]:
    found = []
    for disk in capture.disks:
        buffer = await disk.pool.acquire()
        await disk.read(buffer, PLACE, Extents.whole(LENGTH, PLACE))
        found.append(bytes(buffer.array[:LENGTH]).rstrip())
        buffer.release()
    return found


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_read_is_the_quiesced_state(lab, web01, form):
    machine = web01(form, disks=2)
    live = lab.disks(lab.moref("web01"))
    async with machine.capture() as capture:
        for disk in live:
            disk.write(PLACE, b"live".ljust(LENGTH))
        assert await _content(capture) == [b"vss", b"vss"]
        fetched = await capture.fetch_vss_manifest()
        assert fetched.content is not None
        assert "backupManifest" in fetched.reason
    assert [disk.read(PLACE, 4) for disk in live] == [b"live", b"live"]


@pytest.mark.parametrize("form", FORMS[:2])
async def test_both_snapshots_of_a_family_are_removed(lab, web01, journal, form):
    machine = web01(form)
    moref = lab.moref("web01")
    async with machine.capture() as capture:
        assert len(lab.snapshots(moref)) == 1 + (form == "siblings")
        assert capture.attention == []
    assert capture.snapshots_left == 0
    assert not lab.needs_consolidation(moref)
    assert journal.intents() == []
    assert sorted(path.name for path in (lab.datastore("datastore1") / "web01").glob("*.vmdk")) == [
        "disk0.vmdk"
    ]


async def test_a_sibling_without_our_mark_is_read_and_named_and_left(lab, web01):
    machine = web01("unmarked sibling")
    moref = lab.moref("web01")
    async with machine.capture() as capture:
        ours, other = lab.snapshots(moref)
        (told,) = capture.attention
        assert other in told
        assert "does not carry our mark" in told
        assert capture.snapshot.moref == other
    assert list(lab.snapshots(moref)) == [other]
    assert ours != other
    assert capture.snapshots_left == 1


async def test_a_snapshot_on_top_of_ours_is_no_sibling(lab, web01):
    machine = web01("one snapshot")
    moref = lab.moref("web01")
    lab.on_snapshot.append(lambda moref, frozen: lab.take_snapshot(moref, "in the same moment"))
    async with machine.capture() as capture:
        ours, foreign = lab.snapshots(moref)
        assert capture.snapshot.moref == ours
        assert capture.attention == []
        assert await _content(capture) == [b"vss"]
    assert list(lab.snapshots(moref)) == [foreign]


async def test_siblings_with_unknown_files_are_reported(lab, web01, monkeypatch):
    monkeypatch.setattr("vadpipe.lab.vcenter.state.vm_devices._parent", lambda *chain, **options: None)
    async with web01("siblings").capture() as capture:
        (told,) = capture.attention
        assert "does not tell which" in told
        assert capture.snapshot.moref in told
    assert lab.snapshots(lab.moref("web01")) == {}


async def test_the_sweep_removes_both_siblings_of_a_killed_run(lab, vcenter, web01, journal):
    web01("siblings")
    moref = lab.moref("web01")
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        intent = intent_of(session, vm, "r")
        journal.write(intent)
        said, asked = description_with(intent.token), Quiesce.application()
        task = await create_snapshot(
            session, vm, asked, name="x", description=said, guest_id="windows2019srv_64Guest", remark=print
        )
        created: Any = await wait_for_task(session, task, "CreateSnapshotEx_Task")
        family = await family_of(session, vm, intent.token, str(created._moId))
        assert family is not None
        assert family.morefs == set(lab.snapshots(moref))
        assert family.node.moref != str(created._moId)  # the task names the one that was only frozen
        again = await family_of(session, vm, intent.token, family.node.moref)
        assert again is not None
        assert (again.node.moref, again.attention) == (family.node.moref, [])
        journal.abandon(intent)
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        assert await snapshots_of(session, vm.moref) == []
    assert not lab.needs_consolidation(moref)
