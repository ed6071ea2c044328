"""Foreign errors of a vSphere call -> ours. The only place that knows pyVmomi's faults and the transport's errors.

pyVmomi's faults are broken exceptions: `add_note()`, setting `__context__` or `__cause__`, and pickling them raise
AttributeError, and one inside an exit stack or a nursery turns into that AttributeError. So `translate` copies what
a fault says into an error of ours, and the session raises that one outside the `except` block: the fault itself
never leaves the worker thread and is in no chain of causes. Errors of sockets are sound and stay as the cause.
"""

from __future__ import annotations

import http.client
import socket
from xml.parsers.expat import ExpatError

from pyVmomi import vmodl

from pipeline.errors import (
    MoverError,
    QuiesceFailed,
    SnapshotError,
    SourceError,
)

from .advice import advice_for


class VsphereError(SourceError):
    """A call of the vSphere API failed. Facts: `server`, `call`, and `fault`, its type when the server sent one."""


class ConnectionLost(VsphereError):
    """The connection broke during the call: whether the call took effect is not known."""

    transient = True


class Unreachable(ConnectionLost):
    """The server could not be reached, or said that it is not ready: the call had no effect."""


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


class TaskForgotten(ObjectGone):
    """The server does not know a task of ours any more: it was restarted. What the task did is not known."""

    transient = True


class NotOffered(VsphereError):
    """The server does not have this call, or not in this form."""


class GuestRefused(VsphereError):
    """The guest cannot, or does not want to, do what was asked of it inside."""


class NotConnected(ConnectionError):
    """Its cause happened while a connection was being made, before the first byte of a request."""


FOREIGN = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)

# What the proxy in front of a vCenter answers while the services behind it start; nothing was run.
_NOT_READY = ("503", "502")


# The classes of faults by the name of their type; the nearest in a fault's ancestry counts. Texts: `catalogue`.
_CLASSES: dict[str, type[MoverError]] = {
    "InvalidLogin": LoginRefused,
    "NotAuthenticated": SessionExpired,
    "ManagedObjectNotFound": ObjectGone,
    "NotSupported": NotOffered,
    "NotImplemented": NotOffered,
    "MethodNotFound": NotOffered,
    "ApplicationQuiesceFault": QuiesceFailed,
    "FilesystemQuiesceFault": QuiesceFailed,
    "ToolsUnavailable": QuiesceFailed,
    "TaskInProgress": Busy,
    "ConcurrentAccess": Busy,
    "ResourceInUse": Busy,
    "FileLocked": Busy,
    "HostCommunication": Busy,
    "SnapshotFault": SnapshotError,
    "GuestOperationsFault": GuestRefused,
    "NoDiskSpace": SourceError,
    "CannotAccessFile": SourceError,
    "FileNotFound": SourceError,
    "FileFault": SourceError,
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
    error = next((_CLASSES[name] for name in ancestry if name in _CLASSES), VsphereError)
    advice = next((found for name in ancestry if (found := advice_for(name))), None)
    said = fault_text(fault)
    if (
        "quiesc" in said.lower()
        and call.startswith("CreateSnapshot")
        and error in (SnapshotError, VsphereError)
    ):
        # Hosts also wrap a failed quiesce into a general fault ("Failed to quiesce the virtual machine.").
        error, advice = QuiesceFailed, advice_for("ApplicationQuiesceFault")
    privilege = getattr(fault, "privilegeId", None)
    parts = [
        advice.cause if advice else "",
        f"privilege {privilege}" if privilege else "",
        said.rstrip("."),
    ]
    reason = "; ".join(part for part in parts if part) or ancestry[0]
    return error(
        f"{server}: {call} failed: {reason}.",
        remedy=advice.remedy if advice else "",
        server=server,
        call=call,
        fault=ancestry[0],
        message=said,
    )


def _from_transport(exc: BaseException, call: str, server: str) -> MoverError:
    facts = {"server": server, "call": call}
    kind = ConnectionLost
    if isinstance(exc, NotConnected) and exc.__cause__ is not None:
        exc, kind = exc.__cause__, Unreachable
    error: ConnectionLost
    if isinstance(exc, socket.gaierror):
        error = Unreachable(
            f"The name of the server {server} cannot be resolved: {exc.strerror}.",
            remedy="Check its spelling and the name resolution of this machine.",
            **facts,
        )
    elif isinstance(exc, http.client.HTTPException) and str(exc).startswith(_NOT_READY):
        error = Unreachable(
            f"{server} is not ready ({call}): it answered {exc}.",
            remedy="Wait until its services have started, then run again.",
            **facts,
        )
    elif isinstance(exc, ConnectionRefusedError | TimeoutError):
        error = kind(
            f"{server} does not answer ({call}): {exc.strerror or 'timed out'}.",
            remedy="Check that the server runs and that its port (443 by default) is open from here.",
            **facts,
        )
    else:
        error = kind(
            f"The connection to {server} was lost during {call}: {exc or type(exc).__name__}.",
            remedy="Check the server and the network, then run again.",
            **facts,
        )
    error.__cause__ = exc
    return error
