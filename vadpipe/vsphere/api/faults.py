"""Our errors of vSphere calls, and the translation of foreign errors into them.

pyVmomi's faults are broken exceptions: `add_note()`, setting `__context__` or `__cause__`, and pickling raise
AttributeError, and a fault inside an exit stack or a nursery turns into that AttributeError. So `translate` copies
the facts of a fault into one of our errors, and the session raises that outside the `except` block. A fault never
leaves its worker thread and is in no chain of causes. Errors of sockets are sound and stay as the cause.
"""

from __future__ import annotations

import http.client
import socket
from xml.parsers.expat import ExpatError

from pyVmomi import vmodl

from pipeline.errors import (
    LeftBehind,
    MoverError,
    SourceError,
)

from .advice import advice_for


class SnapshotError(SourceError):
    """A snapshot could not be taken or used."""


class QuiesceFailed(SnapshotError):
    """The guest could not be quiesced as asked."""


class SnapshotLeaked(SnapshotError, LeftBehind):
    """A snapshot that vadpipe took could not be removed; the facts name it."""


class VsphereError(SourceError):
    """A call of the vSphere API failed. Facts: `server`, `call`, and `fault`, the type of a fault."""


class ConnectionLost(VsphereError):
    """The connection broke during the call, so the effect of the call is unknown."""

    transient = True


class Unreachable(ConnectionLost):
    """The server could not be reached or is not ready. The call had no effect."""


class Busy(VsphereError):
    """Another operation uses the object now."""

    transient = True


class SessionExpired(VsphereError):
    """The server no longer knows our login. It did not run the call."""


class LoginRefused(VsphereError):
    """User name and password are not accepted."""


class CertificateRefused(VsphereError):
    """The server's certificate is not the pinned one, or no authority vouches for it. Nothing was sent."""


class ObjectGone(VsphereError):
    """The object of the call, or one that it needs, does not exist."""


class TaskForgotten(ObjectGone):
    """The server no longer knows a task of ours: it was restarted. The effect of the task is unknown."""

    transient = True


class NotOffered(VsphereError):
    """The server does not offer this call, or not in this form."""


class GuestRefused(VsphereError):
    """The guest refuses an operation inside it, or cannot perform it."""


class NotConnected(ConnectionError):
    """Its cause occurred while connecting, before the first byte of a request."""


FOREIGN = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)

# Statuses of the proxy in front of a vCenter while the services behind it start. Nothing was run.
_NOT_READY = ("503", "502")

# The class for a fault by the name of its type; the nearest in its ancestry counts. The texts are in `advice`.
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
    """Our error for a foreign one.

    Args:
        foreign: One of FOREIGN, raised by a call or the result of a task.
        call: The API's name of the call.
        server: The server that was called.
    """
    if isinstance(foreign, vmodl.MethodFault):
        return _from_fault(foreign, call, server)
    if isinstance(foreign, ExpatError):
        return VsphereError(
            f"{server} answered {call} with something that is no answer of vSphere.",
            remedy="Check the name and port of the server.",
            server=server,
            call=call,
        )
    return _from_transport(foreign, call, server)


def fault_text(fault: vmodl.MethodFault) -> str:
    """The message of a fault in one line; empty when it has none."""
    localized = getattr(fault, "msg", None) or ""
    details = [message.message or "" for message in fault.faultMessage or []]
    lines = [line.strip() for text in [localized, *details] for line in str(text).splitlines()]
    return " ".join(dict.fromkeys(line for line in lines if line))


def _from_fault(fault: vmodl.MethodFault, call: str, server: str) -> MoverError:
    ancestry = [ancestor.__name__.rpartition(".")[2] for ancestor in type(fault).__mro__]
    error = next((_CLASSES[name] for name in ancestry if name in _CLASSES), VsphereError)
    advice = next((found for name in ancestry if (found := advice_for(name))), None)
    message = fault_text(fault)
    if (
        "quiesc" in message.lower()
        and call.startswith("CreateSnapshot")
        and error in (SnapshotError, VsphereError)
    ):
        # Hosts also report a failed quiesce by a general fault ("Failed to quiesce the virtual machine.").
        error, advice = QuiesceFailed, advice_for("ApplicationQuiesceFault")
    privilege = getattr(fault, "privilegeId", None)
    parts = [
        advice.cause if advice else "",
        f"privilege {privilege}" if privilege else "",
        message.rstrip("."),
    ]
    reason = "; ".join(part for part in parts if part) or ancestry[0]
    return error(
        f"{server}: {call} failed: {reason}.",
        remedy=advice.remedy if advice else "",
        server=server,
        call=call,
        fault=ancestry[0],
        message=message,
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
