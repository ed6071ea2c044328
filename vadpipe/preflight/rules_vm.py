"""Rules about the VM as a whole: its state, its snapshots, its datastores, and change tracking."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.units import GiB, format_size
from vadpipe.rules import Outcome, RuleTable, Severity, Unknown, Violation
from vadpipe.words import counted

from .facts import Case, DatastoreFacts

# VMware KB 1025279: a chain may have 32 snapshots; two or three are its advice.
CHAIN_LIMIT = 32
# Above this many, VMs were seen to lose changed areas silently.
CHAIN_TRUSTED = 28
_RELOCATION = "RelocateVM_Task"
_CREATION = {"CreateSnapshot_Task", "CreateSnapshotEx_Task"}
_API = "vSphere API reference"
_SILENT = "vSphere API reference, CreateSnapshotEx_Task: the quiesce specification is ignored then"
_FIELD = "field reports of backup products"
_KB_CHAIN = "VMware KB 1025279; field reports"
# A snapshot's redo logs grow with what the guest writes; below this there is no room to begin with.
_ROOM_TO_BEGIN = 1 * GiB
_SHARE_ADVISED = 0.1  # of the disks' capacity: the guest's writes of a long backup
_TRACKING_SINCE = 7  # hardware version
_TRACKING = "VMware KB 1020128; vSphere API reference, changeTrackingEnabled"
_ROOM = "vSphere API reference, NoDiskSpace; the share is our own"

RULES: RuleTable[Case, Violation] = RuleTable()


@RULES.rule(
    "vm-unreadable", Severity.ERROR, wanted="the server can read the VM's configuration",
    remedy="See whether its host is connected and its datastore accessible.",
    source=f"{_API}, VirtualMachine.config",
)  # fmt: skip
def _unreadable(case: Case) -> Iterator[Outcome]:
    if not case.vm.readable:
        yield Violation("the server does not have its configuration")


@RULES.rule(
    "vm-template", Severity.ERROR, wanted="a VM, not a template",
    remedy="Convert it to a VM, or leave it out of the jobs.", source=f"{_API}, CreateSnapshotEx_Task",
)  # fmt: skip
def _template(case: Case) -> Iterator[Outcome]:
    if case.vm.template:
        yield Violation("it is a template")


@RULES.rule(
    "vm-agent", Severity.ERROR, wanted="a VM that vSphere does not manage itself",
    remedy="Leave it out of the jobs: vSphere deploys it again by itself.", source=f"{_API}, ManagedByInfo",
)  # fmt: skip
def _agent(case: Case) -> Iterator[Outcome]:
    if case.vm.agent:
        yield Violation("it is an agent of vSphere, as the VMs of vCLS are")


@RULES.rule(
    "vm-disconnected", Severity.ERROR, wanted="the VM is connected",
    remedy="Reconnect its host to the vCenter, or remove the VM from the inventory and register it again.",
    source=f"{_API}, VirtualMachine.runtime.connectionState",
)  # fmt: skip
def _disconnected(case: Case) -> Iterator[Outcome]:
    if case.vm.connection != "connected":
        yield Violation(f"its connection state is {case.vm.connection}")


@RULES.rule(
    "vm-powered-off", Severity.WARNING, wanted="the VM runs when its guest is to be quiesced",
    remedy="Power it on, or ask for Quiesce.none(): the disks of a VM that is off are at rest.", source=_SILENT,
    tags={"quiescing"},
)  # fmt: skip
def _powered_off(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.power == "poweredOff":
        yield Violation(f"it is powered off, and the job requests {case.job.quiescing} quiescing")


@RULES.rule(
    "vm-suspended", Severity.ERROR, wanted="the VM runs when its guest is to be quiesced",
    remedy="Resume it, or ask for Quiesce.none().", source=_SILENT, tags={"quiescing"},
)  # fmt: skip
def _suspended(case: Case) -> Iterator[Outcome]:
    if case.quiesces and case.vm.power == "suspended":
        yield Violation(f"it is suspended, and the job requests {case.job.quiescing} quiescing")


@RULES.rule(
    "vm-waits-for-answer", Severity.ERROR, wanted="no question of the VM is open",
    remedy="Answer it in the vSphere Client: the VM's tasks wait until then.",
    source=f"{_API}, VirtualMachine.runtime.question",
)  # fmt: skip
def _question(case: Case) -> Iterator[Outcome]:
    if case.vm.question:
        yield Violation(f"it waits for an answer: {case.vm.question}")


@RULES.rule(
    "vm-task-running", Severity.WARNING, wanted="no other task works on the VM",
    remedy="Wait for its end, or move one of the two to another hour.", source=f"{_API}, TaskInProgress",
)  # fmt: skip
def _task_running(case: Case) -> Iterator[Outcome]:
    for task in case.vm.tasks:
        yield Violation(f"{task} runs on it")


@RULES.rule(
    "snapshot-method-disabled", Severity.ERROR, wanted="snapshots of the VM may be created now",
    remedy="Find out which program disabled it, and let it finish.",
    source=f"{_API}, ManagedEntity.disabledMethod",
)  # fmt: skip
def _creation_disabled(case: Case) -> Iterator[Outcome]:
    for method in sorted(_CREATION & case.vm.methods_disabled):
        yield Violation(f"{method} is disabled for it")


@RULES.rule(
    "vm-relocation-disabled", Severity.WARNING, wanted="no relocation lock of another run is on the VM",
    remedy="If no backup reads it now, a killed one left the lock: let the product that set it end it (EndAccess).",
    source="VDDK programming guide, PrepareForAccess and EndAccess",
)  # fmt: skip
def _relocation_disabled(case: Case) -> Iterator[Outcome]:
    # A single host never offers relocation; and while a VM is in a task, much is disabled for a moment.
    if case.server.is_vcenter and not case.vm.tasks and _RELOCATION in case.vm.methods_disabled:
        yield Violation(f"{_RELOCATION} is disabled for it, as backup programs do while they read")


@RULES.rule(
    "snapshots-unsupported", Severity.ERROR, wanted="the server offers snapshots for the VM",
    remedy="Back it up from inside the guest.",
    source=f"{_API}, VirtualMachineCapability.snapshotOperationsSupported",
)  # fmt: skip
def _not_supported(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_supported is False:
        yield Violation("the server offers no snapshots for it")
    elif case.vm.snapshots_supported is None:
        yield Unknown("the VM's capabilities cannot be read")


@RULES.rule(
    "snapshots-disabled", Severity.ERROR, wanted="snapshots are not disabled for the VM",
    remedy="Remove snapshot.maxSnapshots=0 or the flag from its configuration.",
    source=f"{_API}, SnapshotDisabled; VirtualMachineFlagInfo.snapshotDisabled",
)  # fmt: skip
def _disabled(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_disabled:
        yield Violation("its flag snapshotDisabled is set")
    if case.vm.max_snapshots == 0:
        yield Violation("snapshot.maxSnapshots is 0")


@RULES.rule(
    "snapshots-locked", Severity.ERROR, wanted="the VM's snapshots are not locked",
    remedy="Find out what holds the VM's snapshots, and release it.",
    source=f"{_API}, SnapshotLocked; VirtualMachineFlagInfo.snapshotLocked",
)  # fmt: skip
def _locked(case: Case) -> Iterator[Outcome]:
    if case.vm.snapshots_locked:
        yield Violation("its flag snapshotLocked is set")


@RULES.rule(
    "snapshot-limit-reached", Severity.ERROR, wanted="the VM may have one more snapshot",
    remedy="Remove an old snapshot, or raise snapshot.maxSnapshots.", source=f"{_API}, TooManySnapshotLevels",
)  # fmt: skip
def _limit_reached(case: Case) -> Iterator[Outcome]:
    limit = case.vm.max_snapshots
    if limit and case.vm.snapshots >= limit:
        yield Violation(
            f"it has {counted(case.vm.snapshots, 'snapshot')}, and snapshot.maxSnapshots is {limit}"
        )


@RULES.rule(
    "snapshots-foreign", Severity.WARNING, wanted="the VM has no snapshots of anybody else",
    remedy="Ask their owner; they slow the VM down and fill the datastore. vadpipe never touches them.",
    source=_FIELD,
)  # fmt: skip
def _foreign_snapshots(case: Case) -> Iterator[Outcome]:
    if nodes := case.vm.foreign_snapshots:
        yield Violation(f"it has {len(nodes)} that are not ours: {', '.join(node.name for node in nodes)}")


@RULES.rule(
    "snapshots-left", Severity.ERROR, wanted="no earlier run left a snapshot of ours",
    remedy="Run 'vadpipe cleanup' on the machine that made it, or remove it in the vSphere Client.", source=_FIELD,
)  # fmt: skip
def _own_snapshots(case: Case) -> Iterator[Outcome]:
    for node in case.vm.own_snapshots:
        yield Violation(f"it has {node.title}")


@RULES.rule(
    "chain-too-long", Severity.ERROR, wanted=f"a disk is on fewer than {CHAIN_LIMIT} redo logs",
    remedy="Remove old snapshots and consolidate the disks.", source=_KB_CHAIN,
)  # fmt: skip
def _chain_too_long(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if disk.files > CHAIN_LIMIT:
            yield Violation(f"it is on its {disk.files - 1}th redo log", disk.label)


@RULES.rule(
    "chain-long", Severity.WARNING, wanted=f"a disk is on fewer than {CHAIN_TRUSTED} redo logs",
    remedy="Remove old snapshots: so long a chain has lost changed areas silently.", source=_KB_CHAIN,
)  # fmt: skip
def _chain_long(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks:
        if CHAIN_TRUSTED < disk.files <= CHAIN_LIMIT:
            yield Violation(f"it is on its {disk.files - 1}th redo log", disk.label)


@RULES.rule(
    "consolidation-needed", Severity.WARNING, wanted="the disks need no consolidation",
    remedy="Consolidate them (vSphere Client: Snapshots > Consolidate) while there is room on the datastore.",
    source=f"{_API}, VirtualMachine.runtime.consolidationNeeded",
)  # fmt: skip
def _consolidation_needed(case: Case) -> Iterator[Outcome]:
    if case.vm.consolidation_needed:
        yield Violation("redo logs are left that no snapshot refers to")


@RULES.rule(
    "datastore-inaccessible", Severity.ERROR, wanted="the datastores of the VM are accessible",
    remedy="Make the datastore accessible to the host again.", source=f"{_API}, DatastoreSummary.accessible",
)  # fmt: skip
def _inaccessible(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if not datastore.accessible:
            yield Violation("it is not accessible", datastore.name)


@RULES.rule(
    "datastore-in-maintenance", Severity.WARNING, wanted="no datastore of the VM is in maintenance",
    remedy="Wait until it has left maintenance mode: its VMs are being moved away.",
    source=f"{_API}, DatastoreSummary.maintenanceMode",
)  # fmt: skip
def _in_maintenance(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if datastore.maintenance != "normal":
            yield Violation(f"its maintenance mode is {datastore.maintenance}", datastore.name)


@RULES.rule(
    "datastore-full", Severity.ERROR, wanted=f"{format_size(_ROOM_TO_BEGIN)} free for redo logs on each datastore",
    remedy="Free space on it: a full datastore stops every VM that writes to it.", source=_ROOM,
)  # fmt: skip
def _full(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if datastore.free is None:
            yield Unknown(f"the free space of {datastore.name} cannot be read")
        elif datastore.accessible and datastore.free < _ROOM_TO_BEGIN:
            yield Violation(f"{format_size(datastore.free)} are free", datastore.name)


@RULES.rule(
    "datastore-low", Severity.WARNING, wanted="a tenth of the VM's disks free for redo logs on each datastore",
    remedy="Free space on it, or back the VM up when it writes little.", source=_ROOM,
)  # fmt: skip
def _low(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        advised = int(_capacity_on(case, datastore) * _SHARE_ADVISED)
        if datastore.free is not None and _ROOM_TO_BEGIN <= datastore.free < advised:
            yield Violation(
                f"{format_size(datastore.free)} are free, and a tenth of the VM's disks on it is "
                f"{format_size(advised)}",
                datastore.name,
            )


def _capacity_on(case: Case, datastore: DatastoreFacts) -> int:
    return sum(disk.capacity for disk in case.vm.disks if disk.datastore == datastore.name)


@RULES.rule(
    "change-tracking-unsupported", Severity.WARNING, wanted="the server offers change tracking for the VM",
    remedy="Upgrade the virtual hardware to version 7 or later; until then every run reads all allocated blocks.",
    source=_TRACKING,
)  # fmt: skip
def _tracking_unsupported(case: Case) -> Iterator[Outcome]:
    version, supported = case.vm.hardware_version, case.vm.change_tracking_supported
    if supported is False or (supported is None and version is not None and version < _TRACKING_SINCE):
        yield Violation(f"the server offers none for its hardware version {version}")


@RULES.rule(
    "change-tracking-off", Severity.WARNING, wanted="change tracking is on",
    remedy="Run vadpipe prepare CONFIG.py --enable-change-tracking, or set enable_change_tracking=True; until then "
    "every run reads all allocated blocks.", source=_TRACKING,
)  # fmt: skip
def _tracking_off(case: Case) -> Iterator[Outcome]:
    if case.vm.change_tracking is None:
        yield Unknown("whether the VM's changes are tracked cannot be read")
    elif not case.vm.change_tracking and not case.job.enable_change_tracking:
        yield Violation("it is off, and the job does not enable it")


@RULES.rule(
    "change-tracking-blocked", Severity.WARNING, wanted="no snapshot is in the way of enabling change tracking",
    remedy="Remove the VM's snapshots; until then every run reads all allocated blocks.", source=_TRACKING,
)  # fmt: skip
def _tracking_blocked(case: Case) -> Iterator[Outcome]:
    wanted = case.job.enable_change_tracking and case.vm.change_tracking is False
    if wanted and case.vm.snapshots:
        yield Violation(f"it is off, and the VM has {counted(case.vm.snapshots, 'snapshot')}")


@RULES.rule(
    "disk-untracked", Severity.WARNING, wanted="change tracking is on for every disk",
    remedy="It takes effect at the next snapshot or power cycle; if it stays off, see the disk's ctkEnabled.",
    source=_TRACKING,
)  # fmt: skip
def _untracked_disk(case: Case) -> Iterator[Outcome]:
    for disk in case.disks if case.vm.change_tracking else ():
        if not disk.tracked and not disk.left_out:
            yield Violation("the VM's changes are tracked, but not this disk's", disk.label)
