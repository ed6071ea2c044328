"""Cause, remedy and retry of every failure that has a code.

One table for three kinds of code: faults of the vSphere API by the name of their type, VSS errors by the HRESULT in
the VM's events, and the status of VMware Tools before it ("tools 2"). `faults` has the error classes of the faults.
`snapshot.fallback` decides by policy whether to retry.

Sources: vSphere API reference (faults); vsserror.h of the Windows SDK and Microsoft's pages on writer errors
(HRESULTs); vmbackup's status codes in open-vm-tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_HRESULT = re.compile(r"0x8004[0-9A-Fa-f]{4}")
_TOOLS_STATUS = re.compile(r"error code was: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Advice:
    """What a code means. `retry_after_s`: seconds until another attempt can succeed; None when none can."""

    code: str
    name: str
    cause: str
    remedy: str
    retry_after_s: float | None = None


def advice_for(code: str | None) -> Advice | None:
    """The entry for a fault's type name, a VSS HRESULT or a Tools status; None when there is none."""
    return CATALOGUE.get((code or "").lower())


def vss_code(text: str) -> str | None:
    """The VSS HRESULT in the text of an event or a fault, in lower case; None when there is none."""
    found = _HRESULT.search(text)
    return found[0].lower() if found else None


def tools_status(text: str) -> str | None:
    """The status of VMware Tools in the text of an event, e.g. 'tools 2'; None when there is none."""
    found = _TOOLS_STATUS.search(text)
    return f"tools {found[1]}" if found else None


_SOON, _MINUTES, _BUSY = 30.0, 180.0, 600.0  # 10 minutes: Microsoft's own advice for flush-and-hold time-outs
_LATER = "Wait for it to end and run again."
_WRITERS = "Look into the guest's Application event log and 'vssadmin list writers'"
_LOAD = "Run it when the guest is less busy, or spread its disks over faster storage."
_PROVIDER = "Repair VMware Tools in the guest with the VSS component, and look at 'vssadmin list providers'."
_STORAGE = (
    "Give the volume more space for shadow copies ('vssadmin resize shadowstorage'), or delete old ones."
)
_LESS = "ask for Quiesce.file_system() or Quiesce.none()"

_FAULTS = (
    # Logins and objects
    ("InvalidLogin", "the user name or the password is wrong",
     "Check both; a vCenter wants user@domain. Repeated failures may lock the account.", None),
    ("NotAuthenticated", "the session has ended", "", None),
    ("NoPermission", "the account lacks a privilege",
     "Give the account that privilege on the object named, or on a folder above it with propagation.", None),
    ("ManagedObjectNotFound", "the object does not exist, or no longer exists", "", None),
    ("NotSupported", "the server does not support it here", "", None),
    ("NotImplemented", "the server does not implement it", "", None),
    ("MethodNotFound", "this version of the server does not have the call", "", None),
    ("RestrictedVersion", "the licence of the host does not allow it",
     "The free licence of ESXi does not allow snapshots by API: install a paid licence.", None),
    ("InvalidName", "the name is not allowed", "", None),
    ("VmConfigFault", "the VM's configuration does not allow it", "Look at the VM's recent events.", None),
    ("RequestCanceled", "the call was cancelled", "", None),
    ("SystemError", "the server or the host had an internal error", "Look at the VM's recent events.", _SOON),
    ("HostCommunication", "vCenter cannot reach the VM's host", "Look at the host's connection.", _SOON),
    # Quiescing
    ("ApplicationQuiesceFault", "the guest could not be quiesced",
     f"{_WRITERS}, and at its pre-freeze scripts, then run again; or {_LESS}.", _SOON),
    ("FilesystemQuiesceFault", "quiescing took longer than the guest can hold its writes", _LOAD, _MINUTES),
    ("ToolsUnavailable", "VMware Tools do not answer",
     "Start VMware Tools in the guest, or ask for Quiesce.none().", None),
    # Inside the guest
    ("InvalidGuestLogin", "the guest does not accept the user name or the password",
     "Check the account of the guest: it belongs to the guest itself or to its domain, not to vSphere.", None),
    ("GuestPermissionDenied", "the account may not do that in the guest",
     "Give it the right in the guest: files of VMware Tools need an administrator's.", None),
    ("GuestOperationsUnavailable", "VMware Tools in the guest accept no operations now",
     "Check that VMware Tools run in the guest, and are not too busy.", _SOON),
    ("GuestComponentsOutOfDate", "VMware Tools in the guest are too old", "Update VMware Tools.", None),
    ("OperationDisabledByGuest", "the guest's configuration forbids it",
     "Check the group [guestoperations] of tools.conf in the guest.", None),
    ("OperationNotSupportedByGuest", "VMware Tools in the guest do not support it", "Update VMware Tools.", None),
    ("TooManyGuestLogons", "too many logons are open in the guest", _LATER, _SOON),
    ("GuestOperationsFault", "the guest could not perform it", "Look at the VM's recent events.", None),
    # Busy
    ("TaskInProgress", "another operation is running on it", _LATER, _SOON),
    ("ConcurrentAccess", "another client changed it at the same moment", "Run again.", _SOON),
    ("ResourceInUse", "it is in use", _LATER, _SOON),
    ("QuiesceDatastoreIOForHAFailed", "a datastore could not be quiesced for unmounting",
     "This is not about quiescing a guest: check vSphere HA and its datastores.", None),
    ("FileLocked", "one of its files is locked", _LATER, _SOON),
    ("InvalidPowerState", "its power state does not allow it",
     "Check whether the VM runs. A VM that is powered off needs no quiescing.", None),
    ("InvalidState", "its state does not allow it", "Check the VM's state and its running tasks.", None),
    # Snapshots
    # The base type of both quiescing faults. `faults` treats it as one of them when its text mentions quiescing.
    ("SnapshotFault", "the snapshot failed", "Look at the VM's recent events.", _MINUTES),
    ("SnapshotLocked", "its snapshots are locked", "Find out what holds the VM's snapshots.", None),
    ("SnapshotDisabled", "snapshots are disabled for it",
     "Remove snapshot.maxSnapshots=0 from its configuration.", None),
    ("MultipleSnapshotsNotSupported", "it can hold only one snapshot",
     "Remove the snapshot that it has.", None),
    ("TooManySnapshotLevels", "its chain of snapshots is too long", "Remove old snapshots of the VM.", None),
    ("SnapshotIncompatibleDeviceInVm", "one of its devices prevents snapshots",
     "Look for raw disks, bus sharing and passed-through devices.", None),
    ("MemorySnapshotOnIndependentDisk", "it has independent disks, so its memory cannot be kept", "", None),
    ("SnapshotNoChange", "nothing changed since its last snapshot", "", None),
    # Datastores
    ("NoDiskSpace", "the datastore is full",
     "Free space on it: a snapshot grows with what the guest writes.", None),
    ("CannotAccessFile", "one of its files cannot be read", "Check that the datastore is accessible.", None),
    ("FileNotFound", "one of its files is missing", "Check that the VM's disks are complete.", None),
    ("FileFault", "one of its files cannot be used", "Look at the datastore and the VM's events.", None),
)  # fmt: skip

_VSS = (
    (0x01, "BAD_STATE", "another VSS operation runs, or a provider is confused", f"{_WRITERS}.", _MINUTES),
    (0x02, "UNEXPECTED", "VSS met an unexpected error", "Look into the guest's Application event log.", None),
    (0x03, "PROVIDER_ALREADY_REGISTERED", "the snapshot provider is registered twice", _PROVIDER, None),
    (0x04, "PROVIDER_NOT_REGISTERED", "the snapshot provider of VMware Tools is missing", _PROVIDER, None),
    (0x06, "PROVIDER_VETO", "the snapshot provider refused",
     "Look at 'vssadmin list providers' and the System event log.", _SOON),
    (0x08, "OBJECT_NOT_FOUND", "something VSS needs, such as a volume, vanished",
     "Look for volumes that were removed or went off-line.", _SOON),
    (0x0C, "VOLUME_NOT_SUPPORTED", "VSS does not support one of the volumes", f"Remove it, or {_LESS}.", None),
    (0x0E, "VOLUME_NOT_SUPPORTED_BY_PROVIDER", "the provider does not support one of the volumes",
     f"Remove it, or {_LESS}.", None),
    (0x0F, "UNEXPECTED_PROVIDER_ERROR", "the snapshot provider met an unexpected error", _PROVIDER, _SOON),
    (0x12, "MAXIMUM_NUMBER_OF_VOLUMES_REACHED", "the VM has more volumes than VSS takes into one set",
     f"Have fewer volumes, or {_LESS}.", None),
    (0x13, "FLUSH_WRITES_TIMEOUT", "the disks were too busy to be flushed in time", _LOAD, _BUSY),
    (0x14, "HOLD_WRITES_TIMEOUT", "writes could not be held as long as it took", _LOAD, _BUSY),
    (0x15, "UNEXPECTED_WRITER_ERROR", "a writer met an unexpected error", f"{_WRITERS}.", _SOON),
    (0x16, "SNAPSHOT_SET_IN_PROGRESS", "another backup is making shadow copies",
     "Schedule the backups of this guest so that they do not overlap.", _MINUTES),
    (0x17, "MAXIMUM_NUMBER_OF_SNAPSHOTS_REACHED", "a volume has as many shadow copies as it can",
     "Delete old shadow copies in the guest ('vssadmin delete shadows').", None),
    (0x18, "WRITER_INFRASTRUCTURE", "the infrastructure of the writers does not work",
     "Check the services Volume Shadow Copy and COM+ Event System in the guest.", _SOON),
    (0x19, "WRITER_NOT_RESPONDING", "a writer does not respond",
     f"{_WRITERS}; restart the service of that writer.", None),
    (0x1D, "VOLUME_IN_USE", "the storage for shadow copies of a volume is in use", _STORAGE, None),
    (0x1F, "INSUFFICIENT_STORAGE", "there is no space for shadow copies", _STORAGE, None),
    (0x28, "TRANSACTION_FREEZE_TIMEOUT", "transactions could not be frozen in time", _LOAD, _MINUTES),
    (0x29, "TRANSACTION_THAW_TIMEOUT", "transactions could not be thawed in time", _LOAD, _MINUTES),
    (0x36, "WRITERERROR_PARTIAL_FAILURE", "some components of a writer failed", f"{_WRITERS}.", None),
    (0x109, "WRITER_STATUS_NOT_AVAILABLE", "too many backups ask for the writers' state", _LOAD, _MINUTES),
    (0xF0, "WRITERERROR_INCONSISTENTSNAPSHOT", "a writer needs more volumes than the snapshot holds",
     "Check that none of its disks is independent or a raw device mapping.", None),
    (0xF1, "WRITERERROR_OUTOFRESOURCES", "a writer ran out of resources", _LOAD, _MINUTES),
    (0xF2, "WRITERERROR_TIMEOUT", "a writer took too long", _LOAD, _MINUTES),
    (0xF3, "WRITERERROR_RETRYABLE", "a writer failed, and may succeed when asked again",
     f"{_WRITERS}; if it stays so, restart the service of that writer.", _SOON),
    (0xF4, "WRITERERROR_NONRETRYABLE", "a writer failed for good",
     f"{_WRITERS}; restart the service of that writer or the guest.", None),
    (0xF5, "WRITERERROR_RECOVERY_FAILED", "a writer could not recover its files", f"{_WRITERS}.", None),
    (0xFC, "DYNAMIC_DISK_ERROR", "the guest has dynamic disks",
     "Application quiescing does not support them: ask for Quiesce.file_system().", None),
)  # fmt: skip

_TOOLS = (
    (1, "the guest is in a state that does not allow quiescing", _LATER, _MINUTES),
    (2, "a script in the guest failed",
     "Look at C:\\Windows\\pre-freeze-script.bat and backupScripts.d in the guest.", None),
    (3, "the guest's file systems could not be frozen", _LOAD, _MINUTES),
    (4, "the host gave up on the guest", _LATER, _SOON),
    (5, "the guest met an unexpected error", f"{_WRITERS}.", _SOON),
)  # fmt: skip


def _hresult(low: int) -> str:
    return f"0x{0x80042300 + low:08x}"


CATALOGUE: Mapping[str, Advice] = {
    **{name.lower(): Advice(name, name, cause, remedy, after) for name, cause, remedy, after in _FAULTS},
    **{
        _hresult(low): Advice(_hresult(low), f"VSS_E_{name}", cause, remedy, after)
        for low, name, cause, remedy, after in _VSS
    },
    **{
        f"tools {number}": Advice(f"tools {number}", "status of VMware Tools", cause, remedy, after)
        for number, cause, remedy, after in _TOOLS
    },
}
