"""Keeping one disk open: a child process at work, and another one when it is lost.

VDDK crashes, hangs and loses its host in the field, so losing the child is an ordinary event. One task (`_serve`)
owns the child. Callers only add requests to a queue; the queue outlives the child, and the next child makes anew
what was in flight when the last one was lost. It is started when there is something to do. Failures are counted in
a row: a request that succeeds resets the count. A final error code, or one failure too many, ends the connection,
and everybody who waits gets that error. A child that was lost in a query of allocated blocks does not count: the
query is given up instead.

Two rules keep memory and processes safe:

- The library uses a caller's buffer until the request's completion or the child's death, whichever is first. So a
  transfer that fails or is cancelled does not return before its last request has ended; when that takes too long,
  the child is killed. Only a reaped child counts as dead.
- Clean-up is shielded from cancellation and bounded: the child is asked to leave, then killed, and waited for. The
  serving task never raises, so that an exception of the caller stays the only one.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from pipeline.errors import MoverError

from . import wire
from .abi import SECTOR
from .client import LOG_TAIL, Child, ChildLost, Limits, Redaction
from .codes import code_of
from .errors import answered, call_failed, child_lost, given_up, not_started, other_disk
from .requests import Batch, Request, RequestQueue

log = logging.getLogger(__name__)

# How long a cancelled transfer waits for requests in flight before the child is killed. A request of 1 MiB
# takes tens of milliseconds; a kill costs the others a reconnect.
WITHDRAW_S = 5.0

# A query that loses its child twice is given up: reading everything is slower, but works.
QUERY_ATTEMPTS = 2


@dataclass(frozen=True)
class VddkStatistics:
    """Counts of an open disk since it was opened.

    `restarts`: children after the first; `unclean`: children that did not end in order with status 0; `remaining`:
    hot-added disks of the VM that the last orderly one saw still attached; `calls`: library call -> (times called,
    seconds), of the orderly ones.
    """

    requests: int
    bytes_read: int
    bytes_written: int
    restarts: int
    unclean: int
    remaining: int
    calls: Mapping[str, tuple[int, float]]


@dataclass(eq=False)
class _Counts:
    """The counters behind `VddkStatistics`, over all children."""

    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    children: int = 0
    unclean: int = 0
    remaining: int = 0
    called: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_child(self, child: Child) -> None:
        """Add a child that has ended."""
        self.unclean += not child.clean
        if child.clean:
            self.remaining = child.remaining
        for name, (called, seconds) in child.times.items():
            self.called[name] += int(called)
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def statistics(self) -> VddkStatistics:
        calls = {name: (called, self.seconds[name]) for name, called in self.called.items()}
        restarts = max(0, self.children - 1)
        return VddkStatistics(
            self.requests, self.bytes_read, self.bytes_written, restarts, self.unclean, self.remaining, calls
        )


class QueryRefused(Exception):
    """A query of allocated blocks has no answer; the text is the reason."""


@dataclass(frozen=True)
class Opened:
    """The library's facts about the disk. `capacity` in bytes; `lacks`: functions missing in the library."""

    capacity: int
    transport: str
    lacks: Sequence[str] = ()


class Connection:
    """An open disk in a child process; `opened` is set while it serves.

    Args:
        memory: Descriptors of the files that children map; requests name places in the first.
        order: Makes the START order, secrets included, for each child.
    """

    def __init__(
        self,
        library: Path,
        memory: Sequence[int],
        path: str,
        order: Callable[[], dict[str, object]],
        limits: Limits,
    ) -> None:
        self._library, self._memory, self._path = library, memory, path
        self._order, self._limits = order, limits
        # A child keeps as many requests waiting as in flight, and issues the next one at a completion itself.
        self._queue = RequestQueue(2 * limits.depth)
        self._lines: deque[str] = deque(maxlen=LOG_TAIL)
        self._child: Child | None = None
        self._last: Child | None = None  # the last one that had the disk open
        self._wanted = trio.Event()  # somebody needs a child
        self._ready = trio.Event()  # there is one, or there never will be again
        self._service = trio.CancelScope(shield=True)
        self._stopped = trio.Event()
        self._closing = False
        self._failures = 0  # in a row
        self._calling = "Open"  # what a child without requests is lost in
        self._excused = False  # the current child was lost by a query
        self._refused: MoverError | None = None  # why the current child has to be replaced
        self._failure: Exception | None = None
        self._counts = _Counts()
        self.opened = Opened(0, "")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Open the disk, and close it at the end.

        Raises:
            VddkError: It cannot be opened.
            ConfigError: The library or a secret is missing.
        """
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve)
            try:
                await self.ready_child()
                yield
                await self._finish()
            except BaseException as exc:  # raised again below, outside of the nursery: bare, not in a group
                failure = exc
            await self._close()
        failure = failure or self._not_closed()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def _finish(self) -> None:
        """What a body that ended normally leaves to be done before the disk is closed."""

    def _not_closed(self) -> MoverError | None:
        """The failure to close the disk. For a reader it has no meaning."""
        return None

    async def transfer(self, batch: Batch, requests: Sequence[Request]) -> None:
        """Run the requests of a batch. When this returns or raises, none of them is in flight.

        Raises:
            VddkError: One of them failed for good, or the connection did.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._raise_failure()
        self._queue.add(requests)
        self._pump()
        try:
            await batch.finished.wait()
        except BaseException:
            await self._withdraw(batch)
            raise
        if batch.failed is not None:
            raise self._request_error(batch.error, batch.failed)
        if batch.abandoned:
            self._raise_failure()

    async def ready_child(self) -> Child:
        """The child, once the disk is open. Raises VddkError or ConfigError if it cannot be opened."""
        while self._child is None:
            self._raise_failure()
            self._wanted.set()
            await self._ready.wait()
        return self._child

    async def query(self, start: int, count: int, *, probing: bool = False) -> bytes:
        """Allocated runs of `count` sectors from `start` on, as pairs of int64: first sector, number of sectors.

        Args:
            probing: The library's warnings go to DEBUG.

        Raises:
            QueryRefused: The library or the host has no answer.
            VddkError: The connection failed for good.
        """
        order = {"start": start, "count": count, "probing": probing}
        for _ in range(QUERY_ATTEMPTS):
            child = await self.ready_child()
            try:
                content, runs = await child.call(wire.QUERY, order, self._limits.call_timeout_s)
            except ChildLost:
                await child.reaped.wait()
                continue
            if not content:
                self._failures = 0
                return runs
            problem = answered(content, self._path, self._lines)
            if not problem.transient:
                raise QueryRefused(problem.problem)
            if not child.ending:
                self._excused = True
                self._replace(child, problem)
            await child.reaped.wait()
        raise QueryRefused(f"The query of allocated blocks lost its connection {QUERY_ATTEMPTS} times.")

    def statistics(self) -> VddkStatistics:
        return self._counts.statistics()

    # --- requests

    def _pump(self) -> None:
        if self._child is None:
            self._wanted.set()
        elif not self._child.ending and (requests := self._queue.take()):
            self._counts.requests += len(requests)
            self._child.submit(requests)

    def _done(self, results: Sequence[tuple[int, int]]) -> None:
        for request_id, error in results:
            if (request := self._queue.landed(request_id)) is None:
                continue
            if not error:
                self._failures *= request.batch.proof
                self._succeeded(request)
                request.batch.finish_one()
            elif code_of(error).transient and self._child is not None:
                self._queue.put_back(request)
                self._replace(self._child, self._request_error(error, request))
            else:
                batch = request.batch
                if not batch.abandoned:
                    batch.failed, batch.error = request, error
                    self._queue.abandon(batch)
                batch.finish_one()
        self._pump()

    def _succeeded(self, request: Request) -> None:
        if request.flags & wire.WRITE:
            self._counts.bytes_written += request.length
        else:
            self._counts.bytes_read += request.length

    async def _withdraw(self, batch: Batch) -> None:
        self._queue.abandon(batch)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(WITHDRAW_S):
                await batch.finished.wait()
            if not batch.finished.is_set() and self._child is not None:
                self._child.kill()
            await batch.finished.wait()

    # --- the child

    async def _serve(self) -> None:
        try:
            with self._service:
                while not self._closing:
                    await self._wanted.wait()
                    problem = await self._run_child()
                    if problem is not None and not self._closing:
                        await self._count_failure(problem)
        finally:
            self._fail(trio.ClosedResourceError("the disk was closed"))
            self._stopped.set()

    async def _count_failure(self, problem: MoverError) -> None:
        if self._excused:
            log.info("The VDDK connection of %s was lost in a query: %s", self._path, problem.problem)
            return
        self._failures += 1
        if not problem.transient or self._failures > self._limits.restarts:
            log.info("The VDDK connection of %s failed for good: %s", self._path, problem.problem)
            self._fail(given_up(problem, self._failures - 1))
            self._service.cancel()  # from the next line on
            await trio.lowlevel.checkpoint()
        pause_s = self._limits.restart_pause_s * 2 ** (self._failures - 1)
        log.info(
            "The VDDK connection of %s is made anew in %.1f s (failure %d, at most %d in a row are retried): %s",
            self._path, pause_s, self._failures, self._limits.restarts, problem.problem,
        )  # fmt: skip
        await trio.sleep(pause_s)

    async def _run_child(self) -> MoverError | None:
        """Run one child from start to end. Returns why it has to be replaced, None if there is no reason."""
        self._refused, self._excused = None, False
        try:
            order = self._order()
            child = await Child.spawn(
                self._library.parent, self._memory, Redaction(order), self._lines, self._done, self._limits
            )
        except MoverError as exc:
            return exc
        except OSError as exc:
            return not_started(self._path, exc)
        self._counts.children += 1
        lost: list[Request] = []
        answer: dict[str, object] | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.listen)
                answer = await self._start(child, order)
        finally:
            self._detach()
            await child.reap()
            lost = self._queue.recover()
            self._counts.add_child(child)
            self._log_end(child)
            if len(self._queue):
                self._wanted.set()
        if answer is not None and "error" not in answer and child.unanswered:
            self._excused = True
        return self._reason(child, answer, lost)

    def _log_end(self, child: Child) -> None:
        for name, (called, seconds) in sorted(child.times.items()):
            log.debug("VDDK %s of %s: %d calls, %.3f s in total.", name, self._path, called, seconds)
        if not child.clean:
            log.info("The VDDK process %d of %s %s.", child.pid, self._path, child.end_reason)

    async def _start(self, child: Child, order: dict[str, object]) -> dict[str, object] | None:
        limits = self._limits
        order = order | {"memory": list(self._memory), "grace_s": limits.end_timeout_s, "depth": limits.depth}
        started = time.perf_counter()
        try:
            answer, _ = await child.call(wire.START, order, limits.open_timeout_s)
        except ChildLost:
            return None
        if "error" in answer:
            child.end()
            return answer
        lacks = answer["lacks"]
        assert isinstance(lacks, list)
        opened = Opened(int(str(answer["capacity"])) * SECTOR, str(answer["transport"]), lacks)
        log.info(
            "%s is open over %s: %d bytes, %.2f s, %s in process %d.",
            self._path, opened.transport, opened.capacity, time.perf_counter() - started, self._library, child.pid,
        )  # fmt: skip
        if lacks:
            log.info("%s lacks %s; vadpipe works without.", self._library, ", ".join(lacks))
        if self.opened.capacity not in (0, opened.capacity):
            self._replace(child, other_disk(self._path, self.opened.capacity, opened.capacity))
        else:
            self.opened = opened
            self._child, self._wanted = child, trio.Event()
            self._last = child
            self._ready.set()
            self._pump()
        return answer

    def _detach(self) -> None:
        self._child = None
        if self._ready.is_set():
            self._ready = trio.Event()

    def _replace(self, child: Child, problem: MoverError) -> None:
        """Let the child finish what the library works on and leave; the rest goes to the next one."""
        if not child.ending:
            self._refused = problem
            child.end()

    def _reason(
        self, child: Child, answer: dict[str, object] | None, lost: Sequence[Request]
    ) -> MoverError | None:
        if answer is not None and "error" in answer:
            return answered(answer, self._path, self._lines)
        if self._refused is not None or child.killed:
            return self._refused
        if not lost:
            return child_lost(self._calling, child.end_reason, self._path, self._lines)
        place = {"offset": lost[0].offset, "length": lost[0].length}
        return child_lost(lost[0].call, child.end_reason, self._path, self._lines, **place)

    async def _close(self) -> None:
        self._closing = True
        if self._child is None:
            self._service.cancel()
        else:
            self._child.end()
        with trio.CancelScope(shield=True):  # bounded: the child has a deadline for its end
            await self._stopped.wait()

    # --- errors

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
            self._queue.abandon_all()
            self._ready.set()

    def _raise_failure(self) -> None:
        """Raise a copy, so that each caller has a traceback of its own."""
        if self._failure is not None:
            raise copy.copy(self._failure)

    def _request_error(self, error: int, request: Request) -> MoverError:
        if self._child is not None:
            self._child.drain_log()
        place = {"offset": request.offset, "length": request.length}
        return call_failed(request.call, error, "", self._path, self._lines, **place)
