"""disk.EnableUUID: the whole procedure, and a VM that is powered as it was whatever happens in between."""

import signal

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError, leaves
from pipeline.events import observed
from tests.vadpipe.vsphere import lab_runs
from vadpipe.lab.vcenter.faults.injection import Delay, Drop
from vadpipe.lab.vcenter.objects.vm import VirtualMachine
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import IntentKind, Journal
from vadpipe.vsphere.vm import power
from vadpipe.vsphere.vm.power import PowerNotRestored, held_off
from vadpipe.vsphere.vm.prepare import enable_uuid, track_changes
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead, sweep

pytestmark = pytest.mark.usefixtures("quick_polls")
UUID_OFF = {"enable_uuid": False}


@pytest.fixture
def quick_polls(monkeypatch):
    monkeypatch.setattr(power, "POLL_S", 0.02)


@pytest.fixture
def state(lab):
    """What the lab knows of a VM."""
    return lambda moref: lab._inventory.vms[moref]


async def prepared(vcenter, **options):
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        return await enable_uuid(session, vm, Journal(), **{"allow_power_off": True, **options})


def is_set(vm):
    return vm.extra_config.get("disk.EnableUUID") == "TRUE"


async def test_a_running_vm_is_restarted_for_disk_uuids(lab, vcenter, add_vm, state):
    moref = add_vm(**UUID_OFF)
    report = await prepared(vcenter)
    assert is_set(state(moref))
    assert state(moref).power == "poweredOn"
    assert report.attention == []
    assert (lab.calls["ShutdownGuest"], lab.calls["PowerOnVM_Task"]) == (1, 1)
    assert "PowerOffVM_Task" not in lab.calls


async def test_every_step_of_a_restart_is_emitted_and_logged(vcenter, add_vm, caplog):
    add_vm(**UUID_OFF)
    events = []
    with observed(events.append), caplog.at_level("INFO", "vadpipe.vsphere.vm.power"):
        await prepared(vcenter)
    steps = [event.facts["step"] for event in events if event.kind == "preparing"]
    assert steps == [
        "shutting its guest down",
        "its guest is down",
        "setting disk.EnableUUID",
        "powered on again",
        "waiting up to 900 s for VMware Tools",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"web01: {step}" for step in steps]


async def test_without_permission_nothing_is_touched(lab, vcenter, add_vm, state):
    moref = add_vm(**UUID_OFF)
    with pytest.raises(ConfigError, match="--allow-power-off"):
        await prepared(vcenter, allow_power_off=False)
    assert not is_set(state(moref))
    assert not {"ShutdownGuest", "ReconfigVM_Task"} & lab.calls.keys()


async def test_a_vm_that_is_off_needs_no_permission_and_stays_off(lab, vcenter, add_vm, state):
    moref = add_vm(power="poweredOff", **UUID_OFF)
    await prepared(vcenter, allow_power_off=False)
    assert is_set(state(moref))
    assert state(moref).power == "poweredOff"
    assert "PowerOnVM_Task" not in lab.calls


async def test_a_vm_with_disk_uuids_is_not_restarted(lab, vcenter, add_vm):
    add_vm()
    await prepared(vcenter, allow_power_off=False)
    assert not {"ShutdownGuest", "ReconfigVM_Task"} & lab.calls.keys()


async def test_a_suspended_vm_is_left_alone(vcenter, add_vm, state):
    moref = add_vm(power="suspended", **UUID_OFF)
    with pytest.raises(SourceError, match="suspended"):
        await prepared(vcenter)
    assert state(moref).power == "suspended"


async def test_a_guest_without_tools_cannot_be_asked(lab, vcenter, add_vm, state):
    moref = add_vm(tools_version=0, **UUID_OFF)
    with pytest.raises(SourceError, match="by hand"):
        await prepared(vcenter)
    assert state(moref).power == "poweredOn"
    assert "ReconfigVM_Task" not in lab.calls


async def test_a_guest_that_does_not_go_down_is_left_running(lab, vcenter, add_vm, state, monkeypatch):
    moref = add_vm(**UUID_OFF)
    monkeypatch.setattr(VirtualMachine, "ShutdownGuest", lambda self, call: None)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with pytest.raises(SourceError, match="did not shut down within"):
            async with held_off(session, vm, Journal(), shutdown_within_s=0.1, late_s=0.1):
                pytest.fail("it is not off")
    assert state(moref).power == "poweredOn"
    assert not {"ReconfigVM_Task", "PowerOnVM_Task"} & lab.calls.keys()


async def test_a_guest_that_goes_down_too_late_is_powered_on_again(
    lab, vcenter, add_vm, state, monkeypatch, nursery
):
    moref = add_vm(**UUID_OFF)
    monkeypatch.setattr(VirtualMachine, "ShutdownGuest", lambda self, call: None)

    async def go_down() -> None:
        while not lab.calls.get("ShutdownGuest"):  # noqa: ASYNC110
            await trio.sleep(0.001)
        await trio.sleep(0.3)
        lab._service._objects[moref]._power("poweredOff")

    nursery.start_soon(go_down)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with pytest.raises(SourceError, match="did not shut down within"):
            async with held_off(session, vm, Journal(), shutdown_within_s=0.05, late_s=30):
                pytest.fail("it is not off")
    assert state(moref).power == "poweredOn"
    assert lab.calls["PowerOnVM_Task"] == 1


FAULTS = {
    "the shutdown's answer is lost": ("ShutdownGuest", Drop.AFTER, False),
    "the shutdown is refused": (
        "ShutdownGuest",
        lambda: vim.fault.TaskInProgress(task=vim.Task("task-1")),
        False,
    ),
    "the setting is refused": ("ReconfigVM_Task", lambda: vim.fault.NoPermission(privilegeId="x"), False),
    "the setting fails": ("ReconfigVM_Task", lambda: vim.fault.InvalidState(), True),
    "the setting's answer is lost": ("ReconfigVM_Task", Drop.AFTER, False),
    "powering on is refused once": ("PowerOnVM_Task", lambda: vim.fault.InvalidState(), False),
    "powering on fails once": ("PowerOnVM_Task", lambda: vim.fault.InvalidState(), True),
    "powering on's answer is lost": ("PowerOnVM_Task", Drop.AFTER, False),
    "powering on never arrives": ("PowerOnVM_Task", Drop.BEFORE, False),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_a_vm_is_powered_as_before_after_a_fault(lab, vcenter, add_vm, state, case):
    method, failure, in_task = FAULTS[case]
    moref = add_vm(**UUID_OFF)
    lab.inject(method, failure, in_task=in_task)
    try:
        await prepared(vcenter)
        done = True
    except SourceError:
        done = False
    assert state(moref).power == "poweredOn"
    assert done == case.startswith(("the shutdown's answer", "powering on"))
    assert is_set(state(moref)) or not done


@pytest.mark.parametrize("method", ["ShutdownGuest", "ReconfigVM_Task", "PowerOnVM_Task"])
async def test_a_vm_is_powered_as_before_after_a_cancellation(lab, vcenter, add_vm, state, nursery, method):
    moref = add_vm(**UUID_OFF)
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                while not lab.calls.get(method):  # noqa: ASYNC110
                    await trio.sleep(0.001)
                scope.cancel()

            nursery.start_soon(cancel)
            await enable_uuid(session, vm, Journal(), allow_power_off=True)
        assert scope.cancelled_caught
    assert state(moref).power == "poweredOn"


async def test_a_vm_that_cannot_be_powered_on_is_named(vcenter, add_vm, monkeypatch):
    add_vm(**UUID_OFF)

    def refuse(self, call, host):
        raise vim.fault.InsufficientResourcesFault(msg="no host has room")

    monkeypatch.setattr(VirtualMachine, "PowerOnVM_Task", refuse)
    with pytest.raises(PowerNotRestored, match=r"web01.*no host has room"):
        await prepared(vcenter, restore_within_s=0.2)


async def test_a_failure_of_the_body_and_of_powering_on_are_raised_together(vcenter, add_vm, monkeypatch):
    add_vm(**UUID_OFF)

    def refuse(self, call, *arguments):
        raise vim.fault.InvalidState(msg="not now")

    monkeypatch.setattr(VirtualMachine, "PowerOnVM_Task", refuse)
    monkeypatch.setattr(VirtualMachine, "ReconfigVM_Task", refuse)
    with pytest.raises(BaseExceptionGroup) as caught:
        await prepared(vcenter, restore_within_s=0.2)
    assert [type(leaf).__name__ for leaf in leaves(caught.value)] == ["VsphereError", "PowerNotRestored"]


async def test_tools_that_do_not_come_back_need_attention(lab, vcenter, add_vm, state, monkeypatch):
    moref = add_vm(**UUID_OFF)
    power = VirtualMachine._power

    def without_tools(self, wanted):
        power(self, wanted)
        self.state.tools_version = 0

    monkeypatch.setattr(VirtualMachine, "_power", without_tools)
    report = await prepared(vcenter, tools_within_s=0.1)
    assert is_set(state(moref))
    assert "VMware Tools do not run" in report.attention[0]


async def test_change_tracking_needs_no_restart_and_no_snapshots(lab, vcenter, add_vm, state):
    moref = add_vm()
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        assert (await track_changes(session, vm)).attention == []
        assert state(moref).change_tracking
        assert "ShutdownGuest" not in lab.calls


def preparing(lab, journal):
    """The same in a process of its own."""
    return lab_runs.start("prepare", {**lab.description(), "journal": str(journal.directory)})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ShutdownGuest", "ReconfigVM_Task", "PowerOnVM_Task"])
async def test_a_vm_whose_preparation_was_killed_is_powered_on_by_the_next_start(
    lab, vcenter, add_vm, state, tmp_path, method
):
    moref = add_vm(**UUID_OFF)
    journal = Journal(tmp_path / "journal")
    lab.inject(method, Delay(), after=method == "ShutdownGuest")
    with preparing(lab, journal) as process:
        while state(moref).power == "poweredOn" or not lab.calls.get(method):  # noqa: ASYNC110
            await trio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    lab.drop_connections()  # so that what hangs never happens
    assert [intent.kind for intent in journal.intents()] == [IntentKind.POWER]
    assert state(moref).power == "poweredOff"
    async with vcenter.connect() as session:
        (would,) = await look_ahead(session, journal)
        assert would.outcome is Outcome.WOULD_POWER_ON
        assert state(moref).power == "poweredOff"
        (swept,) = await sweep(session, journal)
    assert str(swept) == "power of web01: powered on again"
    assert state(moref).power == "poweredOn"
    assert journal.intents() == []


async def test_the_intent_is_durable_before_the_shutdown_and_gone_at_the_end(
    lab, vcenter, add_vm, monkeypatch, tmp_path
):
    add_vm(**UUID_OFF)
    journal = Journal(tmp_path / "journal")
    seen = []
    shut_down = VirtualMachine.ShutdownGuest

    def look(self, call):
        seen.extend(intent.kind for intent in journal.intents())
        shut_down(self, call)

    monkeypatch.setattr(VirtualMachine, "ShutdownGuest", look)
    async with vcenter.connect() as session:
        await enable_uuid(session, await find_vm(session, "web01"), journal, allow_power_off=True)
    assert seen == [IntentKind.POWER]
    assert journal.intents() == []


async def test_a_vm_that_cannot_be_powered_on_stays_in_the_journal(vcenter, add_vm, monkeypatch, tmp_path):
    add_vm(**UUID_OFF)
    journal = Journal(tmp_path / "journal")

    def refuse(self, call, host):
        raise vim.fault.InsufficientResourcesFault(msg="no host has room")

    with monkeypatch.context() as refused:
        refused.setattr(VirtualMachine, "PowerOnVM_Task", refuse)
        async with vcenter.connect() as session:
            vm = await find_vm(session, "web01")
            with pytest.raises(PowerNotRestored):
                await enable_uuid(session, vm, journal, allow_power_off=True, restore_within_s=0.1)
    async with vcenter.connect() as session:
        (swept,) = await sweep(session, journal)
    assert swept.outcome is Outcome.POWERED_ON
