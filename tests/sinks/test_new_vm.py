"""A point becomes a new VM: made, written, proved and completed, or taken away again."""

import signal
from dataclasses import replace

import pytest
import trio
from pyVmomi import vim

from pipeline import ConfigError, MoverError, observed
from pipeline.errors import leaves
from sinks import open_repository
from sinks.restoring import Contents
from tests.sinks import new_vm_runs
from tests.sinks.new_vm_kit import at_step, filled
from vadpipe.lab.vcenter import Delay, Drop, Event
from vadpipe.lab.vcenter.faults.kinds import fault_maker
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.journal.intents import IntentKind
from vadpipe.vsphere.vm.new import TOKEN
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead, sweep

pytestmark = pytest.mark.slow


def state_of(lab, name):
    return lab._inventory.vms[lab.moref(name)]


def assert_nothing_of_ours(backed):
    """Only the VM that was backed up is there, no file of another, and no intent."""
    assert backed.names == ["web01"]
    assert backed.files() == ["web01"]
    assert backed.journal.intents() == []


def assert_whole(backed, receipt):
    assert receipt.failures == []
    assert backed.names == ["web01", "web01-restored"]
    assert backed.restored() == backed.digests
    assert backed.journal.intents() == []


async def test_the_disks_of_the_new_vm_hold_what_was_backed_up(backed):
    receipt = await backed.restore()
    assert_whole(backed, receipt)
    assert "web01-restored: disks restored and proven." in receipt.remarks
    assert not receipt.attention
    restored = state_of(backed.lab, "web01-restored")
    assert restored.power == "poweredOff"
    assert restored.instance_uuid != state_of(backed.lab, "web01").instance_uuid
    assert restored.extra_config["disk.EnableUUID"] == "TRUE"


async def test_a_thin_disk_stays_thin_and_the_report_counts_it(backed):
    receipt = await backed.restore()
    told = "all 4.1 MiB read back and proved; 4.1 MiB allocated, 4.0 MiB in the point."
    assert {f"Disk scsi0:0: {told}", f"Disk scsi0:1: {told}"} <= set(receipt.remarks)


async def test_a_plan_makes_nothing(backed):
    async with open_repository(backed.repository.path) as reader:
        point = reader.points[-1]
        plan = await backed.target().plan(Contents(reader, point, point.disks))
    assert not plan.problems
    assert [disk.key for disk in plan.disks] == ["scsi0:0", "scsi0:1"]
    assert "CreateVM_Task" not in backed.lab.calls


async def test_it_is_switched_on_at_the_end_and_its_heartbeat_is_waited_for(backed):
    receipt = await backed.restore(power_on=True, heartbeat_within_s=20)
    assert_whole(backed, receipt)
    assert "web01-restored is on, and its VMware Tools give a heartbeat." in receipt.remarks
    assert state_of(backed.lab, "web01-restored").power == "poweredOn"


@pytest.mark.parametrize("method", ["CreateVM_Task", "ReconfigVM_Task", "Destroy_Task", "PowerOnVM_Task"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_lost_answer_makes_nothing_twice(backed, method, nth):
    backed.lab.inject(method, Drop.AFTER, nth)
    receipt = await backed.restore(power_on=True, heartbeat_within_s=20)
    assert_whole(backed, receipt)
    assert state_of(backed.lab, "web01-restored").power == "poweredOn"


async def test_a_disk_that_a_lost_attempt_adds_between_the_look_and_the_next_attempt_is_taken(backed):
    backed.vcenter = replace(backed.vcenter, patience_s=20)
    backed.lab.inject("ReconfigVM_Task", Drop.AFTER)
    backed.lab.inject("ReconfigVM_Task", Delay(0.5), in_task=True)
    backed.lab.inject("ReconfigVM_Task", Delay(1), nth=2)
    assert_whole(backed, await backed.restore())


@pytest.mark.parametrize("step", ["creating", "adding disk scsi0:1", "writing", "finishing", "whole"])
async def test_a_vcenter_that_restarts_is_waited_for(backed, step):
    backed.vcenter = replace(backed.vcenter, patience_s=20)
    with observed(at_step(step, lambda: backed.lab.restart(0.1))):
        receipt = await backed.restore(power_on=True, heartbeat_within_s=20)
    assert_whole(backed, receipt)


@pytest.mark.parametrize(
    "step", ["creating", "adding disk scsi0:0", "adding disk scsi0:1", "writing", "finishing"]
)
async def test_a_cancelled_restore_leaves_nothing(backed, step):
    with trio.CancelScope() as scope, observed(at_step(step, scope.cancel)):
        await backed.restore()
    assert scope.cancelled_caught
    assert_nothing_of_ours(backed)


async def test_a_restore_that_is_cancelled_when_it_is_complete_stays(backed):
    with trio.CancelScope() as scope, observed(at_step("switching on", scope.cancel)):
        await backed.restore(power_on=True)
    assert scope.cancelled_caught
    assert backed.restored() == backed.digests
    assert backed.journal.intents() == []


async def test_a_name_that_is_taken_meanwhile_is_one_error_and_the_other_vm_is_not_touched(backed):
    def take() -> None:
        directory = backed.lab.datastore("datastore1") / "somebody"
        backed.lab.register_vm(directory, "web01-restored", [filled(directory, "theirs", 9)])

    with observed(at_step("creating", take)), pytest.raises(ConfigError, match="web01-restored"):
        await backed.restore()
    assert backed.names == ["web01", "web01-restored"]
    assert backed.files() == ["somebody", "web01"]
    assert backed.journal.intents() == []


async def test_of_two_restores_of_one_name_one_is_refused(backed):
    outcomes = []

    async def one() -> None:
        try:
            outcomes.append(await backed.restore())
        except MoverError as exc:
            outcomes.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, ConfigError)]
    assert "web01-restored" in str(refused)
    [receipt] = [outcome for outcome in outcomes if outcome is not refused]
    assert_whole(backed, receipt)


async def test_a_datastore_that_is_full_half_way_leaves_no_vm(backed):
    backed.lab.inject("ReconfigVM_Task", fault_maker("NoDiskSpace"), 2, in_task=True)
    with pytest.raises(MoverError) as caught:
        await backed.restore()
    assert "scsi0:1" in " ".join(caught.value.__notes__)
    assert_nothing_of_ours(backed)


async def test_a_disk_that_cannot_be_written_leaves_no_vm(backed, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "write:2:8")
    receipt = await backed.restore()
    assert receipt.failures
    assert receipt.disks == []
    assert_nothing_of_ours(backed)


@pytest.mark.parametrize("number", range(8))
async def test_a_failure_at_any_call_leaves_a_whole_vm_or_nothing(backed, number):
    """Every eighth call of a restore fails in turn, with a fault, a lost answer or a broken connection."""
    receipt = await backed.restore(name="counted")
    assert not receipt.failures
    total = sum(backed.lab.calls.values())
    receipt = await backed.restore(name="counted too")
    calls = sum(backed.lab.calls.values()) - total
    failures = (Drop.AFTER, fault_maker("NoPermission"), fault_maker("TaskInProgress"), Drop.BEFORE)
    for nth in range(number + 1, calls + 1, 8):
        backed.lab.inject("*", failures[nth % len(failures)], nth)
        failed: BaseException | None = None
        try:
            await backed.restore()
        except (MoverError, BaseExceptionGroup) as exc:
            failed = exc
        assert failed is None or all(isinstance(leaf, MoverError) for leaf in leaves(failed)), failed
        backed.lab.calm()
        async with backed.vcenter.connect() as session:
            await sweep(session, backed.journal)
            if "web01-restored" in backed.names:
                assert backed.restored() == backed.digests, nth
                moref = backed.lab.moref("web01-restored")
                task = await session.call(
                    "Destroy_Task", vim.VirtualMachine(moref, session.stub).Destroy, changes=True
                )
                await wait_for_task(session, task, "Destroy_Task")
        assert backed.names == ["counted", "counted too", "web01"], nth
        assert [one for one in backed.journal.intents() if one.vm_moref] == [], nth


async def test_disks_may_be_hot_added_to_this_machine_for_writing(backed, monkeypatch):
    proxy = backed.lab.datastore("datastore1") / "proxy"
    moref = backed.lab.register_vm(proxy, "proxy", [], traits=VmTraits(proxy=True))
    monkeypatch.setenv("VADPIPE_VDDK_HOTADD", "1")
    receipt = await backed.restore(writer=replace(backed.writer, transports="hotadd:nbdssl"))
    assert receipt.failures == []
    assert backed.restored() == backed.digests
    assert backed.lab.disks(moref) == []
    assert backed.journal.intents() == []


async def test_a_disk_whose_connection_was_lost_for_good_is_written_once_more(backed, tmp_path, monkeypatch):
    (tmp_path / "once").mkdir()
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "write:3")
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path / "once"))
    receipt = await backed.restore(writer=replace(backed.writer, restarts=0))
    assert list((tmp_path / "once").iterdir())
    assert_whole(backed, receipt)


async def _dead_intent(backed):
    """What a killed restore leaves: the VM, and an intent of a process that no longer exists."""
    kept = {}

    def keep() -> None:
        [intent] = [one for one in backed.journal.intents() if one.kind is IntentKind.NEW_VM]
        kept[intent.token] = intent

    class KilledError(Exception):
        pass

    def kill() -> None:
        keep()
        backed.lab.inject("Destroy_Task", fault_maker("NoPermission"))
        raise KilledError

    with observed(at_step("writing", kill)):
        try:
            await backed.restore()
        except* (KilledError, MoverError):
            pass
    [intent] = kept.values()
    intent = replace(intent, process_start="an earlier boot/1", phase="writing")
    backed.journal.write(intent)
    return intent


async def test_cleanup_destroys_what_a_killed_restore_left_and_shows_it_before(backed):
    intent = await _dead_intent(backed)
    assert backed.names == ["web01", "web01-restored"]
    async with backed.vcenter.connect() as session:
        before = sum(backed.lab.calls.values())
        [would] = await look_ahead(session, backed.journal)
        assert would.outcome is Outcome.WOULD_REMOVE
        assert "web01-restored" in str(would)
        assert (
            sum(backed.lab.calls.values()) - before <= 3 + 2
        )  # all identities in three calls, two for the VM
        [swept] = await sweep(session, backed.journal)
    assert swept.outcome is Outcome.REMOVED
    assert swept.intent.token == intent.token
    assert_nothing_of_ours(backed)


@pytest.mark.parametrize("use", ["switched it on", "renamed it", "other disks", "snapshot"])
async def test_a_new_vm_that_somebody_uses_is_kept_and_reported(backed, use):
    await _dead_intent(backed)
    vm = state_of(backed.lab, "web01-restored")
    if use == "switched it on":
        vm.power = "poweredOn"
    elif use == "renamed it":
        vm.name = "important"
    elif use == "snapshot":
        backed.lab.take_snapshot(vm.moref, "before the test")
    else:
        async with backed.vcenter.connect() as session:
            subject = vim.VirtualMachine(vm.moref, session.stub)
            disk = vim.vm.device.VirtualDisk(
                key=-1,
                controllerKey=1000,
                unitNumber=9,
                capacityInKB=1024,
                backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                    fileName="[datastore1]", diskMode="persistent"
                ),
            )
            change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
            spec = vim.vm.ConfigSpec(deviceChange=[change])
            task = await session.call("ReconfigVM_Task", lambda: subject.Reconfigure(spec), changes=True)
            await wait_for_task(session, task, "ReconfigVM_Task")
    async with backed.vcenter.connect() as session:
        [looked] = await look_ahead(session, backed.journal)
        [swept] = await sweep(session, backed.journal)
    assert looked.outcome is swept.outcome is Outcome.KEPT
    assert use in swept.reason
    assert len(backed.names) == 2
    assert len(backed.journal.intents()) == 1


async def test_a_vm_without_our_token_is_never_touched(backed):
    await _dead_intent(backed)
    state_of(backed.lab, "web01-restored").extra_config[TOKEN] = "another"
    async with backed.vcenter.connect() as session:
        [swept] = await sweep(session, backed.journal)
    assert swept.outcome is Outcome.NOT_FOUND
    assert backed.names == ["web01", "web01-restored"]


KILLED_AT = [
    ("CreateVM_Task", 1, False),
    ("CreateVM_Task", 1, True),
    ("ReconfigVM_Task", 1, False),
    ("ReconfigVM_Task", 1, True),
    ("ReconfigVM_Task", 2, True),
    ("step", "writing", False),
    ("step", "proving", False),
    ("step", "finishing", False),
]


@pytest.mark.parametrize("moment", KILLED_AT, ids=lambda moment: " ".join(map(str, moment)))
async def test_a_restore_that_was_killed_is_undone_by_the_next_start(backed, tmp_path, moment):
    method, which, after = moment
    where = {
        **backed.lab.description(),
        "libdir": str(backed.libdir),
        "journal": str(backed.journal.directory),
        "repository": str(backed.repository.path),
        "kill_at": which if method == "step" else "",
    }
    process = new_vm_runs.start(where)
    try:
        if method != "step":
            backed.lab.inject(method, Event(process.kill), which, after=after)
        assert await trio.to_thread.run_sync(process.wait) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    backed.lab.calm()
    [intent] = [one for one in backed.journal.intents() if one.kind is IntentKind.NEW_VM]
    assert intent.vm_name == "web01-restored"
    while not backed.lab.idle:  # noqa: ASYNC110
        await trio.sleep(0.01)
    receipt = await backed.restore(name="the next")
    assert receipt.failures == []
    assert backed.names == ["the next", "web01"]
    assert backed.restored("the next") == backed.digests
    left = backed.journal.intents()
    assert left in ([], [intent])  # of a VM that never came into being the intent is kept for a while
    assert not left or not intent.vm_moref
