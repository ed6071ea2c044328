"""A manifest over HTTPS: `https://<server>/folder/<path>?dcPath=<datacenter>&dsName=<datastore>`.

A manifest has a few MiB at most, so a broken download is repeated as a whole. `VcenterSession.call` decides how
often, as for every reading call, and renews a session that ended.

Sources: vSphere Web Services SDK, HTTPS access to datastores; vSphere API reference,
SessionManager.AcquireGenericServiceTicket.
"""

from __future__ import annotations

import base64
import http.client
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from pyVmomi import vim

from vadpipe.vss.archive import MAX_ARCHIVE_SIZE

from ..api.faults import LoginRefused, NotOffered, SessionExpired, VsphereError
from ..api.http import HTTPS_PORT, Endpoint, HttpClient, Refusal
from ..api.session import VcenterSession
from ..inventory.datastore import folder_url
from ..inventory.hosts import EsxiHost, host_of, pin
from .fetch import Fetched, ManifestPlace

Login = Literal["cookie", "basic", "ticket"]

_LOGIN_REFUSED = {
    "cookie": Refusal("it requires a login", error=SessionExpired),
    "basic": Refusal("it does not accept user and password; it requires a login", error=LoginRefused),
    "ticket": Refusal(
        "the host does not accept the ticket of vCenter", "Compare the clocks of the host and of vCenter."
    ),
}
_REFUSALS = {
    http.client.FORBIDDEN: Refusal(
        "the account may not read files there (privileges Datastore.Browse and Datastore.FileManagement)",
        "Give the account these privileges on the datastore.",
    ),
    http.client.NOT_FOUND: Refusal("there is no such file"),
}


@dataclass(frozen=True)
class OverHttps:
    """Download the manifest through `/folder`. A cancelled download closes its connection at once.

    Args:
        login: "cookie" uses our session. "basic" sends user and password with each request, for a proxy that
            requires them. "ticket" uses a one-time ticket for the VM's host, so that the bytes do not pass
            through vCenter.
        timeout_s: Seconds for the whole download.
    """

    login: Login = "cookie"
    timeout_s: float = 120.0

    @property
    def way(self) -> str:
        return f"HTTPS ({self.login})"

    def effects(self) -> Sequence[str]:
        return ()

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Download the file.

        Raises:
            VsphereError: It is refused or too large; ConnectionLost when the server stays away.
        """
        download = _Download(self.login, session, place)
        try:
            return Fetched(await session.call(f"GET {place.path}", download.run))
        finally:
            download.cut()


@dataclass
class _Download:
    """One file, with an attempt on each call of `run`, in a worker thread. `cut` ends it for good."""

    login: Login
    session: VcenterSession
    place: ManifestPlace
    _http: HttpClient | None = None
    _was_cut: bool = False

    def run(self) -> bytes:
        endpoint, target, headers = self._request()
        with HttpClient(endpoint) as self._http:
            if self._was_cut:  # the thread was left behind and must not begin again
                raise VsphereError(f"The download of {self.place.path} was cancelled.", server=endpoint.host)
            response = self._http.request(
                "GET", target, call=f"GET {self.place.path}", limit=MAX_ARCHIVE_SIZE, headers=headers
            )
        return response.require_success({**_REFUSALS, http.client.UNAUTHORIZED: _LOGIN_REFUSED[self.login]})

    def cut(self) -> None:
        self._was_cut = True
        if self._http is not None:
            self._http.cut()

    def _request(self) -> tuple[Endpoint, str, dict[str, str]]:
        """Where to send the request, its target, and the headers that log in."""
        session, path = self.session, self.place.path
        if self.login == "ticket":
            return self._with_ticket()
        headers = _basic(session) if self.login == "basic" else {"Cookie": session.cookie}
        datacenter = self.place.datacenter_path if session.is_vcenter else None
        return session.endpoint, _target(folder_url("server", path, datacenter)), headers

    def _with_ticket(self) -> tuple[Endpoint, str, dict[str, str]]:
        """A one-time ticket for one request to the VM's host. An ESXi host with our session is its own host."""
        session = self.session
        manager = session.content.sessionManager
        if manager is None:
            raise NotOffered(f"{session.server} issues no tickets.", server=session.server)
        own = session.endpoint
        host = host_of(session, self.place.vm) if session.is_vcenter else EsxiHost(own.host, own.port, None)
        name = f"[{host.name}]" if ":" in host.name else host.name
        url = folder_url(name if host.port == HTTPS_PORT else f"{name}:{host.port}", self.place.path, None)
        spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
        ticket = manager.AcquireGenericServiceTicket(spec)
        headers = {"Cookie": f"vmware_cgi_ticket={ticket.id}"}
        if not session.is_vcenter:
            return own, _target(url), headers
        # Older vCenters leave the certificate to the host's own entry in the inventory.
        thumbprint = pin(ticket.sslCertificate, ticket.sslThumbprint) or host.thumbprint
        return replace(host, thumbprint=thumbprint).endpoint(session), _target(url), headers


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def _basic(session: VcenterSession) -> dict[str, str]:
    password = session.settings.password
    if password is None:
        raise LoginRefused(
            f"There is no password for {session.server}, because its session was given as a cookie.",
            remedy="Use OverHttps('cookie').",
            server=session.server,
        )
    credentials = f"{session.settings.user}:{password.reveal()}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
