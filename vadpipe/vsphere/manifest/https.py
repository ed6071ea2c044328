"""A file of a datastore over HTTPS: `https://<server>/folder/<path>?dcPath=<datacenter>&dsName=<datastore>`.

A download outlives its connections: when one breaks, the next asks for the rest, and begins anew where the server
cannot give a part or the file is another one by now. `VcenterSession.call` decides how often, as for every reading
call; an ended session is renewed there, too.

Source: vSphere Web Services SDK, HTTPS access to datastores; RFC 9110, 14 (range requests).
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

from vadpipe.vss.archive import MAX_ARCHIVE_SIZE

from ..api.certificate import TrustedConnection
from ..api.faults import LoginRefused, SessionExpired, VsphereError
from ..api.session import VcenterSession
from ..inventory.datastore_path import DatastorePath, folder_url
from .fetch import Fetched, ManifestPlace, too_large
from .host_ticket import ticket_request

Login = Literal["cookie", "basic", "ticket"]

_PIECE = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_NOT_READY = (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE)


@dataclass(frozen=True)
class OverHttps:
    """Download through `/folder`.

    `login`: "cookie" of our session; "basic", our user and password with each request, for a proxy that wants them;
    "ticket", a one-time ticket for the VM's host, so that the bytes do not pass through vCenter. The host is known
    by the certificate that vCenter tells. Cancel: the connection is cut.
    """

    login: Login = "cookie"
    timeout_s: float = 120.0

    @property
    def way(self) -> str:
        return f"HTTPS ({self.login})"

    def effects(self) -> Sequence[str]:
        return ()

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Raises VsphereError and its kinds; ConnectionLost when the server stays away."""
        download = Download(place.path)
        try:
            content = await session.call(f"GET {place.path}", partial(self._go_on, session, place, download))
        finally:
            download.cut()
        return Fetched(content)

    def _go_on(self, session: VcenterSession, place: ManifestPlace, download: Download) -> bytes:
        """Download what is left. Blocks."""
        if self.login == "ticket":
            ticket = ticket_request(session, place)
            return ticket.run(lambda: download.run(ticket.connection, ticket.target, ticket.headers))
        headers = _basic(session) if self.login == "basic" else {"Cookie": session.cookie}
        url = urlsplit(
            folder_url("server", place.path, place.datacenter_path if session.is_vcenter else None)
        )
        try:
            return download.run(session.connection(), f"{url.path}?{url.query}", headers)
        except SessionExpired as exc:
            if self.login == "cookie":
                raise
            raise LoginRefused(exc.problem, remedy=exc.remedy, **exc.facts) from None


def _basic(session: VcenterSession) -> dict[str, str]:
    password = session.settings.password
    if password is None:
        raise LoginRefused(
            f"There is no password for {session.server}, whose session was given as a cookie.",
            remedy="Use OverHttps('cookie').",
            server=session.server,
        )
    credentials = f"{session.settings.user}:{password.reveal()}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


@dataclass
class Download:
    """One file on its way, over as many connections as it takes. Blocks; `cut` may be called from any thread."""

    path: DatastorePath
    _content: bytearray = field(default_factory=bytearray)
    _total: int | None = None
    _version: tuple[str | None, str | None] = (None, None)
    _connection: TrustedConnection | None = None
    _was_cut: bool = False

    def run(self, connection: TrustedConnection, target: str, headers: Mapping[str, str]) -> bytes:
        """Ask for what is missing, and return the whole file. What came stays for the next connection.

        Raises OSError, HTTPException (dropped, or not ready), SessionExpired (401), VsphereError.
        """
        if self._was_cut:  # the call was left behind; its thread must not begin again
            raise VsphereError(f"The download of {self.path} was given up.", server=connection.host)
        self._connection = connection
        wanted = {"Range": f"bytes={len(self._content)}-"} if self._content else {}
        try:
            connection.request("GET", target, headers={**headers, **wanted})
            response = connection.getresponse()
            self._begin(connection.host, response)
            while piece := response.read1(_PIECE):  # `read` would lose what came before a break
                self._content += piece
                self._check_size(connection.host, len(self._content))
        finally:
            connection.close()
        if self._total is not None and len(self._content) != self._total:
            raise http.client.IncompleteRead(bytes(self._content), self._total - len(self._content))
        return bytes(self._content)

    def cut(self) -> None:
        """End it for good: a thread that was left behind with it ends as well."""
        self._was_cut = True
        sock = self._connection.sock if self._connection else None
        if sock is not None:
            with suppress(OSError):
                # Only the TCP half: the TLS object belongs to the thread that reads from it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _begin(self, server: str, response: http.client.HTTPResponse) -> None:
        """Take up the answer: the rest of what is here, or the file from its start."""
        version = response.getheader("ETag"), response.getheader("Last-Modified")
        if response.status == http.client.PARTIAL_CONTENT:
            place = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
            expected = (len(self._content), self._total)
            if place is None or (int(place[1]), int(place[2])) != expected or version != self._version:
                self._forget()
                raise http.client.HTTPException("the file changed while it was read")
            return
        self._forget()
        if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise http.client.HTTPException("the file became shorter while it was read")
        if response.status in _NOT_READY:
            raise http.client.HTTPException(f"{response.status} {response.reason}")
        if response.status != http.client.OK:
            raise _refusal(server, self.path, response.status, response.reason)
        self._total, self._version = response.length, version
        self._check_size(server, self._total or 0)

    def _forget(self) -> None:
        self._content.clear()
        self._total, self._version = None, (None, None)

    def _check_size(self, server: str, size: int) -> None:
        if size > MAX_ARCHIVE_SIZE:
            raise VsphereError(too_large(self.path), server=server, call=f"GET {self.path}")


def _refusal(server: str, path: DatastorePath, status: int, reason: str) -> VsphereError:
    call = f"GET {path}"
    if status == http.client.UNAUTHORIZED:
        return SessionExpired(f"{server} wants a login for {path}.", server=server, call=call)
    meanings: dict[int, str] = {
        http.client.FORBIDDEN: "the account may not read files there (privileges Datastore.Browse and "
        "Datastore.FileManagement)",
        http.client.NOT_FOUND: "there is no such file",
    }
    meaning = meanings.get(status, f"{status} {reason}")
    return VsphereError(
        f"{server} does not give out {path}: {meaning}.", server=server, call=call, status=status
    )
