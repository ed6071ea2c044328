"""The mover's end of one VDDK child process: starting it, talking to it, ending it.

Requests are written without waiting: what can be outstanding is far below the 64 KiB of a pipe, so a full
pipe means a child that is stuck. One wake-up of `listen` handles all completions that have come by then.

Patience: while something is outstanding, each sign of life renews a deadline; when it passes, the child is
killed. At its end a child has its own deadline. A child is never left to itself.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from . import wire
from .limits import Limits

PROGRAM = Path(__file__).with_name("child.py")

# A killed process is gone in milliseconds, unless the kernel holds it in an I/O of its own.
REAP_S = 10.0

# What the child inherits: nothing that could be a secret. VADPIPE_ are switches of our own.
INHERITED = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
INHERITED_PREFIXES = ("LC_", "VADPIPE_")

LOG_TAIL = 60  # lines kept for error messages

Done = Callable[[Sequence[tuple[int, int]]], None]


class ChildLost(Exception):
    """The child ended before it answered."""


@dataclass(eq=False)
class _Call:
    answered: trio.Event
    runs: bytearray
    content: dict[str, object] | None = None


class Child:
    """A running child process. `on_done` gets (request id, VixError) pairs, many at a time.

    `listen` has to run until it returns, and then `reap`.
    """

    def __init__(self, process: trio.Process, log: deque[str], on_done: Done, limits: Limits) -> None:
        streams = process.stdin, process.stdout, process.stderr
        self._streams = [stream for stream in streams if isinstance(stream, trio.lowlevel.FdStream)]
        self._input, self._output, self._errors = (stream.fileno() for stream in self._streams)
        self._process = process
        self._log, self._half_line = log, b""
        self._on_done = on_done
        self._limits = limits
        self._patience, self._timeout_s = trio.CancelScope(), math.inf
        self._calls: dict[int, _Call] = {}
        self._last_call = wire.FAREWELL
        self._flying = 0
        self.at_end = False  # its output ended: no answer will come any more
        self.ending = False  # it was asked to leave
        self.silent = False  # it was killed because it gave no sign of life
        self.killed = False  # it was killed because the caller wanted that
        self.reaped = trio.Event()
        self.times: dict[str, list[float]] = {}
        self.remaining = 0  # hot-added disks that its Cleanup could not detach

    @classmethod
    async def spawn(
        cls,
        libraries: Path,
        memory: int | None,
        secrets: Sequence[str],
        log: deque[str],
        on_done: Done,
        limits: Limits,
    ) -> Child:
        """Start a child that finds its libraries in `libraries` and may map the file `memory`. Raises OSError."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=() if memory is None else (memory,),
            env=child_environment(os.environ, libraries, secrets),
            start_new_session=True,  # the terminal's Ctrl-C is for the mover, which ends its children in order
        )
        return cls(process, log, on_done, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def clean(self) -> bool:
        return self._process.returncode == 0

    @property
    def ending_of_it(self) -> str:
        """How it came to its end, for people; call it after `reap`."""
        if self.silent:
            return f"gave no sign of life for {self._timeout_s:g} s and was killed"
        status = self._process.returncode
        if status is None:
            return "does not end, not even killed"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def submit(self, reads: Sequence[bytes]) -> None:
        """Send READ records."""
        self._flying += len(reads)
        self._send(wire.READS, b"".join(reads))
        self._be_patient(self._limits.call_timeout_s)

    async def call(
        self, kind: int, order: Mapping[str, object], timeout_s: float
    ) -> tuple[dict[str, object], bytes]:
        """Send an order and wait for its answer: the JSON half and the binary half. Raises ChildLost."""
        if self.at_end or self.ending:
            raise ChildLost
        self._last_call += 1
        number = self._last_call
        call = self._calls[number] = _Call(trio.Event(), bytearray())
        self._send(kind, json.dumps({**order, "id": number}).encode())
        self._be_patient(timeout_s)
        try:
            await call.answered.wait()
        finally:
            self._calls.pop(number, None)
        if call.content is None:
            raise ChildLost
        return call.content, bytes(call.runs)

    def end(self) -> None:
        """Ask it to finish what is in flight, to close the disk and to leave."""
        if not self.ending:
            self.ending = True
            self._streams[0].close()
            self._set_deadline(self._limits.end_timeout_s)

    def kill(self) -> None:
        self.killed = True
        self._slay()

    async def listen(self) -> None:
        """Handle what it sends, and keep the tail of its log, until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to_log)
            with self._patience:
                await self._listen_to_output()
            if self._patience.cancelled_caught:
                self.silent = True
                self._slay()
            self.drain_log()
            nursery.cancel_scope.cancel()
        self.at_end = True
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
        self._log.extend(line.decode(errors="replace") for line in lines if line.strip())
        return bool(chunk)

    async def reap(self) -> None:
        """Wait for the process to be gone; kill it first unless it ended its output itself."""
        with trio.move_on_after(REAP_S, shield=True):
            if not self.at_end:
                self._slay()
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
            self._slay()

    def _slay(self) -> None:
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
            self._be_patient(self._limits.call_timeout_s if outstanding else math.inf)
        if done:
            self._on_done(done)
        return received[place:]

    def _take(self, kind: int, number: int, content: bytes) -> None:
        if number == wire.FAREWELL:
            farewell = json.loads(content)
            self.times, self.remaining = farewell["times"], farewell["remaining"]
        elif call := self._calls.get(number):
            if kind == wire.PART:
                call.runs += content
            else:
                call.content = json.loads(content)
                del self._calls[number]
                call.answered.set()

    def _be_patient(self, timeout_s: float) -> None:
        if not self.ending:
            self._set_deadline(timeout_s)

    def _set_deadline(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._patience.deadline = trio.current_time() + timeout_s


def child_environment(
    environment: Mapping[str, str], libraries: Path, secrets: Sequence[str]
) -> dict[str, str]:
    """The environment of a child: the library's own libraries, for this process only, and no secret."""
    inherited = {
        name: value
        for name, value in environment.items()
        if (name in INHERITED or name.startswith(INHERITED_PREFIXES)) and value not in secrets
    }
    return inherited | {"LD_LIBRARY_PATH": str(libraries)}
