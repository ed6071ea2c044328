"""The bytes of a file of a guest: an HTTPS request to the address that the server gave for it.

The address names vCenter ('*' stands for the server that was called) or, mostly, the ESXi host of the VM. A host
has a certificate of its own, which neither the pin nor perhaps the authority of vCenter fits. But vCenter knows the
certificate of each of its hosts, and we know vCenter; so the host has to show exactly the certificate that vCenter
told us over the session, and anything else is refused before the first byte. Without such a word nothing is sent.

The address holds a token that is as good as the file, so it is in no error and in no log. Nothing else that is
secret travels: neither the session's cookie nor the guest's password.

Source: vSphere API reference, GuestFileManager and FileTransferInformation: the remote end is to be authenticated
by the X.509 certificate of the host.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

from pyVmomi import vim

from ..api.certificate import Trust, TrustedConnection
from ..api.faults import (
    FOREIGN,
    CertificateRefused,
    VsphereError,
    translate,
)
from ..api.properties import read
from ..api.session import SOCKET_TIMEOUT_S, VcenterSession
from ..inventory.lookup import Vm

_HTTPS = 443
_THUMBPRINT = "summary.config.sslThumbprint"


@dataclass(frozen=True)
class Door:
    """Where a file's bytes are had: `trust` is what decides about its certificate."""

    host: str
    port: int
    target: str
    trust: Trust

    def __repr__(self) -> str:
        return f"Door({self.host}:{self.port})"  # the target holds the token


def door_of(session: VcenterSession, vm: Vm, url: str) -> Door:
    """Where `url` leads to, and whose certificate is accepted there. Blocks. Raises VsphereError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        raise VsphereError(
            f"{session.server} names a place without TLS for a file of {vm.name}.",
            remedy="Nothing is read or written there: see who answers for this server.",
            server=session.server,
            vm=vm.name,
        )
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    settings = session.settings
    if parts.hostname == "*":
        return Door(settings.server, parts.port or settings.port, target, settings.trust)
    port = parts.port or _HTTPS
    same = (parts.hostname, port) == (settings.server.lower(), settings.port)
    trust = settings.trust if same or not session.is_vcenter else _trust_of_host(session, vm, parts.hostname)
    return Door(parts.hostname, port, target, trust)


def download(door: Door, limit: int, path: str) -> bytes:
    """The file's bytes. `path`: its name in the guest, for errors. Blocks. Raises VsphereError."""
    call = f"GET {path}"
    status, reason, content = _request(door, "GET", call, None, limit + 1)
    _require(door, call, status, reason)
    if len(content) > limit:
        raise VsphereError(
            f"{path} in the guest is larger than {limit} bytes.", server=door.host, call=call, path=path
        )
    return content


def upload(door: Door, content: bytes, path: str) -> None:
    """Write the file's bytes. Blocks. Raises VsphereError."""
    call = f"PUT {path}"
    status, reason, _ = _request(door, "PUT", call, content, 1 << 16)
    _require(door, call, status, reason)


def _request(door: Door, method: str, call: str, body: bytes | None, limit: int) -> tuple[int, str, bytes]:
    connection = TrustedConnection(
        door.host, door.port, trust=door.trust, context=door.trust.context(), timeout_s=SOCKET_TIMEOUT_S
    )
    try:
        connection.request(method, door.target, body)
        response = connection.getresponse()
        return response.status, response.reason, response.read(limit)
    except CertificateRefused:
        raise
    except FOREIGN as exc:
        raise translate(exc, call, door.host) from None
    finally:
        connection.close()


def _require(door: Door, call: str, status: int, reason: str) -> None:
    if not http.client.OK <= status < http.client.MULTIPLE_CHOICES:
        raise VsphereError(
            f"{door.host} refused {call} in the guest: {status} {reason}.",
            remedy="Run again: the address for a file is good once. If it stays so, see the events of the VM.",
            server=door.host,
            call=call,
            status=status,
        )


def _trust_of_host(session: VcenterSession, vm: Vm, name: str) -> Trust:
    """Pinned to the certificate that vCenter knows of the host that the VM runs on now."""
    host: vim.HostSystem | None = read(session.content, vm.reference(session), ["runtime.host"]).get(
        "runtime.host"
    )
    thumbprint = read(session.content, host, [_THUMBPRINT]).get(_THUMBPRINT) if host is not None else None
    if thumbprint:
        return Trust(thumbprint)
    raise CertificateRefused(
        f"The files of {vm.name} are at {name}, and {session.server} does not say which certificate that has.",
        remedy="See that vCenter is connected to the host; or log in at the host itself.",
        server=name,
        vm=vm.name,
    )
