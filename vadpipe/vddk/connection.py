"""Keeping one disk open: a child process at work, and another one when it is lost.

Strategy. VDDK crashes, hangs and loses its host in the field, so losing the child is an ordinary event.
One task (`_serve`) owns the child. Whoever reads only adds requests to a queue; the queue outlives the
child, and what was in flight when it was lost is read anew by the next one, which is started when there is
something to do. Setbacks are counted in a row: a read that succeeds forgets them, a final error code or one
setback too many ends the connection for good, and everybody who waits gets that one error.

Two rules keep memory and processes safe:

- The library writes into a caller's buffer until the request's completion or the child's death, whichever
  is first. So a read that fails or is cancelled does not return before its last request has landed; when
  that takes too long the child is killed for it. Only a reaped child counts as dead.
- Clean-up is shielded from cancellation and bounded: the child is asked to leave, then killed, and waited
  for. The serving task never raises: a host's own exception stays the only one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from pipeline.errors import MoverError

from . import wire
from .abi import SECTOR
from .client import LOG_TAIL, Child, ChildLost
from .codes import code_of
from .failures import (
    answered,
    call_failed,
    child_lost,
    given_up,
    not_started,
    other_disk,
)
from .limits import Limits
from .requests import Batch, Request, RequestQueue
from .tally import Tally, VddkStatistics

# How long a cancelled read waits for requests in flight before the child is killed. A request of 1 MiB
# takes tens of milliseconds; a kill costs the other reads a reconnect.
WITHDRAW_S = 5.0

# A query that loses its child twice is blamed for it: reading everything is slower, but works.
QUERY_ATTEMPTS = 2


class QueryRefused(Exception):
    """There is no answer to a query of allocated blocks; the text says why."""


@dataclass(frozen=True)
class Opened:
    """What the library said of the disk. Bytes."""

    capacity: int
    transport: str


class Connection:
    """An open disk in a child process; `opened` is set while it serves.

    `order` makes the START order, secrets included, each time that a child is started.
    """

    def __init__(
        self, library: Path, memory: int, path: str, order: Callable[[], dict[str, object]], limits: Limits
    ) -> None:
        self._library, self._memory, self._path = library, memory, path
        self._order, self._limits = order, limits
        self._queue = RequestQueue(limits.depth)
        self._log: deque[str] = deque(maxlen=LOG_TAIL)
        self._child: Child | None = None
        self._wanted = trio.Event()  # somebody needs a child
        self._ready = trio.Event()  # there is one, or there never will be again
        self._service = trio.CancelScope(shield=True)
        self._stopped = trio.Event()
        self._closing = False
        self._setbacks = 0
        self._refused: MoverError | None = None  # why the current child has to be replaced
        self._failure: Exception | None = None
        self._tally = Tally()
        self.opened = Opened(0, "")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Opened at the start, closed at the end. Raises VddkError or ConfigError when it cannot be opened."""
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve)
            try:
                await self.ready_child()
                yield
            except BaseException as exc:  # raised again below, outside of the nursery: bare, not in a group
                failure = exc
            await self._close()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def read(self, batch: Batch, requests: Sequence[Request]) -> None:
        """Run the requests of a batch. When this returns or raises, none of them is in flight.

        Raises VddkError.
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
            raise self._read_error(batch.error, batch.failed)
        if batch.abandoned:
            self._raise_failure()

    async def ready_child(self) -> Child:
        """The child, once the disk is open. Raises VddkError or ConfigError when it cannot be."""
        while self._child is None:
            self._raise_failure()
            self._wanted.set()
            await self._ready.wait()
        return self._child

    async def query(self, start: int, count: int, *, probing: bool = False) -> bytes:
        """Allocated runs of a range of sectors, as pairs of int64 sectors.

        Raises QueryRefused when there is no answer, VddkError when there is no connection any more.
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
                self._setbacks = 0
                return runs
            problem = answered(content, self._path, self._log)
            if not problem.transient:
                raise QueryRefused(problem.problem)
            self._replace(child, problem)
            await child.reaped.wait()
        raise QueryRefused("The query of allocated blocks lost its connection again and again.")

    def statistics(self) -> VddkStatistics:
        return self._tally.statistics()

    # --- requests

    def _pump(self) -> None:
        if self._child is None:
            self._wanted.set()
        elif not self._child.ending and (reads := self._queue.take()):
            self._tally.requests += len(reads)
            self._child.submit(reads)

    def _done(self, results: Sequence[tuple[int, int]]) -> None:
        for request_id, error in results:
            if (request := self._queue.landed(request_id)) is None:
                continue
            if not error:
                self._setbacks = 0
                self._tally.bytes_read += request.length
                request.batch.finish_one()
            elif code_of(error).transient and self._child is not None:
                self._queue.put_back(request)
                self._replace(self._child, self._read_error(error, request))
            else:
                batch = request.batch
                if not batch.abandoned:
                    batch.failed, batch.error = request, error
                    self._queue.abandon(batch)
                batch.finish_one()
        self._pump()

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
                        await self._set_back(problem)
        finally:
            self._fail(trio.ClosedResourceError("the disk was closed"))
            self._stopped.set()

    async def _set_back(self, problem: MoverError) -> None:
        self._setbacks += 1
        if not problem.transient or self._setbacks > self._limits.restarts:
            self._fail(given_up(problem, self._setbacks - 1))
            self._service.cancel()  # from the next line on
        await trio.sleep(self._limits.restart_pause_s * 2 ** (self._setbacks - 1))

    async def _run_child(self) -> MoverError | None:
        """One child from its start to its end. Returns why it has to be replaced, None if there is no reason."""
        self._refused = None
        try:
            order = self._order()
            secrets = [str(order[name]) for name in ("password", "cookie") if order[name]]
            child = await Child.spawn(
                self._library.parent, self._memory, secrets, self._log, self._done, self._limits
            )
        except MoverError as exc:
            return exc
        except OSError as exc:
            return not_started(self._path, exc)
        self._tally.children += 1
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
            self._tally.count_child(child.clean, child.remaining, child.times)
            if len(self._queue):
                self._wanted.set()
        return self._reason(child, answer, lost)

    async def _start(self, child: Child, order: dict[str, object]) -> dict[str, object] | None:
        order = order | {"memory": self._memory, "grace_s": self._limits.end_timeout_s}
        try:
            answer, _ = await child.call(wire.START, order, self._limits.open_timeout_s)
        except ChildLost:
            return None
        if "error" in answer:
            child.end()
            return answer
        opened = Opened(int(str(answer["capacity"])) * SECTOR, str(answer["transport"]))
        if self.opened.capacity not in (0, opened.capacity):
            self._replace(child, other_disk(self._path, self.opened.capacity, opened.capacity))
        else:
            self.opened = opened
            self._child, self._wanted = child, trio.Event()
            self._ready.set()
            self._pump()
        return answer

    def _detach(self) -> None:
        self._child = None
        if self._ready.is_set():
            self._ready = trio.Event()

    def _replace(self, child: Child, problem: MoverError) -> None:
        """Let the child finish what is in flight and leave; what is left goes to the next one."""
        if not child.ending:
            self._refused = problem
            child.end()

    def _reason(
        self, child: Child, answer: dict[str, object] | None, lost: Sequence[Request]
    ) -> MoverError | None:
        if answer is not None and "error" in answer:
            return answered(answer, self._path, self._log)
        if self._refused is not None or child.killed:
            return self._refused
        place = {"offset": lost[0].offset, "length": lost[0].length} if lost else {}
        return child_lost(child.ending_of_it, self._path, self._log, **place)

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
        """Everybody raises a copy: a traceback of their own."""
        if self._failure is not None:
            raise copy.copy(self._failure)

    def _read_error(self, error: int, request: Request) -> MoverError:
        if self._child is not None:
            self._child.drain_log()
        place = {"offset": request.offset, "length": request.length}
        return call_failed("ReadAsync", error, "", self._path, self._log, **place)
