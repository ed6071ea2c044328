"""Rules about the VM as a whole: its state, and whether it can have a snapshot now."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Case
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)

# VMware KB 1025279: a chain may have 32 snapshots; two or three are its advice.
CHAIN_LIMIT = 32
# Above this many, VMs were seen to lose changed areas silently.
CHAIN_TRUSTED = 28

_RELOCATION = "RelocateVM_Task"
_CREATION = {"CreateSnapshot_Task", "CreateSnapshotEx_Task"}


def _unreadable(case: Case) -> Iterator[Outcome]:
    if not case.vm.readable:
        yield Breach("the server does not have its configuration")


def _template(case: Case) -> Iterator[Outcome]:
    if case.vm.template:
        yield Breach("it is a template")


def _disconnected(case: Case) -> Iterator[Outcome]:
    if case.vm.connection != "connected":
        yield Breach(f"its connection state is {case.vm.connection}")


def _powered_off(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.power == "poweredOff":
        yield Breach(f"it is powered off, and {case.job.quiescing} quiescing is asked for")


def _suspended(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.power == "suspended":
        yield Breach(f"it is suspended, and {case.job.quiescing} quiescing is asked for")


def _question(case: Case) -> Iterator[Outcome]:
    if case.vm.question:
        yield Breach(f"it waits for an answer: {case.vm.question}")


def _task_running(case: Case) -> Iterator[Outcome]:
    for task in case.vm.tasks:
        yield Breach(f"{task} runs on it")


def _creation_disabled(case: Case) -> Iterator[Outcome]:
    for method in sorted(_CREATION & case.vm.methods_disabled):
        yield Breach(f"{method} is disabled for it")


def _relocation_disabled(case: Case) -> Iterator[Outcome]:
    # A single host never offers relocation; and while a VM is in a task, much is disabled for a moment.
    if case.server.is_vcenter and not case.vm.tasks and _RELOCATION in case.vm.methods_disabled:
        yield Breach(f"{_RELOCATION} is disabled for it, as backup programs do while they read")


def _not_supported(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_supported is False:
        yield Breach("the server offers no snapshots for it")
    elif case.vm.snapshots_supported is None:
        yield Unknown("the VM's capabilities cannot be read")


def _disabled(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_disabled:
        yield Breach("its flag snapshotDisabled is set")
    if case.vm.max_snapshots == 0:
        yield Breach("snapshot.maxSnapshots is 0")


def _locked(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_locked:
        yield Breach("its flag snapshotLocked is set")


def _limit_reached(case: Case) -> Iterator[Outcome]:
    limit = case.vm.max_snapshots
    if limit and case.vm.snapshots >= limit:
        yield Breach(f"it has {case.vm.snapshots} snapshots, and snapshot.maxSnapshots is {limit}")


def _foreign_snapshots(case: Case) -> Iterator[Outcome]:
    names = case.vm.foreign_snapshots
    if names:
        yield Breach(f"it has {len(names)} that are not ours: {', '.join(names)}")


def _own_snapshots(case: Case) -> Iterator[Outcome]:
    if case.vm.own_snapshots:
        yield Breach(f"it has {case.vm.own_snapshots} of ours")


def _chain_too_long(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.files > CHAIN_LIMIT:
            yield Breach(f"it is on its {disk.files - 1}th redo log", disk.label)


def _chain_long(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if CHAIN_TRUSTED < disk.files <= CHAIN_LIMIT:
            yield Breach(f"it is on its {disk.files - 1}th redo log", disk.label)


def _consolidation_needed(case: Case) -> Iterator[Outcome]:
    if case.vm.consolidation_needed:
        yield Breach("redo logs are left that no snapshot refers to")


_API = "vSphere API reference"
_SILENT = "vSphere API reference, CreateSnapshotEx_Task: the quiesce specification is ignored then"
_FIELD = "field reports of backup products"
_KB_CHAIN = "VMware KB 1025279; field reports"

RULES: tuple[Rule, ...] = (
    Rule(
        "vm-unreadable", Severity.ERROR, "the server can read the VM's configuration",
        "See whether its host is connected and its datastore accessible.",
        f"{_API}, VirtualMachine.config", _unreadable,
    ),
    Rule(
        "vm-template", Severity.ERROR, "a VM, not a template",
        "Convert it to a VM, or leave it out of the jobs.", f"{_API}, CreateSnapshotEx_Task", _template,
    ),
    Rule(
        "vm-disconnected", Severity.ERROR, "the VM is connected",
        "Bring its host back into the vCenter, or remove the VM from the inventory and register it again.",
        f"{_API}, VirtualMachine.runtime.connectionState", _disconnected,
    ),
    Rule(
        "vm-powered-off", Severity.WARNING, "the VM runs when its guest is to be quiesced",
        "Power it on, or ask for Quiesce.none(): the disks of a VM that is off are at rest.",
        _SILENT, _powered_off, about_quiescing=True,
    ),
    Rule(
        "vm-suspended", Severity.ERROR, "the VM runs when its guest is to be quiesced",
        "Resume it, or ask for Quiesce.none().", _SILENT, _suspended, about_quiescing=True,
    ),
    Rule(
        "vm-waits-for-answer", Severity.ERROR, "no question of the VM is open",
        "Answer it in the vSphere Client: the VM's tasks wait until then.",
        f"{_API}, VirtualMachine.runtime.question", _question,
    ),
    Rule(
        "vm-task-running", Severity.WARNING, "no other task works on the VM",
        "Wait for its end, or move one of the two to another hour.",
        f"{_API}, TaskInProgress", _task_running,
    ),
    Rule(
        "snapshot-method-disabled", Severity.ERROR, "snapshots of the VM may be created now",
        "Find out which program disabled it, and let it finish.",
        f"{_API}, ManagedEntity.disabledMethod", _creation_disabled,
    ),
    Rule(
        "vm-relocation-disabled", Severity.WARNING, "no relocation lock of another run is on the VM",
        "If no backup reads it now, a killed one left the lock: let the product that set it end it (EndAccess).",
        "VDDK programming guide, PrepareForAccess and EndAccess", _relocation_disabled,
    ),
    Rule(
        "snapshots-unsupported", Severity.ERROR, "the server offers snapshots for the VM",
        "Back it up from inside the guest.", f"{_API}, VirtualMachineCapability.snapshotOperationsSupported",
        _not_supported,
    ),
    Rule(
        "snapshots-disabled", Severity.ERROR, "snapshots are not disabled for the VM",
        "Remove snapshot.maxSnapshots=0 or the flag from its configuration.",
        f"{_API}, SnapshotDisabled; VirtualMachineFlagInfo.snapshotDisabled", _disabled,
    ),
    Rule(
        "snapshots-locked", Severity.ERROR, "the VM's snapshots are not locked",
        "Find out what holds the VM's snapshots, and release it.",
        f"{_API}, SnapshotLocked; VirtualMachineFlagInfo.snapshotLocked", _locked,
    ),
    Rule(
        "snapshot-limit-reached", Severity.ERROR, "the VM may have one more snapshot",
        "Remove an old snapshot, or raise snapshot.maxSnapshots.", f"{_API}, TooManySnapshotLevels",
        _limit_reached,
    ),
    Rule(
        "snapshots-foreign", Severity.WARNING, "the VM has no snapshots of anybody else",
        "Ask their owner; they slow the VM down and fill the datastore. vadpipe never touches them.",
        _FIELD, _foreign_snapshots,
    ),
    Rule(
        "snapshots-left", Severity.ERROR, "no earlier run left a snapshot of ours",
        "Run 'vadpipe cleanup' on the machine that made it, or remove it in the vSphere Client.", _FIELD,
        _own_snapshots,
    ),
    Rule(
        "chain-too-long", Severity.ERROR, f"a disk is on fewer than {CHAIN_LIMIT} redo logs",
        "Remove old snapshots and consolidate the disks.", _KB_CHAIN, _chain_too_long,
    ),
    Rule(
        "chain-long", Severity.WARNING, f"a disk is on fewer than {CHAIN_TRUSTED} redo logs",
        "Remove old snapshots: so long a chain has lost changed areas silently.", _KB_CHAIN, _chain_long,
    ),
    Rule(
        "consolidation-needed", Severity.WARNING, "the disks need no consolidation",
        "Consolidate them (vSphere Client: Snapshots > Consolidate) while there is room on the datastore.",
        f"{_API}, VirtualMachine.runtime.consolidationNeeded", _consolidation_needed,
    ),
)  # fmt: skip
