"""Locks and hot-added disks: a run leaves none, and what a killed one left is undone in the right order."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import LeftBehind, leaves
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere import lab_runs
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.lab.vcenter.state.outside import hot_added, noted, relocation_lock
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import Vddk
from vadpipe.vddk.errors import VddkError
from vadpipe.vsphere.api.faults import SnapshotError, SnapshotLeaked, VsphereError
from vadpipe.vsphere.journal import relocation_lock as relocation
from vadpipe.vsphere.journal.intents import IntentKind, Journal
from vadpipe.vsphere.vm.sweep import Outcome, Swept, look_ahead, sweep

pytestmark = pytest.mark.slow


@dataclass
class Scene:
    """A VM with two disks, VDDK that hot-adds them, and the settings of a run."""

    lab: LabVcenter
    moref: str
    where: dict[str, object]
    journal: Journal

    @property
    def machine(self) -> VcenterVm:
        return lab_runs.machine(self.where)

    @property
    def calls(self) -> list[str]:
        """What happened outside, as 'PrepareForAccess', 'HotAdd', ..., in order; repetitions once."""
        names = [line.split()[0] for line in noted(self.lab.root)]
        return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]

    @property
    def holder(self) -> str | None:
        return relocation_lock(self.lab.root, self.moref)

    @property
    def attached(self) -> list[str]:
        return hot_added(self.lab.root, self.moref)

    def assert_nothing_left(self) -> None:
        assert (self.holder, self.attached, self.lab.snapshots(self.moref)) == (None, [], {})
        assert not self.lab.needs_consolidation(self.moref)

    def run(self, **knobs: str) -> subprocess.Popen[bytes]:
        """The same run in a process of its own."""
        return lab_runs.start("capture", self.where, env=os.environ | knobs)

    async def look_ahead(self) -> list[Swept]:
        async with self.machine.vcenter.connect() as session:
            return await look_ahead(session, self.journal)

    async def sweep(self) -> list[Swept]:
        async with self.machine.vcenter.connect() as session:
            return await sweep(session, self.journal)


@pytest.fixture
def scene(
    lab: LabVcenter,
    add_vm: Callable[..., str],
    journal: Journal,
    libdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(lab.root))
    monkeypatch.setenv("VADPIPE_VDDK_HOTADD", "1")
    where = {**lab.description(), "libdir": str(libdir), "journal": str(journal.directory)}
    add_vm("proxy", disks=0, traits=VmTraits(proxy=True))
    return Scene(lab, add_vm(disks=2), where, journal)


def _wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.005)


async def test_a_run_takes_the_lock_first_and_ends_it_last_and_leaves_nothing(scene):
    async with scene.machine.capture() as capture:
        assert capture.attention == []
        (lock,) = [intent for intent in scene.journal.intents() if intent.kind is IntentKind.RELOCATION_LOCK]
        assert scene.holder == lock.identity
        assert len(scene.attached) == 2
    scene.assert_nothing_left()
    assert scene.journal.intents() == []
    assert scene.calls == [
        "PrepareForAccess", "CreateSnapshot", "HotAdd", "Cleanup", "RemoveSnapshot", "EndAccess",
    ]  # fmt: skip


async def test_a_locked_vm_cannot_be_relocated(scene):
    async def move() -> str:
        """The fault that it ends with."""
        async with scene.machine.vcenter.connect() as session:
            subject = vim.VirtualMachine(scene.moref, session.stub)
            try:
                work = partial(subject.Relocate, vim.vm.RelocateSpec())
                await session.call("RelocateVM_Task", work, changes=True)
            except VsphereError as exc:
                return str(exc.facts["fault"])
            return ""

    async with scene.machine.capture():
        assert "MethodDisabled" in await move()
    assert "MethodDisabled" not in await move()


async def test_the_lock_is_ended_after_a_failure_and_after_a_cancellation(scene):
    with pytest.raises(ZeroDivisionError):
        async with scene.machine.capture():
            raise ZeroDivisionError
    scene.assert_nothing_left()
    with trio.CancelScope() as scope:
        async with scene.machine.capture():
            scope.cancel()
            await trio.sleep_forever()
    scene.assert_nothing_left()
    assert scene.journal.intents() == []


async def test_a_lock_that_somebody_else_keeps_is_reported_and_left_to_him(scene, monkeypatch):
    monkeypatch.setattr(relocation, "LOCK_WITHIN_S", 0.3)
    (scene.lab.root / "locks").mkdir()
    (scene.lab.root / "locks" / scene.moref).write_text("another product")
    async with scene.machine.capture() as capture:
        (sentence,) = capture.attention
    assert "not locked against Storage vMotion" in sentence
    assert "somebody else" in sentence
    assert scene.holder == "another product"
    assert scene.journal.intents() == []


async def test_a_lock_that_is_released_meanwhile_is_taken(scene):
    lock = scene.lab.root / "locks" / scene.moref
    lock.parent.mkdir()
    lock.write_text("another product")

    async def release() -> None:
        while not scene.journal.intents():  # noqa: ASYNC110
            await trio.sleep(0.01)
        lock.unlink()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        async with scene.machine.capture() as capture:
            assert capture.attention == []
            assert scene.holder
    scene.assert_nothing_left()


async def test_a_lock_call_that_was_cut_off_is_undone(scene, monkeypatch, tmp_path):
    monkeypatch.setattr(relocation, "LOCK_WITHIN_S", 1.0)
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "prepare:1")
    async with scene.machine.capture() as capture:
        assert "SIGABRT" in capture.attention[0]
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))  # only the first attempt crashes
    async with scene.machine.capture() as capture:
        assert capture.attention == []
    scene.assert_nothing_left()


@pytest.mark.parametrize("code", [14011, 3014])  # worth another try, and not
async def test_a_lock_that_a_failed_call_has_taken_is_ended(scene, monkeypatch, tmp_path, code):
    monkeypatch.setattr(relocation, "LOCK_WITHIN_S", 0.3)
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", f"prepare:1+:{code}")
    async with scene.machine.capture() as capture:
        (sentence,) = capture.attention
        assert str(code) in sentence
        assert "somebody else" not in sentence
        assert scene.holder is None
    scene.assert_nothing_left()
    assert scene.journal.intents() == []
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))
    async with scene.machine.capture() as capture:
        assert (capture.attention == []) == (code == 14011)
    scene.assert_nothing_left()


async def test_a_lock_whose_call_failed_and_that_cannot_be_ended_stays_in_the_journal(scene, monkeypatch):
    monkeypatch.setattr(relocation, "LOCK_WITHIN_S", 0.3)
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "prepare:1+:3014,end:1:3014")
    with pytest.raises(LeftBehind, match="could not be ended"):
        async with scene.machine.capture():
            pass
    assert scene.holder
    monkeypatch.delenv("VADPIPE_VDDK_FAULT")
    (swept,) = await scene.sweep()
    assert (swept.outcome, swept.intent.kind) == (Outcome.REMOVED, IntentKind.RELOCATION_LOCK)
    scene.assert_nothing_left()


async def test_without_the_setting_or_on_an_esxi_host_there_is_no_lock(scene, tmp_path, monkeypatch):
    async with replace(scene.machine, lock_relocation=False).capture() as capture:
        assert (capture.attention, scene.holder) == ([], None)
    assert not any(
        "Storage vMotion" in one for one in replace(scene.machine, lock_relocation=False).effects()
    )
    with LabVcenter(tmp_path / "esxi", task_s=0.02, api_type="HostAgent") as host:
        monkeypatch.setenv("VADPIPE_LAB_ROOT", str(host.root))
        directory = host.datastore("datastore1") / "web01"
        disk = scene.lab.disks(scene.moref)[0]
        host.register_vm(directory, "web01", [type(disk).create(directory, "disk0", disk.capacity)])
        async with lab_runs.machine({**scene.where, **host.description()}).capture() as capture:
            assert capture.attention == []
        assert "PrepareForAccess" not in "".join(noted(host.root))


async def test_a_lock_that_cannot_be_ended_is_told_and_tried_again(scene, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "end:1:3014")
    with pytest.raises(LeftBehind, match="could not be ended") as caught:
        async with scene.machine.capture():
            pass
    assert not isinstance(caught.value, SnapshotLeaked)
    assert scene.lab.snapshots(scene.moref) == {}
    assert scene.holder
    monkeypatch.delenv("VADPIPE_VDDK_FAULT")
    (swept,) = await scene.sweep()
    assert (swept.outcome, swept.intent.kind) == (Outcome.REMOVED, IntentKind.RELOCATION_LOCK)
    scene.assert_nothing_left()


async def test_a_disk_of_a_crashed_process_is_detached_before_the_snapshot_goes(scene, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "close:1")
    async with scene.machine.capture():
        assert len(scene.attached) == 2
    scene.assert_nothing_left()
    assert scene.calls[-3:] == ["Cleanup", "RemoveSnapshot", "EndAccess"]
    assert scene.journal.intents() == []


async def test_a_snapshot_stays_while_its_disk_is_attached(scene, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "cleanup:1:3014")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with scene.machine.capture():
            pass
    assert all(isinstance(leaf, LeftBehind) for leaf in leaves(caught.value))
    assert "still attached" in str(leaves(caught.value)[1])
    assert len(scene.lab.snapshots(scene.moref)) == 1
    assert scene.holder is None  # nothing reads the disks any more
    kept = await scene.sweep()
    assert [(one.intent.kind, one.outcome) for one in kept] == [
        (IntentKind.HOT_ADD, Outcome.KEPT), (IntentKind.SNAPSHOT, Outcome.KEPT),
    ]  # fmt: skip
    assert len(scene.lab.snapshots(scene.moref)) == 1
    monkeypatch.delenv("VADPIPE_VDDK_FAULT")
    swept = await scene.sweep()
    assert [one.outcome for one in swept] == [Outcome.REMOVED, Outcome.REMOVED]
    scene.assert_nothing_left()


async def test_runs_whose_vddk_cannot_connect_leave_no_snapshot_and_name_the_cause(
    scene, monkeypatch, tmp_path
):
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(tmp_path / "unreachable"))
    for _ in range(4):
        with pytest.raises(Exception, match="ConnectEx") as caught:
            async with scene.machine.capture():
                pass
        assert [type(error) for error in leaves(caught.value)] == [VddkError]
        assert scene.lab.snapshots(scene.moref) == {}
        assert scene.journal.intents() == []


async def test_vsphere_is_asked_which_vm_has_the_disks_when_the_library_cannot_clean_up(scene, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_HOTADD", "0")  # read over the network: nothing is attached
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "read:1:3014,cleanup:1:3014")
    with pytest.raises(VddkError, match="Read"):
        async with scene.machine.capture() as capture:
            await lab_runs.read_all(capture)
    scene.assert_nothing_left()
    assert scene.journal.intents() == []


async def test_no_snapshot_is_taken_while_an_earlier_one_of_ours_is_kept(scene, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "cleanup:1:3014")
    with pytest.raises(BaseExceptionGroup):
        async with scene.machine.capture():
            pass
    kept = set(scene.lab.snapshots(scene.moref))
    with pytest.raises(SnapshotError, match=r"'vadpipe .*' .* old") as caught:
        async with scene.machine.capture():
            pass
    assert "proxy" in str(caught.value)  # who has its disks attached
    assert set(scene.lab.snapshots(scene.moref)) == kept
    monkeypatch.delenv("VADPIPE_VDDK_FAULT")
    async with scene.machine.capture() as capture:
        assert capture.attention == []
    scene.assert_nothing_left()


MOMENTS: dict[str, tuple[dict[str, str], Callable[[Scene], bool]]] = {
    "while it takes the lock": (
        {"VADPIPE_VDDK_HANG": "prepare:1"},
        lambda scene: bool(scene.journal.intents()),
    ),
    "while it opens disks": ({"VADPIPE_VDDK_HANG": "info:1"}, lambda scene: bool(scene.attached)),
    "while it reads": (
        {"VADPIPE_VDDK_HANG": "read:1"},
        lambda scene: (scene.lab.root / "once" / "hang-read-1").exists(),
    ),
    "while it ends the lock": (
        {"VADPIPE_VDDK_HANG": "end:1"},
        lambda scene: "RemoveSnapshot" in scene.calls,
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_what_a_killed_run_left_is_undone_in_order(scene, moment):
    knobs, is_time = MOMENTS[moment]
    once = scene.lab.root / "once"
    once.mkdir()
    with scene.run(**knobs, VADPIPE_VDDK_ONCE=str(once)) as process:
        _wait(lambda: is_time(scene))
        process.send_signal(signal.SIGKILL)
    if moment == "while it reads":  # the process of the other disk is idle, and ends in order
        _wait(lambda: "Cleanup" in scene.calls)
    held, attached, before = scene.holder, scene.attached, len(noted(scene.lab.root))

    would = await scene.look_ahead()
    assert (scene.holder, scene.attached, len(noted(scene.lab.root))) == (held, attached, before)
    looked = {Outcome.WOULD_REMOVE, Outcome.NOT_FOUND, Outcome.NOTHING_TO_UNDO}
    assert {one.outcome for one in would} <= looked
    assert bool(held) == any(
        (one.intent.kind, one.outcome) == (IntentKind.RELOCATION_LOCK, Outcome.WOULD_REMOVE) for one in would
    )

    async with scene.machine.capture() as capture:  # the next run, which is not disturbed by it
        assert capture.attention == []
    scene.assert_nothing_left()
    undone = [line.split()[0] for line in noted(scene.lab.root)[before:]]
    undone = undone[: undone.index("PrepareForAccess")]
    expected = [
        *(["Cleanup"] if attached else []),
        *(["RemoveSnapshot"] if attached else []),
        *(["EndAccess"] if held else []),
    ]
    assert [
        name for at, name in enumerate(undone) if name in expected and name not in undone[at + 1 :]
    ] == expected
    for intent in scene.journal.intents():  # of what may still come for a while, and then not any more
        scene.journal.write(replace(intent, created="2001-01-01T00:00:00+00:00"))
    assert {one.outcome for one in await scene.sweep()} <= {Outcome.NOTHING_TO_UNDO, Outcome.NOT_FOUND}
    assert scene.journal.intents() == []


async def test_foreign_locks_are_never_ended(scene):
    with scene.run(VADPIPE_VDDK_HANG="end:1") as process:
        _wait(lambda: "RemoveSnapshot" in scene.calls)
        process.send_signal(signal.SIGKILL)
    lock = scene.lab.root / "locks" / scene.moref
    lock.write_text("another product")
    swept = {one.intent.kind: one for one in await scene.sweep()}
    assert swept[IntentKind.RELOCATION_LOCK].outcome is Outcome.KEPT
    assert "another product" in swept[IntentKind.RELOCATION_LOCK].reason
    assert scene.holder == "another product"
    lock.unlink()
    swept = {one.intent.kind: one for one in await scene.sweep()}
    assert swept[IntentKind.RELOCATION_LOCK].outcome is Outcome.NOTHING_TO_UNDO


async def test_hot_added_disks_of_a_run_that_lives_are_left_to_it(scene, libdir):
    async with scene.machine.capture():
        attached = scene.attached
        (mine,) = [intent for intent in scene.journal.intents() if intent.kind is IntentKind.HOT_ADD]
        scene.journal.write(replace(mine, token="0" * 32, process_start="an earlier boot/1"))
        outcomes = {one.intent.token: one.outcome for one in await scene.sweep()}
        assert set(outcomes.values()) == {Outcome.IN_USE}
        assert scene.attached == attached
    scene.assert_nothing_left()


async def test_an_intent_of_another_machine_says_how_to_remove_it(scene, vcenter):
    async with scene.machine.capture():
        for intent in scene.journal.intents():
            scene.journal.write(replace(intent, host="a-machine-that-is-gone"))
        for swept in await scene.sweep():
            assert swept.outcome is Outcome.IN_USE
            assert "vadpipe cleanup" in swept.reason
            assert str(scene.journal.path(swept.intent)) in swept.reason


def test_the_working_directory_is_private_and_the_same_in_every_run(libdir):
    access = DiskAccess(
        path="[ds] a.vmdk", server="vc/1", vm="vm-7", user="u", password=None, cookie=Secret.from_text("c")
    )
    first, second = (Vddk(libdir).tmp_directory(access) for _ in range(2))
    other = Vddk(libdir).tmp_directory(replace(access, vm="vm-8"))
    assert first == second != other
    assert first.is_relative_to(os.environ["XDG_STATE_HOME"])
    assert first.stat().st_mode & 0o077 == first.parent.stat().st_mode & 0o077 == 0
    own = Vddk(libdir, config={"tmpDirectory": "/var/vddk"})
    assert own.tmp_directory(access) == Path("/var/vddk")
