"""The session with a vCenter or an ESXi host: one door, `call`, through which every API call goes.

pyVmomi is synchronous, so a call runs in a worker thread. Inside that thread its faults become our errors. What
happens to every long session is mended here, so that nobody above sees it:

* The session ended (30 idle minutes, a restarted vCenter). The server refused the call without running it, so
  after one new login any call may be repeated. A task of its own touches the session, so that it seldom ends.
* The server could not be reached. Nothing was run either: the call waits, with growing pauses, for `patience_s`.
* The connection broke during the call. Whether it took effect is not known: a reading call is repeated; a changing
  one ends in ConnectionLost, and whoever made it looks first whether it happened.

Cancelling leaves a reading call behind in its thread, at once; a changing call is waited for, so that what it made
is known. Every socket has a time-out, so neither waits for ever.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import trio
from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import ConfigError
from pipeline.secrets import Secret

from .certificate import Trust, TrustedConnection, thumbprint_of
from .faults import (
    FOREIGN,
    ConnectionLost,
    LoginRefused,
    NotOffered,
    SessionExpired,
    Unreachable,
    VsphereError,
    translate,
)
from .keep_alive import kept_alive
from .properties import Row, read
from .retry import PATIENCE_S, pauses
from .soap import negotiated_stub, session_id

T = TypeVar("T")

# Longer than any single answer takes: a wait for updates is cut into pieces of half of it (tasks.py).
SOCKET_TIMEOUT_S = 120.0
# A third of the 30 idle minutes after which a vCenter ends a session, unless it is configured otherwise.
KEEP_ALIVE_S = 600.0
_LOGOUT_S = 10.0


@dataclass(frozen=True)
class Vcenter:
    """A vCenter or an ESXi host, and who we are there. Settings only, no I/O.

    Login is by `user` and `password`, or by the `cookie` of a session that somebody else opened and closes: that
    one cannot be renewed. The certificate is the one pinned by `thumbprint` (SHA-1 or SHA-256), else it is verified
    by the authorities in `ca_file` or by the system's. `keep_alive_s`: how often the session is touched.
    `patience_s`: how long a call waits for a server that is away; logging in for the first time does not wait.

    >>> Vcenter("vc01.example.com", "backup@vsphere.local", Secret.from_env("VC_PASSWORD"))
    Vcenter(server='vc01.example.com', user='backup@vsphere.local', password=Secret(environment VC_PASSWORD), ...
    """

    server: str
    user: str = ""
    password: Secret | None = None
    _: KW_ONLY
    cookie: Secret | None = None
    thumbprint: str | None = None
    ca_file: str | None = None
    port: int = 443
    keep_alive_s: float = KEEP_ALIVE_S
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if not self.server or "/" in self.server:
            raise ConfigError(
                f"{self.server!r} is not the name of a server.", remedy="Give a host name or an address."
            )
        if (self.password is None) == (self.cookie is None) or (self.password and not self.user):
            raise ConfigError(
                f"It is not clear how to log in at {self.server}.",
                remedy="Give either user and password, or the cookie of an open session.",
            )
        if self.keep_alive_s <= 0 or self.patience_s < 0:
            raise ConfigError(
                "keep_alive_s and patience_s are seconds.", remedy="Give a time, or leave them out."
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
        self._ended = False
        self.stub, self._certificate = self._repeated(
            "vimServiceVersions.xml",
            lambda: negotiated_stub(settings.server, settings.port, self.connection),
        )
        try:
            self.content: vim.ServiceInstanceContent = self._repeated(
                "RetrieveServiceContent", vim.ServiceInstance("ServiceInstance", self.stub).RetrieveContent
            )
            self.user = self._login()
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
        """False for an ESXi host (apiType HostAgent)."""
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
    def certificate_pem(self) -> str:
        """The same certificate for tools that want a file."""
        return ssl.DER_cert_to_PEM_cert(self._certificate)

    @property
    def cookie(self) -> str:
        """The session cookie as an HTTP header value; a secret."""
        return str(self.stub.cookie).partition(";")[0]

    async def call(
        self,
        name: str,
        work: Callable[[], T],
        *,
        changes: bool = False,
        repeat: bool = True,
        patience_s: float | None = None,
    ) -> T:
        """Run `work`, which makes API calls, in a worker thread; `name` is the API's name of the call.

        `changes`: it changes something outside, so it is neither repeated once it may have taken effect nor left
        behind when cancelled. Without it `work` as a whole may run again, unless `repeat` is False: then a lost
        connection is the caller's business. Raises MoverError, never a fault.
        """
        waits = pauses(self.settings.patience_s if patience_s is None else patience_s)
        while True:
            try:
                return await trio.to_thread.run_sync(
                    self._perform, name, work, changes, repeat, abandon_on_cancel=not changes
                )
            except ConnectionLost as exc:
                in_doubt = changes and not isinstance(exc, Unreachable)
                if in_doubt or not repeat or (pause_s := next(waits, None)) is None:
                    raise
            await trio.sleep(pause_s)

    async def properties(self, subject: ManagedObject, paths: Sequence[str]) -> Row:
        """These properties of one object, as `properties.read` gives them. Raises VsphereError."""
        return await self.call("RetrieveProperties", lambda: read(self.content, subject, paths))

    async def keep_alive(self) -> None:
        """Touch the session; log in again when it has ended."""
        await self.call("CurrentSession", self._current_user)

    def connection(self) -> TrustedConnection:
        """A connection to the server that is not open yet, with the same rules for its certificate."""
        return TrustedConnection(
            self.settings.server,
            self.settings.port,
            trust=self.settings.trust,
            context=self._context,
            timeout_s=SOCKET_TIMEOUT_S,
        )

    def _perform(self, name: str, work: Callable[[], T], changes: bool, repeat: bool) -> T:
        """`work`, once more after a new login, and when it only reads once more on a fresh connection."""
        if changes:
            self.stub.DropConnections()  # a stale one would leave the call's effect in doubt for nothing
        try:
            return self._mended(name, work, repeat and not changes)
        finally:
            if self._ended:  # this call was left behind; nobody else would close its connection
                self.stub.DropConnections()

    def _mended(self, name: str, work: Callable[[], T], repeat: bool) -> T:
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
                if reconnected or not repeat:
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

    @property
    def _manager(self) -> vim.SessionManager:
        manager = self.content.sessionManager
        if manager is None:
            raise NotOffered(f"{self.server} offers no logins.", server=self.server, call="Login")
        return manager

    def _current_user(self) -> str:
        """The name we are logged in with. Raises NotAuthenticated, a fault, when we are not."""
        current = self._manager.currentSession
        if current is None:
            raise vim.fault.NotAuthenticated(msg="The session has ended.")
        return str(current.userName)

    def _login(self) -> str:
        """Make this a session, and return its user's name."""
        settings, manager = self.settings, self._manager
        if settings.cookie is not None:
            self.stub.SetSessionId(session_id(settings.cookie.reveal()))
            try:
                user = self._repeated("Login by cookie", self._current_user)
            except SessionExpired:
                raise _cookie_refused(settings) from None
        else:
            assert settings.password is not None
            password, user = settings.password.reveal(), settings.user
            self.stub.SetSessionId(None)
            self._repeated(f"Login as {user}", lambda: manager.Login(user, password, None))
        self._logins += 1
        return user

    def _login_again(self, logins_before: int) -> None:
        with self._login_lock:
            if self._ended:  # a call that was left behind must not leave a login behind
                raise SessionExpired(f"The session with {self.server} was closed.", server=self.server)
            if self._logins == logins_before:  # else another thread's call was faster
                self._login()

    def _logout(self) -> None:
        with self._login_lock:
            self._ended = True
        if self.settings.cookie is None:
            # Nobody can act on a failed logout: the server ends an idle session by itself.
            with suppress(VsphereError):
                self._translated("Logout", self._manager.Logout)
        self.stub.DropConnections()


def _cookie_refused(settings: Vcenter) -> LoginRefused:
    return LoginRefused(
        f"{settings.server} does not know the session of the given cookie (any more).",
        remedy="Give the cookie of an open session, or user and password, with which a session can be renewed.",
        server=settings.server,
    )


@asynccontextmanager
async def _session(settings: Vcenter) -> AsyncIterator[VcenterSession]:
    session = await _logged_in(settings)
    try:
        async with kept_alive(session.keep_alive, settings.keep_alive_s):
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
