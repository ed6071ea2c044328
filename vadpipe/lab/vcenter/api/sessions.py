"""Login sessions: made by Login, ended by Logout, by idleness, by a restart of the server."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pyVmomi import vim

if TYPE_CHECKING:
    from .managed import Managed


COOKIE = "vmware_soap_session"

Clock = Callable[[], float]


@dataclass
class Session:
    """One login. cookie: what the client sends back; key: its public name, another one;
    objects: what lives and dies with it (property collectors, filters, views), by moref;
    calls_running: a session with a call in progress is not idle."""

    user: str
    address: str
    user_agent: str
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    cookie: str = field(default_factory=lambda: secrets.token_hex(20))
    login_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_active_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_active_s: float = 0.0
    calls: int = 0
    calls_running: int = 0
    alive: bool = True
    objects: dict[str, Managed] = field(default_factory=dict)

    def new_moref(self) -> str:
        """A moref for a session-scoped object, in vCenter's form."""
        return f"session[{self.key}]{uuid.uuid4()}"

    @property
    def cookie_forms(self) -> tuple[str, str]:
        """The cookie as clients hand it on: its value, or with its name as in the Cookie header."""
        return self.cookie, f'{COOKIE}="{self.cookie}"'

    def to_vim(self) -> vim.UserSession:
        return vim.UserSession(
            key=self.key,
            userName=self.user,
            fullName=self.user,
            loginTime=self.login_time,
            lastActiveTime=self.last_active_time,
            locale="en",
            messageLocale="en",
            extensionSession=False,
            ipAddress=self.address,
            userAgent=self.user_agent,
            callCount=self.calls,
        )


class Sessions:
    """The live sessions by cookie, and the one-time tickets for `/folder`.

    on_change: called after the set of live sessions changed; clock: monotonic seconds.
    """

    def __init__(self, idle_s: float, on_change: Callable[[], None], clock: Clock = time.monotonic) -> None:
        self.idle_s = idle_s
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._by_cookie: dict[str, Session] = {}
        self._tickets: dict[str, tuple[str, str]] = {}

    def open(self, session: Session) -> None:
        with self._lock:
            session.last_active_s = self._clock()
            self._by_cookie[session.cookie] = session
        self._on_change()

    @contextmanager
    def in_call(self, session: Session | None) -> Iterator[None]:
        """Keep `session` from counting as idle for the length of the `with` block."""
        if session is None:
            yield
            return
        session.calls_running += 1
        try:
            yield
        finally:
            session.calls_running -= 1
            session.last_active_s = self._clock()

    def find(self, cookie: str | None) -> Session | None:
        """The live session of `cookie`, marked as active now. Idle sessions end here."""
        self._end_idle()
        with self._lock:
            session = self._by_cookie.get(cookie or "")
            if session is not None:
                session.last_active_s = self._clock()
                session.last_active_time = datetime.now(UTC)
                session.calls += 1
            return session

    def end(self, *sessions: Session) -> None:
        """End sessions: their objects go with them, their waits return."""
        with self._lock:
            for session in sessions:
                session.alive = False
                self._by_cookie.pop(session.cookie, None)
        for session in sessions:
            session.objects.clear()
        self._on_change()

    def live(self) -> list[Session]:
        with self._lock:
            return list(self._by_cookie.values())

    def _end_idle(self) -> None:
        oldest_s = self._clock() - self.idle_s
        idle = [one for one in self.live() if one.last_active_s < oldest_s and not one.calls_running]
        if idle:
            self.end(*idle)

    def issue_ticket(self, http_method: str, url_path: str) -> str:
        """A ticket that admits one request for one path, without a session."""
        ticket = str(uuid.uuid4())
        with self._lock:
            self._tickets[ticket] = (http_method, url_path)
        return ticket

    def redeem_ticket(self, ticket: str, http_method: str, url_path: str) -> bool:
        with self._lock:
            if self._tickets.get(ticket) != (http_method, url_path):
                return False
            del self._tickets[ticket]
            return True
