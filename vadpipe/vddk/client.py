"""The mover's end of one VDDK child process: starting it, talking to it, ending it.

Requests are written without waiting: what can be outstanding is far below the 64 KiB of a pipe, so a full pipe
means a child that is stuck. One wake-up of `listen` handles all completions that have arrived by then.

While something is outstanding, each sign of life of the child renews a deadline; when it passes, the child is
killed. A child that was asked to leave has its own deadline. No child is left without supervision.
"""

from __future__ import annotations

import html
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import trio

from . import wire
from .errors import answered, call_lost, not_started

log = logging.getLogger(__name__)
library_log = logging.getLogger("vadpipe.vddk.library")

PROGRAM = Path(__file__).with_name("child.py")

# A killed process is gone in milliseconds, unless the kernel holds it in an I/O of its own.
REAP_S = 10.0

# What the child inherits: nothing that could be a secret. VADPIPE_ are switches of our own.
INHERITED = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
INHERITED_PREFIXES = ("LC_", "VADPIPE_")

LOG_TAIL = 60  # lines kept for error messages

# Levels of the library's lines by their tag. Its "information" is a dozen lines for each disk that is opened.
LEVELS = {"D": logging.DEBUG, "I": logging.DEBUG, "W": logging.WARNING, "P": logging.WARNING}

# Tickets of the host's disk service, and logins that are not ours to know: after such a word, whatever holds a
# digit.
_CREDENTIAL = re.compile(
    r"""((?:ticket|session[ _-]?(?:id|key)|passw(?:or)?d|cookie)\w*["']?\s*[:=]+\s*["']?)"""
    r"""(?:(?:[0-9a-f]{2}[ -]){4,}[0-9a-f]{2}|(?=[^\s"',;]*\d)[^\s"',;]{6,})""",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[\w-]{16,}")  # the value inside a cookie "vmware_soap_session=...; Path=/"

Done = Callable[[Sequence[tuple[int, int]]], None]


@dataclass(frozen=True)
class Limits:
    """Bounds of a connection: requests in flight, seconds without a sign of life, failures in a row."""

    depth: int
    call_timeout_s: float
    open_timeout_s: float
    end_timeout_s: float
    restarts: int
    restart_pause_s: float


class Redaction:
    """Replaces the secrets of one order, in every form in which the library prints them, by ***."""

    def __init__(self, order: Mapping[str, object]) -> None:
        self.secrets = [str(order[name]) for name in ("password", "cookie") if order[name]]
        parts = [part for secret in self.secrets for part in (secret, *secret.splitlines())]
        if order["cookie"]:
            parts += _TOKEN.findall(str(order["cookie"]))
        forms = {
            form
            for part in parts
            for form in (part, quote(part, safe=""), html.escape(part), repr(part)[1:-1])
        }
        patterns = [
            re.escape(form) if len(form) >= wire.SHORTEST_SECRET else rf"(?<!\w){re.escape(form)}(?!\w)"
            for form in sorted(forms, key=len, reverse=True)
            if form
        ]
        self._secret = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        if self._secret is not None:
            text = self._secret.sub("***", text)
        return _CREDENTIAL.sub(r"\1***", text)


ORDERS = {
    wire.START: "connecting and opening",
    wire.QUERY: "a query of allocated blocks",
    wire.ACCESS: "a call",
    wire.FLUSH: "a flush",
    wire.METADATA: "metadata",
}


class ChildLost(Exception):
    """The child ended before it answered."""


@dataclass(eq=False)
class _Call:
    kind: int
    answered: trio.Event
    runs: bytearray
    content: dict[str, object] | None = None


class Child:
    """A running child process. `on_done` gets (request id, VixError) pairs, many at a time.

    Run `listen` until it returns, then `reap`.
    """

    def __init__(
        self, process: trio.Process, redact: Redaction, lines: deque[str], on_done: Done, limits: Limits
    ) -> None:
        streams = process.stdin, process.stdout, process.stderr
        self._streams = [stream for stream in streams if isinstance(stream, trio.lowlevel.FdStream)]
        self._input, self._output, self._errors = (stream.fileno() for stream in self._streams)
        self._process = process
        self._redact = redact
        self._lines, self._half_line = lines, b""
        self._on_done = on_done
        self._limits = limits
        self._silence, self._timeout_s = trio.CancelScope(), math.inf
        self._calls: dict[int, _Call] = {}
        self._last_call = wire.FAREWELL
        self._flying = 0
        self.at_end = False  # its output ended: no more answers will come
        self.unanswered = 0  # queries that it owed an answer when its output ended
        self.ending = False  # it was asked to leave
        self.silent = False  # it was killed because it gave no sign of life
        self.killed = False  # it was killed on request
        self.reaped = trio.Event()
        self.times: dict[str, list[float]] = {}
        self.remaining = 0  # hot-added disks that it could not detach
        self.failures: list[dict[str, object]] = []  # calls that failed while it closed the disk

    @classmethod
    async def spawn(
        cls,
        libraries: Path,
        memory: Sequence[int],
        redact: Redaction,
        lines: deque[str],
        on_done: Done,
        limits: Limits,
    ) -> Child:
        """Start a child that maps `memory` and finds the library's own libraries in `libraries`. Raises OSError."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(memory),
            env=child_environment(os.environ, libraries, redact.secrets),
            start_new_session=True,  # the terminal's Ctrl-C is for the mover, which ends its children in order
        )
        return cls(process, redact, lines, on_done, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def clean(self) -> bool:
        return self._process.returncode == 0

    @property
    def end_reason(self) -> str:
        """How it ended, as the predicate of a sentence; call it after `reap`."""
        if self.silent:
            return f"gave no sign of life for {self._timeout_s:g} s and was killed"
        status = self._process.returncode
        if status is None:
            return "does not end, not even killed"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def submit(self, requests: Sequence[bytes]) -> None:
        """Send REQUEST records."""
        self._flying += len(requests)
        self._send(wire.REQUESTS, b"".join(requests))
        self._expect_sign(self._limits.call_timeout_s)

    async def call(
        self, kind: int, order: Mapping[str, object], timeout_s: float
    ) -> tuple[dict[str, object], bytes]:
        """Send an order and wait for its answer: the JSON half and the binary half. Raises ChildLost."""
        if self.at_end or self.ending:
            raise ChildLost
        self._last_call += 1
        number = self._last_call
        call = self._calls[number] = _Call(kind, trio.Event(), bytearray())
        self._send(kind, json.dumps({**order, "id": number}).encode())
        self._expect_sign(timeout_s)
        started = time.perf_counter()
        try:
            await call.answered.wait()
        finally:
            self._calls.pop(number, None)
            took = time.perf_counter() - started
            log.debug("VDDK process %d: %s took %.3f s.", self.pid, ORDERS[kind], took)
        if call.content is None:
            raise ChildLost
        return call.content, bytes(call.runs)

    def end(self) -> None:
        """Ask it to finish what the library works on, to close the disk and to leave."""
        if not self.ending:
            self.ending = True
            self._streams[0].close()
            self._set_deadline(self._limits.end_timeout_s)

    def kill(self) -> None:
        self.killed = True
        self._kill_group()

    async def listen(self) -> None:
        """Handle what it sends, and keep the tail of its log, until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to_log)
            with self._silence:
                await self._listen_to_output()
            if self._silence.cancelled_caught:
                self.silent = True
                self._kill_group()
            self.drain_log()
            nursery.cancel_scope.cancel()
        self.at_end = True
        self.unanswered = sum(call.kind == wire.QUERY for call in self._calls.values())
        for call in self._calls.values():
            call.answered.set()

    async def _listen_to_output(self) -> None:
        received = b""
        while True:
            await trio.lowlevel.wait_readable(self._output)
            chunk = os.read(self._output, 65536)
            if not chunk:
                return
            received = self._handle(received + chunk)

    async def _listen_to_log(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._errors)
            if not self.drain_log():
                return

    def drain_log(self) -> bool:
        """Take what the log holds now. False at its end."""
        try:
            chunk = os.read(self._errors, 65536)
        except BlockingIOError:
            return True
        *lines, self._half_line = (self._half_line + chunk).split(b"\n")
        if not chunk and self._half_line:
            lines, self._half_line = [self._half_line], b""
        for line in filter(bytes.strip, lines):
            self._take_line(self._redact(line.decode(errors="replace")))
        return bool(chunk)

    def _take_line(self, line: str) -> None:
        self._lines.append(line)
        tagged = line[1:2] == " " and line[0] in LEVELS
        level = LEVELS[line[0]] if tagged else logging.INFO
        library_log.log(level, "[%d] %s", self.pid, line[2:] if tagged else line)

    async def reap(self) -> None:
        """Wait for the process to be gone; kill it first unless it ended its output itself."""
        with trio.move_on_after(REAP_S, shield=True):
            if not self.at_end:
                self._kill_group()
            await self._process.wait()
        for stream in self._streams:
            stream.close()
        self.reaped.set()

    def _send(self, kind: int, body: bytes) -> None:
        message = wire.HEADER.pack(kind, len(body)) + body
        try:
            complete = os.write(self._input, message) == len(message)
        except BrokenPipeError:
            return  # it is gone, and `listen` is about to see that
        except BlockingIOError:
            complete = False
        if not complete:
            self._kill_group()

    def _kill_group(self) -> None:
        """Kill it and whatever it has started: its session is a process group of its own."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _handle(self, received: bytes) -> bytes:
        """Returns the beginning of a record whose rest has not come yet."""
        done = []
        place = 0
        while len(received) - place >= wire.RECORD.size:
            kind, number, value = wire.RECORD.unpack_from(received, place)
            start = place + wire.RECORD.size
            if kind == wire.DONE:
                done.append((number, value))
                place = start
                continue
            if len(received) - start < value:
                break
            place = start + value
            self._take(kind, number, received[start:place])
        self._flying -= len(done)
        if not self.ending:
            outstanding = self._flying > 0 or self._calls
            self._expect_sign(self._limits.call_timeout_s if outstanding else math.inf)
        if done:
            self._on_done(done)
        return received[place:]

    def _take(self, kind: int, number: int, content: bytes) -> None:
        if number == wire.FAREWELL:
            farewell = json.loads(content)
            self.times, self.remaining = farewell["times"], farewell["remaining"]
            self.failures = [
                {**failed, "text": self._redact(str(failed["text"]))} for failed in farewell["failures"]
            ]
        elif call := self._calls.get(number):
            if kind == wire.PART:
                call.runs += content
            else:
                found: dict[str, object] = json.loads(content)
                if "text" in found:
                    found["text"] = self._redact(str(found["text"]))
                call.content = found
                del self._calls[number]
                call.answered.set()

    def _expect_sign(self, timeout_s: float) -> None:
        if not self.ending:
            self._set_deadline(timeout_s)

    def _set_deadline(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._silence.deadline = trio.current_time() + timeout_s


async def call_once(
    library: Path, call: str, order: Mapping[str, object], limits: Limits, subject: str
) -> Mapping[str, object]:
    """Make one call about a VM, in a child process of its own, which is gone when this returns or raises.

    Args:
        library: The library's file.
        call: PrepareForAccess, EndAccess or Cleanup.
        order: What the call needs, secrets included.
        subject: What the call is about, for messages.

    Raises:
        VddkError: `code` is the library's. If it is None, the process was lost and the call may have taken effect.
    """
    lines: deque[str] = deque(maxlen=LOG_TAIL)
    try:
        child = await Child.spawn(library.parent, (), Redaction(order), lines, lambda done: None, limits)
    except OSError as exc:
        raise not_started(subject, exc) from exc
    answer: dict[str, object] | None = None
    message = {**order, "call": call, "grace_s": limits.end_timeout_s}
    started = time.perf_counter()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.listen)
            with suppress(ChildLost):
                answer, _ = await child.call(wire.ACCESS, message, limits.open_timeout_s)
            child.end()
    finally:
        await child.reap()
        log.debug("VDDK %s of %s took %.3f s.", call, subject, time.perf_counter() - started)
    if answer is None:
        raise call_lost(call, child.end_reason, subject, lines)
    if "error" in answer:
        raise answered(answer, subject, lines)
    return answer


def child_environment(
    environment: Mapping[str, str], libraries: Path, secrets: Sequence[str]
) -> dict[str, str]:
    """The environment of a child: where its libraries are, and no secret."""
    inherited = {
        name: value
        for name, value in environment.items()
        if (name in INHERITED or name.startswith(INHERITED_PREFIXES)) and value not in secrets
    }
    return inherited | {"LD_LIBRARY_PATH": str(libraries)}
