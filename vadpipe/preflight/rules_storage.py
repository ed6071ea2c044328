"""Rules about what lies below the disks: datastores, and change tracking."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.units import GiB, format_size

from .facts import Case, DatastoreFacts
from .rule import (
    Breach,
    Outcome,
    Rule,
    Severity,
    Unknown,
)

# A snapshot's redo logs grow with what the guest writes; below this there is no room to begin with.
_ROOM_TO_BEGIN = 1 * GiB
_SHARE_ADVISED = 0.1  # of the disks' capacity: the guest's writes of a long backup
_TRACKING_SINCE = 7  # hardware version


def _inaccessible(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if not datastore.accessible:
            yield Breach("it is not accessible", datastore.name)


def _in_maintenance(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if datastore.maintenance != "normal":
            yield Breach(f"its maintenance mode is {datastore.maintenance}", datastore.name)


def _full(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        if datastore.free is None:
            yield Unknown(f"the free space of {datastore.name} cannot be read")
        elif datastore.accessible and datastore.free < _ROOM_TO_BEGIN:
            yield Breach(f"{format_size(datastore.free)} are free", datastore.name)


def _low(case: Case) -> Iterator[Outcome]:
    for datastore in case.datastores:
        advised = int(_capacity_on(case, datastore) * _SHARE_ADVISED)
        if datastore.free is not None and _ROOM_TO_BEGIN <= datastore.free < advised:
            yield Breach(
                f"{format_size(datastore.free)} are free, and a tenth of the VM's disks on it is "
                f"{format_size(advised)}",
                datastore.name,
            )


def _capacity_on(case: Case, datastore: DatastoreFacts) -> int:
    return sum(disk.capacity for disk in case.vm.disks if disk.datastore == datastore.name)


def _tracking_unsupported(case: Case) -> Iterator[Outcome]:
    version, told = case.vm.hardware_version, case.vm.change_tracking_supported
    if told is False or (told is None and version is not None and version < _TRACKING_SINCE):
        yield Breach(f"the server offers none for its hardware version {version}")


def _tracking_off(case: Case) -> Iterator[Outcome]:
    if case.vm.change_tracking is None:
        yield Unknown("whether the VM's changes are tracked cannot be read")
    elif not case.vm.change_tracking and not case.job.enable_change_tracking:
        yield Breach("it is off, and the job does not enable it")


def _tracking_blocked(case: Case) -> Iterator[Outcome]:
    wanted = case.job.enable_change_tracking and case.vm.change_tracking is False
    if wanted and case.vm.snapshots:
        yield Breach(f"it is off, and the VM has {case.vm.snapshots} snapshots")


def _untracked_disk(case: Case) -> Iterator[Outcome]:
    for disk in case.vm.disks if case.vm.change_tracking else ():
        if not disk.tracked and not disk.left_out:
            yield Breach("the VM's changes are tracked, but not this disk's", disk.label)


_API = "vSphere API reference"
_TRACKING = "VMware KB 1020128; vSphere API reference, changeTrackingEnabled"
_ROOM = "vSphere API reference, NoDiskSpace; the share is our own"

RULES: tuple[Rule, ...] = (
    Rule(
        "datastore-inaccessible", Severity.ERROR, "the datastores of the VM are accessible",
        "Bring the datastore back.", f"{_API}, DatastoreSummary.accessible", _inaccessible,
    ),
    Rule(
        "datastore-in-maintenance", Severity.WARNING, "no datastore of the VM is in maintenance",
        "Wait until it has left maintenance mode: its VMs are being moved away.",
        f"{_API}, DatastoreSummary.maintenanceMode", _in_maintenance,
    ),
    Rule(
        "datastore-full", Severity.ERROR, f"{format_size(_ROOM_TO_BEGIN)} free for redo logs on each datastore",
        "Free space on it: a full datastore stops every VM that writes to it.", _ROOM, _full,
    ),
    Rule(
        "datastore-low", Severity.WARNING, "a tenth of the VM's disks free for redo logs on each datastore",
        "Free space on it, or back the VM up when it writes little.", _ROOM, _low,
    ),
    Rule(
        "change-tracking-unsupported", Severity.WARNING, "the server offers change tracking for the VM",
        "Upgrade the virtual hardware to version 7 or later; until then every run reads all allocated blocks.",
        _TRACKING, _tracking_unsupported,
    ),
    Rule(
        "change-tracking-off", Severity.WARNING, "change tracking is on",
        "Run vadpipe prepare CONFIG.py --enable-change-tracking, or set enable_change_tracking=True; until then "
        "every run reads all allocated blocks.", _TRACKING, _tracking_off,
    ),
    Rule(
        "change-tracking-blocked", Severity.WARNING, "no snapshot is in the way of enabling change tracking",
        "Remove the VM's snapshots; until then every run reads all allocated blocks.", _TRACKING, _tracking_blocked,
    ),
    Rule(
        "disk-untracked", Severity.WARNING, "change tracking is on for every disk",
        "It takes effect at the next snapshot or power cycle; if it stays off, see the disk's ctkEnabled.",
        _TRACKING, _untracked_disk,
    ),
)  # fmt: skip
