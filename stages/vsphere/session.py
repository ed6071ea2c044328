"""The session with a vCenter or an ESXi host: one door, `call`, through which every API call goes.

pyVmomi is synchronous, so a call runs in a worker thread. Inside that thread its faults become our errors, and the
two things that happen to every long session are mended:

* The session ended (30 idle minutes, a restarted vCenter). The server refused the call without running it, so
  after one new login any call may be repeated.
* The connection was lost. Whether the call took effect is not known: a reading call is repeated once on a fresh
  connection; a changing one ends in ConnectionLost, and whoever made it looks first whether it happened.

Cancelling leaves a reading call behind in its thread, at once; a changing call is waited for, so that what it made
is known. Every socket has a time-out, so neither waits for ever.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import trio
from defusedxml.common import DefusedXmlException
from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from pipeline.errors import ConfigError
from pipeline.secrets import Secret

from .certificate import Trust, TrustedConnection, thumbprint_of
from .faults import FOREIGN, ConnectionLost, NotOffered, SessionExpired, VsphereError, translate

T = TypeVar("T")

# Longer than any single answer takes: a wait for updates is cut into pieces of half of it (tasks.py).
SOCKET_TIMEOUT_S = 120.0
_LOGOUT_S = 10.0


@dataclass(frozen=True)
class Vcenter:
    """A vCenter or an ESXi host, and who we are there. Settings only, no I/O.

    The certificate is the one pinned by `thumbprint` (SHA-1 or SHA-256), else it is verified by the authorities in
    `ca_file` or by the system's.

    >>> Vcenter("vc01.example.com", "backup@vsphere.local", Secret.from_env("VC_PASSWORD"))
    Vcenter(server='vc01.example.com', user='backup@vsphere.local', password=Secret(environment VC_PASSWORD), ...
    """

    server: str
    user: str
    password: Secret
    _: KW_ONLY
    thumbprint: str | None = None
    ca_file: str | None = None
    port: int = 443

    def __post_init__(self) -> None:
        if not self.server or "/" in self.server:
            raise ConfigError(
                f"{self.server!r} is not the name of a server.", remedy="Give a host name or an address."
            )
        Trust(self.thumbprint, self.ca_file)

    @property
    def trust(self) -> Trust:
        return Trust(self.thumbprint, self.ca_file)

    def connect(self) -> AbstractAsyncContextManager[VcenterSession]:
        """Log in; log out at the end. Raises LoginRefused, CertificateRefused, ConnectionLost, VsphereError."""
        return _session(self)


class VcenterSession:
    """A login. Made by `Vcenter.connect()`; its calls may come from several tasks at once."""

    def __init__(self, settings: Vcenter) -> None:
        """Log in; blocks."""
        self.settings = settings
        self._context = settings.trust.context()
        self._login_lock = threading.Lock()
        self._logins = 0
        self._certificate = b""
        self.stub = self._negotiated_stub()
        try:
            self.content: vim.ServiceInstanceContent = self._repeated(
                "RetrieveServiceContent", vim.ServiceInstance("ServiceInstance", self.stub).RetrieveContent
            )
            self._login()
        except BaseException:
            self.stub.DropConnections()
            raise

    @property
    def server(self) -> str:
        """The server's name as configured."""
        return self.settings.server

    @property
    def server_id(self) -> str:
        """The server's own identity, the same under any of its names."""
        return self.content.about.instanceUuid or self.settings.server

    @property
    def is_vcenter(self) -> bool:
        return self.content.about.apiType == "VirtualCenter"

    @property
    def api_version(self) -> tuple[int, ...]:
        """E.g. (8, 0, 3, 0)."""
        return tuple(int(part) for part in self.content.about.apiVersion.split(".") if part.isdigit())

    @property
    def certificate_sha1(self) -> str:
        """SHA-1 thumbprint of the server's certificate, which passed our own check; VDDK wants this form."""
        return thumbprint_of(self._certificate, "sha1")

    @property
    def cookie(self) -> str:
        """The session cookie as an HTTP header value; a secret."""
        return str(self.stub.cookie).partition(";")[0]

    async def call(self, name: str, work: Callable[[], T], *, changes: bool = False) -> T:
        """Run `work`, which makes API calls, in a worker thread; `name` is the API's name of the call.

        `changes`: it changes something outside, so it is neither repeated after a lost connection nor left
        behind when cancelled. Without it `work` as a whole may run twice. Raises MoverError, never a fault.
        """
        return await trio.to_thread.run_sync(
            self._perform, name, work, changes, abandon_on_cancel=not changes
        )

    def connection(self) -> TrustedConnection:
        """A connection to the server that is not open yet, with the same rules for its certificate."""
        return TrustedConnection(
            self.settings.server,
            self.settings.port,
            trust=self.settings.trust,
            context=self._context,
            timeout_s=SOCKET_TIMEOUT_S,
        )

    def _perform(self, name: str, work: Callable[[], T], changes: bool) -> T:
        renewed = reconnected = False
        while True:
            logins = self._logins
            try:
                return self._translated(name, work)
            except SessionExpired:
                if renewed:
                    raise
                renewed = True
            except ConnectionLost:
                if changes or reconnected:
                    raise
                reconnected = True
                continue
            self._login_again(logins)

    def _translated(self, name: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except FOREIGN as exc:
            error = translate(exc, name, self.server)
        raise error  # outside of `except`: a fault must not become its context

    def _repeated(self, name: str, work: Callable[[], T]) -> T:
        """`work` once more after a lost connection, without the renewal of the session."""
        try:
            return self._translated(name, work)
        except ConnectionLost:
            return self._translated(name, work)

    def _login(self) -> None:
        settings = self.settings
        password = settings.password.reveal()
        manager = self.content.sessionManager
        if manager is None:
            raise NotOffered(f"{self.server} offers no logins.", server=self.server, call="Login")
        self.stub.SetSessionId(None)
        self._repeated(f"Login as {settings.user}", lambda: manager.Login(settings.user, password, None))
        self._logins += 1

    def _login_again(self, logins_before: int) -> None:
        with self._login_lock:
            if self._logins == logins_before:  # else another thread's call was faster
                self._login()

    def _logout(self) -> None:
        manager = self.content.sessionManager
        if manager is not None:
            # Nobody can act on a failed logout: the server ends an idle session by itself.
            with suppress(VsphereError):
                self._translated("Logout", manager.Logout)
        self.stub.DropConnections()

    def _negotiated_stub(self) -> SoapStubAdapter:
        """pyVmomi's transport, with our connections, in the newest version that both sides speak."""
        offered = self._repeated("vimServiceVersions.xml", self._offered_versions)
        version = next((name for name in GetServiceVersions("vim25") if versionIdMap[name] in offered), None)
        if version is None:
            raise VsphereError(
                f"{self.server} speaks no version of the vSphere API that this program knows.",
                remedy="Check the name and port of the server; update pyVmomi for a newer vSphere.",
                server=self.server,
            )
        stub = SoapStubAdapter(host=self.settings.server, port=self.settings.port, version=version)
        # pyVmomi makes its connections by calling this attribute, a class of http.client when left alone.
        setattr(stub, "scheme", lambda host, port: self.connection())  # noqa: B010
        return stub

    def _offered_versions(self) -> frozenset[str]:
        connection = self.connection()
        try:
            connection.request("GET", "/sdk/vimServiceVersions.xml")
            self._certificate = connection.certificate
            response = connection.getresponse()
            document = response.read(1 << 20) if response.status == 200 else b""
            versions = defusedxml.ElementTree.fromstring(document).iter("version")
            return frozenset(element.text or "" for element in versions)
        except (ParseError, DefusedXmlException):
            return frozenset()
        finally:
            connection.close()


@asynccontextmanager
async def _session(settings: Vcenter) -> AsyncIterator[VcenterSession]:
    session = await _logged_in(settings)
    try:
        yield session
    finally:
        with trio.move_on_after(_LOGOUT_S, shield=True):
            await trio.to_thread.run_sync(session._logout, abandon_on_cancel=True)


async def _logged_in(settings: Vcenter) -> VcenterSession:
    """Cancelling comes back at once; a login that succeeds after it is logged out by its own thread."""
    unwanted = threading.Event()

    def log_in() -> VcenterSession:
        session = VcenterSession(settings)
        if unwanted.is_set():
            session._logout()
        return session

    try:
        return await trio.to_thread.run_sync(log_in, abandon_on_cancel=True)
    except trio.Cancelled:
        unwanted.set()
        raise
