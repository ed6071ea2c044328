"""The session with a vCenter or an ESXi host. Every API call goes through `VcenterSession.call`.

pyVmomi is synchronous, so a call runs in a worker thread, and its faults become our errors inside that thread. The
session handles what happens to every long session:

* The session ended (30 idle minutes, a restarted vCenter). The server refused the call without running it, so the
  session logs in again and repeats it. A background task touches the session, so that it rarely ends.
* The server could not be reached. The call had no effect: it waits, with growing pauses, for `patience_s`.
* The connection broke during the call, so its effect is unknown. A reading call is repeated. A changing call ends
  in ConnectionLost, and its caller checks first whether it took effect.

A cancelled reading call returns at once and is left behind in its thread. A cancelled changing call is waited for,
so that its result is known. Every socket has a time-out, so neither waits for ever.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import trio
from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import ConfigError, MoverError
from pipeline.secrets import Secret

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
from .http import HTTPS_PORT, Endpoint, Trust, parse_server, thumbprint_of
from .properties import Row, read
from .retry import PATIENCE_S, backoff
from .soap import negotiated_stub, session_id

T = TypeVar("T")

log = logging.getLogger(__name__)

# A third of the 30 idle minutes after which a vCenter ends a session by default.
KEEP_ALIVE_S = 600.0
_LOGOUT_S = 10.0


@dataclass(frozen=True)
class Vcenter:
    """A vCenter or an ESXi host, and the login there. Settings only, no I/O.

    Args:
        server: Host name or address, with the port or without: 'vc01.example.com', 'vc01:8443', '[2001:db8::1]'.
            Afterwards it holds the host alone.
        user: The account, as in 'backup@vsphere.local'.
        password: Its password.
        cookie: In place of user and password: the cookie of an open session, which is neither renewed nor closed.
        thumbprint: SHA-1 or SHA-256 of the only certificate to accept.
        ca_file: A PEM file with the authorities to accept. With neither, the system's authorities count.
        port: The HTTPS port.
        keep_alive_s: Seconds between two touches of the session.
        patience_s: How many seconds a call waits for a server that is away. The first login does not wait.

    Raises:
        ConfigError: The settings contradict each other, or `server` cannot be a server.

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
    port: int = HTTPS_PORT
    keep_alive_s: float = KEEP_ALIVE_S
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        host, port = parse_server(self.server, self.port)
        object.__setattr__(self, "server", host)
        object.__setattr__(self, "port", port)
        if (self.password is None) == (self.cookie is None) or (self.password and not self.user):
            raise ConfigError(
                f"The login at {self.server} is not clear.",
                remedy="Give either user and password, or the cookie of an open session.",
            )
        if self.keep_alive_s <= 0 or self.patience_s < 0:
            raise ConfigError(
                "keep_alive_s must be more than 0 seconds, and patience_s not less than 0.",
                remedy="Correct them, or leave them out.",
            )
        Trust(self.thumbprint, self.ca_file)

    @property
    def trust(self) -> Trust:
        return Trust(self.thumbprint, self.ca_file)

    def connect(self) -> AbstractAsyncContextManager[VcenterSession]:
        """Log in; log out at the end of the block.

        Raises:
            LoginRefused: User and password, or the cookie, are not accepted.
            CertificateRefused: The server shows another certificate. Nothing was sent.
            ConnectionLost: The server does not answer.
            VsphereError: Anything else that the server answers.
        """
        return _session(self)


class VcenterSession:
    """A login. Made by `Vcenter.connect()`; its calls may come from several tasks at once."""

    def __init__(self, settings: Vcenter) -> None:
        """Log in; blocks."""
        self.settings = settings
        self._context = settings.trust.context()  # reads the authorities once
        self._login_lock = threading.Lock()
        self._logins = 0
        self._ended = False
        self.stub, self._certificate = self._repeated(
            "vimServiceVersions.xml", lambda: negotiated_stub(self.endpoint)
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
    def endpoint(self) -> Endpoint:
        """The server, for requests beside the SOAP API, with the same rules for its certificate."""
        settings = self.settings
        return Endpoint(settings.server, settings.port, settings.trust, self._context)

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
        """SHA-1 thumbprint of the server's certificate, which passed our own check. VDDK takes this form."""
        return thumbprint_of(self._certificate, "sha1")

    @property
    def certificate_pem(self) -> str:
        """The same certificate, for tools that read it from a file."""
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
        """Run `work`, which makes API calls, in a worker thread.

        Args:
            name: The API's name of the call, for logs and errors.
            work: The function to run. As a whole it may run again.
            changes: It changes something outside. It is not repeated once it can have taken effect, and a
                cancellation waits for it.
            repeat: False leaves a lost connection to the caller.
            patience_s: How long to wait for a server that is away; None: as in the settings.

        Raises:
            MoverError: Never a fault of pyVmomi.
        """
        waits = backoff(self.settings.patience_s if patience_s is None else patience_s)
        while True:
            try:
                return await trio.to_thread.run_sync(
                    self._perform, name, work, changes, repeat, abandon_on_cancel=not changes
                )
            except ConnectionLost as exc:
                in_doubt = changes and not isinstance(exc, Unreachable)
                if in_doubt or not repeat or (pause_s := next(waits, None)) is None:
                    raise
                log.info("%s: %s waits %.1f s: %s", self.server, name, pause_s, exc.problem)
            await trio.sleep(pause_s)

    async def properties(self, subject: ManagedObject, paths: Sequence[str]) -> Row:
        """These properties of one object, as `properties.read` returns them. Raises VsphereError."""
        return await self.call("RetrieveProperties", lambda: read(self.content, subject, paths))

    async def keep_alive(self) -> None:
        """Touch the session; log in again when it has ended."""
        await self.call("CurrentSession", self._current_user)

    def _perform(self, name: str, work: Callable[[], T], changes: bool, repeat: bool) -> T:
        """`work`, with a second attempt after a new login, and for a reading call one on a fresh connection."""
        if changes:
            self.stub.DropConnections()  # a stale connection would leave the effect of the call in doubt
        try:
            return self._attempts(name, work, repeat and not changes)
        finally:
            if self._ended:  # this call was left behind, so nobody else would close its connection
                self.stub.DropConnections()

    def _attempts(self, name: str, work: Callable[[], T], repeat: bool) -> T:
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
                log.info("%s: %s lost its connection; it is repeated on a new one", self.server, name)
                reconnected = True
                continue
            self._login_again(logins)

    def _translated(self, name: str, work: Callable[[], T]) -> T:
        started, outcome = time.monotonic(), "failed after "
        try:
            result = work()
            outcome = ""
            return result
        except FOREIGN as exc:
            error = translate(exc, name, self.server)
        finally:
            log.debug("%s: %s: %s%.3f s", self.server, name, outcome, time.monotonic() - started)
        if isinstance(error, LoginRefused) or error.facts.get("fault") == "NoPermission":
            log.warning("%s", error.problem)
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
        log.info("%s: logged in as %s", self.server, user)
        return user

    def _login_again(self, logins_before: int) -> None:
        with self._login_lock:
            if self._ended:  # a call that was left behind must not leave a login behind
                raise SessionExpired(f"The session with {self.server} was closed.", server=self.server)
            if self._logins == logins_before:  # else another thread's call was faster
                log.info("%s: the session has ended; logging in again", self.server)
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
        f"{settings.server} does not know the session of the given cookie, or no longer knows it.",
        remedy="Give the cookie of an open session, or user and password, with which a session can be renewed.",
        server=settings.server,
    )


@asynccontextmanager
async def _session(settings: Vcenter) -> AsyncIterator[VcenterSession]:
    session = await _logged_in(settings)
    try:
        async with _kept_alive(session.keep_alive, settings.keep_alive_s):
            yield session
    finally:
        with trio.move_on_after(_LOGOUT_S, shield=True):
            await trio.to_thread.run_sync(session._logout, abandon_on_cancel=True)


async def _logged_in(settings: Vcenter) -> VcenterSession:
    """Log in. Cancelling returns at once; the thread logs a late login out by itself."""
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


@asynccontextmanager
async def _kept_alive(touch: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Await `touch` every `every_s` seconds while the block runs. The block's own exception is not wrapped."""
    host_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_touch, touch, every_s)
            try:
                yield
            except BaseException as exc:  # kept aside, so that the nursery does not wrap it
                host_error = exc
            nursery.cancel_scope.cancel()
    except BaseException:  # nothing but a cancellation from outside
        if host_error is None:
            raise
    if host_error is not None:
        raise host_error


async def _touch(touch: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        try:
            await touch()
        except MoverError as exc:  # the next call that needs the server waits for it, or fails
            log.info("The session could not be touched: %s", exc.problem)
