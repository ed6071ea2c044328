"""A one-time ticket for one request to the VM's host, and a connection that trusts that host alone.

vCenter vouches for the host: the ticket comes with the host's certificate or its thumbprint, over the session that
we trust already; older ones leave it to the host's own entry in the inventory. A host that nobody vouches for is
not asked. An ESXi host with which we have the session itself is its own host.

Source: vSphere API reference, SessionManager.AcquireGenericServiceTicket, HostConfigSummary.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from pyVmomi import vim

from ..api.certificate import Trust, TrustedConnection, thumbprint_of
from ..api.faults import (
    NotOffered,
    ObjectGone,
    SessionExpired,
    VsphereError,
    translate,
)
from ..api.properties import read
from ..api.session import SOCKET_TIMEOUT_S, VcenterSession
from ..inventory.datastore_path import folder_url
from .fetch import ManifestPlace

T = TypeVar("T")

_HTTPS = 443


@dataclass(frozen=True)
class TicketRequest:
    """One GET that the ticket admits: where to, what for, and with what headers."""

    host: str
    target: str
    headers: dict[str, str] = field(repr=False)
    connection: TrustedConnection = field(repr=False)

    def run(self, work: Callable[[], T]) -> T:
        """`work` with its errors told of the host instead of the server. Raises MoverError."""
        try:
            return work()
        except SessionExpired as exc:
            raise VsphereError(
                f"{self.host} does not accept the ticket that vCenter gave for it.",
                remedy="Compare the clocks of the host and of vCenter.",
                **exc.facts,
            ) from None
        except (OSError, http.client.HTTPException) as exc:
            raise translate(exc, f"GET {self.target}", self.host) from exc


def ticket_request(session: VcenterSession, place: ManifestPlace) -> TicketRequest:
    """A request for the file at the VM's host. Blocks; raises faults, VsphereError."""
    manager = session.content.sessionManager
    if manager is None:
        raise NotOffered(f"{session.server} gives no tickets.", server=session.server)
    host, port, vouched = _own_host(session) if not session.is_vcenter else _host_of(session, place)
    name = f"[{host}]" if ":" in host else host
    url = folder_url(name if port == _HTTPS else f"{name}:{port}", place.path, None)
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
    ticket = manager.AcquireGenericServiceTicket(spec)
    headers = {"Cookie": f"vmware_cgi_ticket={ticket.id}"}
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}"
    if not session.is_vcenter:
        return TicketRequest(host, target, headers, session.connection())
    pin = _pin(ticket.sslCertificate, ticket.sslThumbprint) or vouched
    if pin is None:
        raise VsphereError(
            f"{session.server} does not tell the certificate of {host}, so that it cannot be trusted.",
            remedy="Fetch through vCenter: OverHttps('cookie').",
            server=session.server,
            host=host,
        )
    trust = Trust(thumbprint=pin)
    connection = TrustedConnection(
        host, port, trust=trust, context=trust.context(), timeout_s=SOCKET_TIMEOUT_S
    )
    return TicketRequest(host, target, headers, connection)


def _own_host(session: VcenterSession) -> tuple[str, int, None]:
    return session.settings.server, session.settings.port, None


def _host_of(session: VcenterSession, place: ManifestPlace) -> tuple[str, int, str | None]:
    """Name and port of the host where the VM is registered, which sees its files, and its thumbprint."""
    host = read(session.content, place.vm.reference(session), ["runtime.host"]).get("runtime.host")
    if host is None:
        raise ObjectGone(f"{place.vm.name} is on no host.", server=session.server, vm=place.vm.name)
    config = read(session.content, host, ["summary.config"]).get("summary.config")
    return config.name, config.port or _HTTPS, _pin(config.sslCertificate, config.sslThumbprint)


def _pin(certificate: str | None, thumbprint: str | None) -> str | None:
    """The thumbprint to trust: of the certificate (PEM) where there is one, since that may be SHA-256."""
    if certificate:
        return thumbprint_of(ssl.PEM_cert_to_DER_cert(certificate.strip()), "sha256")
    return thumbprint or None
