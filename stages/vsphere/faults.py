"""Foreign errors of a vSphere call -> ours. The only place that knows pyVmomi's faults and the transport's errors.

pyVmomi's faults are broken exceptions: `add_note()`, setting `__context__` or `__cause__`, and pickling them raise
AttributeError, and one inside an exit stack or a nursery turns into that AttributeError. So `translate` copies what
a fault says into an error of ours, and the session raises that one outside the `except` block: the fault itself
never leaves the worker thread and is in no chain of causes. Errors of sockets are sound and stay as the cause.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from xml.parsers.expat import ExpatError

from pyVmomi import vmodl

from pipeline.errors import MoverError, QuiesceFailed, SnapshotError, SourceError


class VsphereError(SourceError):
    """A call of the vSphere API failed. Facts: `server`, `call`, and `fault`, its type when the server sent one."""


class ConnectionLost(VsphereError):
    """The server could not be reached or closed the connection: whether the call took effect is not known."""

    transient = True


class Busy(VsphereError):
    """Something else holds the object now."""

    transient = True


class SessionExpired(VsphereError):
    """The server no longer knows our login; it did not run the call."""


class LoginRefused(VsphereError):
    """User name and password are not accepted."""


class CertificateRefused(VsphereError):
    """The server is not the one that was pinned, or nobody vouches for it. Nothing secret was sent."""


class ObjectGone(VsphereError):
    """The object that was called, or one that it needs, does not exist (any more)."""


class NotOffered(VsphereError):
    """The server does not have this call, or not in this form."""


FOREIGN = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)


@dataclass(frozen=True)
class _Entry:
    error: type[MoverError]
    meaning: str
    remedy: str


_QUIESCE_REMEDY = (
    "Look into the guest's Application event log and 'vssadmin list writers', then run again; "
    "or ask for Quiesce.file_system() or Quiesce.none()."
)
_LATER = "Wait for it to end and run again."

# By the name of a fault's type; the nearest in its ancestry counts. Meanings: vSphere API reference.
_CATALOGUE: dict[str, _Entry] = {
    "InvalidLogin": _Entry(
        LoginRefused,
        "the user name or the password is wrong",
        "Check both; a vCenter wants user@domain. Repeated failures may lock the account.",
    ),
    "NotAuthenticated": _Entry(SessionExpired, "the session has ended", ""),
    "NoPermission": _Entry(
        VsphereError,
        "the account lacks a privilege",
        "Give the account that privilege on the object named, or on a folder above it with propagation.",
    ),
    "ManagedObjectNotFound": _Entry(ObjectGone, "the object does not exist (any more)", ""),
    "NotSupported": _Entry(NotOffered, "the server does not support it here", ""),
    "NotImplemented": _Entry(NotOffered, "the server does not implement it", ""),
    "MethodNotFound": _Entry(NotOffered, "this version of the server does not have the call", ""),
    "ApplicationQuiesceFault": _Entry(QuiesceFailed, "the guest could not be quiesced", _QUIESCE_REMEDY),
    "FilesystemQuiesceFault": _Entry(
        QuiesceFailed,
        "the guest was quiesced longer than it can hold its writes",
        "Run again when the guest is less busy, or spread its disks over faster storage.",
    ),
    "ToolsUnavailable": _Entry(
        QuiesceFailed,
        "VMware Tools do not answer",
        "Start VMware Tools in the guest, or ask for Quiesce.none().",
    ),
    "TaskInProgress": _Entry(Busy, "another operation is running on it", _LATER),
    "ConcurrentAccess": _Entry(Busy, "it was changed by somebody else at the same moment", "Run again."),
    "ResourceInUse": _Entry(Busy, "it is in use", _LATER),
    "SnapshotLocked": _Entry(
        SnapshotError, "its snapshots are locked", "Find out what holds the VM's snapshots."
    ),
    "SnapshotDisabled": _Entry(
        SnapshotError,
        "snapshots are disabled for it",
        "Remove snapshot.maxSnapshots=0 from its configuration.",
    ),
    "MultipleSnapshotsNotSupported": _Entry(
        SnapshotError, "it can hold only one snapshot", "Remove the snapshot that it has."
    ),
    "TooManySnapshotLevels": _Entry(
        SnapshotError, "its chain of snapshots is too long", "Remove old snapshots of the VM."
    ),
    "SnapshotIncompatibleDeviceInVm": _Entry(
        SnapshotError,
        "one of its devices prevents snapshots",
        "Look for raw disks, bus sharing and passed-through devices.",
    ),
    "SnapshotFault": _Entry(SnapshotError, "the snapshot failed", ""),
    "NoDiskSpace": _Entry(
        SourceError,
        "the datastore is full",
        "Free space on it: a snapshot needs room for what the guest writes.",
    ),
    "FileLocked": _Entry(Busy, "one of its files is locked", _LATER),
    "InvalidPowerState": _Entry(VsphereError, "its power state does not allow it", ""),
    "InvalidState": _Entry(VsphereError, "its state does not allow it", ""),
    "RequestCanceled": _Entry(VsphereError, "the call was cancelled", ""),
}


def translate(foreign: BaseException, call: str, server: str) -> MoverError:
    """The error of ours for one of FOREIGN that `call` to `server` raised or that a task ended with."""
    if isinstance(foreign, vmodl.MethodFault):
        return _from_fault(foreign, call, server)
    if isinstance(foreign, ExpatError):
        return VsphereError(
            f"{server} answered {call} with something that is not vSphere's.",
            remedy="Check the name and port of the server.",
            server=server,
            call=call,
        )
    return _from_transport(foreign, call, server)


def fault_text(fault: vmodl.MethodFault) -> str:
    """What the fault says for people, in one line; may be empty."""
    localized = getattr(fault, "msg", None) or ""
    details = [message.message or "" for message in fault.faultMessage or []]
    lines = [line.strip() for text in [localized, *details] for line in str(text).splitlines()]
    return " ".join(dict.fromkeys(line for line in lines if line))


def _from_fault(fault: vmodl.MethodFault, call: str, server: str) -> MoverError:
    ancestry = [ancestor.__name__.rpartition(".")[2] for ancestor in type(fault).__mro__]
    entry = next((_CATALOGUE[name] for name in ancestry if name in _CATALOGUE), None)
    said = fault_text(fault)
    if (
        "quiesc" in said.lower()
        and call.startswith("CreateSnapshot")
        and (not entry or entry.error is SnapshotError)
    ):
        # Hosts also wrap a failed quiesce into a general fault ("Failed to quiesce the virtual machine.").
        entry = _CATALOGUE["ApplicationQuiesceFault"]
    error, meaning, remedy = (entry.error, entry.meaning, entry.remedy) if entry else (VsphereError, "", "")
    privilege = getattr(fault, "privilegeId", None)
    parts = [meaning, f"privilege {privilege}" if privilege else "", said.rstrip(".")]
    reason = "; ".join(part for part in parts if part) or ancestry[0]
    return error(
        f"{server}: {call} failed: {reason}.",
        remedy=remedy,
        server=server,
        call=call,
        fault=ancestry[0],
        message=said,
    )


def _from_transport(exc: BaseException, call: str, server: str) -> MoverError:
    facts = {"server": server, "call": call}
    if isinstance(exc, socket.gaierror):
        error = ConnectionLost(
            f"The name of the server {server} cannot be resolved: {exc.strerror}.",
            remedy="Check its spelling and the name resolution of this machine.",
            **facts,
        )
    elif isinstance(exc, ConnectionRefusedError | TimeoutError):
        error = ConnectionLost(
            f"{server} does not answer ({call}): {exc.strerror or 'timed out'}.",
            remedy="Check that the server runs and that its port (443 by default) is open from here.",
            **facts,
        )
    else:
        error = ConnectionLost(
            f"The connection to {server} was lost during {call}: {exc or type(exc).__name__}.",
            remedy="Check the server and the network, then run again.",
            **facts,
        )
    error.__cause__ = exc
    return error
