"""A connection that writes: nothing is done before a flush, nor before the disk was closed in order.

The library acknowledges a write when the host has it. What happens to it when the connection ends before a flush,
nobody promises, and its buffer is in other use by then. So the connection keeps the digest of each request since
the last flush (`Ledger`). After a lost connection it reads these places through the next one before it flushes:
what is there is right, and what is missing is an error that says so, because only the caller can write it again,
from the beginning. A flush is made by itself after each GiB, so that this costs little.

What was in flight when a connection was lost is written again by the next one, as reads are read again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio
import xxhash

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import MoverError
from pipeline.units import SPAN

from . import wire
from .abi import SECTOR, VIX_E_FILE_ALREADY_LOCKED, VIX_E_FILE_READ_ONLY
from .client import Child, ChildLost, Limits
from .connection import Connection
from .errors import VddkError, answered, call_lost
from .ledger import Acknowledged, Ledger
from .requests import Batch, Request

log = logging.getLogger(__name__)

_LOCKED = (
    "Power the VM off, end other programs that have the disk open, and remove the VM's snapshots unless the"
    " transport needs one."
)
_REMEDIES = {
    VIX_E_FILE_ALREADY_LOCKED: _LOCKED,
    VIX_E_FILE_READ_ONLY: "Check that the disk is one of this VM, and that nothing makes its datastore read-only.",
}


class WritableConnection(Connection):
    """An open disk in a child process, for writing and reading. Arguments as of Connection.

    Args:
        memory: Descriptor of the file that holds the callers' buffers.
    """

    def __init__(
        self, library: Path, memory: int, path: str, order: Callable[[], dict[str, object]], limits: Limits
    ) -> None:
        scratch = BufferPool(SPAN)  # where the proof reads to: callers may hold all buffers of theirs
        super().__init__(library, [memory, scratch.fileno()], path, order, limits)
        self._scratch = scratch.acquire_nowait()
        self._ledger = Ledger()
        self._flushing = trio.Lock()
        self._retired: Child | None = None  # replaced although nothing failed
        self._dirty = (0, 0, 0)  # the number of a child, from where to where it has written

    async def write(self, batch: Batch, requests: Sequence[Request], buffer: Buffer) -> None:
        """Write the requests of a batch, whose bytes are in `buffer`. When this returns they are acknowledged.

        Raises:
            VddkError: One of them failed for good, or the connection did.
        """
        await trio.to_thread.run_sync(_digest, requests, buffer)
        for request in requests:
            self._ledger.supersede(request.offset, request.length)
        await self.transfer(batch, requests)
        if self._ledger.is_full:
            await self.flush()

    async def flush(self) -> None:
        """Return when everything that was acknowledged before this call is on the disk.

        Raises:
            VddkError: The flush failed, or writes are missing after a lost connection: the disk is of no use.
        """
        async with self._flushing:
            self._raise_failure()
            if not self._ledger:
                await trio.lowlevel.checkpoint()
                return
            taken: Sequence[Acknowledged] = ()

            async def prove() -> None:
                nonlocal taken
                await self._prove()
                taken = self._ledger.all()

            try:
                await self._command(wire.FLUSH, "Flush", {}, prove)
            except MoverError as exc:
                self._fail(exc)  # a second flush might succeed and say nothing about what the first one lost
                raise
            self._ledger.flushed(taken)

    async def metadata(self, action: str, key: str, value: str = "") -> bytes:
        """ReadMetadata, WriteMetadata or GetMetadataKeys. Raises VddkError."""
        return await self._command(
            wire.METADATA, action, {"action": action, "key": key, "value": value}, self.ready_child
        )

    async def renew(self, offset: int, length: int) -> None:
        """Close and open the disk if this range was written since it was opened.

        A handle does not know what was allocated by its own writes.

        Raises:
            VddkError: The disk could not be flushed or closed.
        """
        connection, start, end = self._dirty
        if connection != self._counts.children or offset >= end or offset + length <= start:
            return
        await self.flush()
        child = await self.ready_child()
        self._retired = child
        child.end()
        await child.reaped.wait()
        if (problem := self._failure_to_close(child)) is not None:
            raise problem

    # --- the proof

    async def _prove(self) -> None:
        """Read what earlier connections wrote through this one, and compare. Raises VddkError."""
        while True:
            await self.ready_child()
            connection = self._counts.children
            entries = self._ledger.of_others(connection)
            if self._ledger.blurred not in (None, connection):
                raise self._missing(
                    "was written over in part, so nothing tells whether it is all there after a lost connection"
                )
            if not entries:
                return
            log.info(
                "A connection of %s was lost before a flush: %d requests that it wrote are read again.",
                self._path, len(entries),
            )  # fmt: skip
            for group in _groups(entries):
                await self._prove_group(group)
            if self._counts.children == connection:
                self._ledger.proven(entries, connection)

    async def _prove_group(self, entries: Sequence[Acknowledged]) -> None:
        batch, position, requests = Batch(proof=True), 0, []
        for entry in entries:
            place = entry.offset // SECTOR, entry.length // SECTOR
            requests.append(Request(batch, position, *place, wire.SCRATCH))
            position += entry.length
        batch.unfinished = len(requests)
        await self.transfer(batch, requests)
        await trio.to_thread.run_sync(_digest, requests, self._scratch)
        for entry, request in zip(entries, requests, strict=True):
            if entry.digest != request.digest and self._ledger.holds(entry):
                where = f"at offset {entry.offset}, length {entry.length}"
                raise self._missing(
                    f"{where}, is not there after a lost connection, although the library had acknowledged it",
                    offset=entry.offset,
                    length=entry.length,
                )

    def _missing(self, what: str, **place: object) -> VddkError:
        return VddkError(
            f"What was written to {self._path} {what}.",
            transient=True,
            remedy="Write the disk again from the beginning.",
            call="WriteAsync",
            code=None,
            path=self._path,
            **place,
        )

    # --- the child

    async def _command(
        self, kind: int, call: str, order: Mapping[str, object], before: Callable[[], Awaitable[object]]
    ) -> bytes:
        """Give an order to the child, to the next one if that is lost. `before`: what each of them does first."""
        problem: MoverError | None = None
        for _ in range(self._limits.restarts + 1):
            await before()
            while (child := self._child) is None:  # lost just now
                await before()
            try:
                self._calling = call
                content, runs = await child.call(kind, order, self._limits.call_timeout_s)
            except ChildLost:
                await child.reaped.wait()
                problem = call_lost(call, child.end_reason, self._path, self._lines)
                continue
            finally:
                self._calling = "Open"
            if not content:
                self._failures = 0
                return runs
            problem = for_writing(answered(content, self._path, self._lines))
            if not problem.transient:
                break
            self._replace(child, problem)
            await child.reaped.wait()
        assert problem is not None
        raise problem

    def _succeeded(self, request: Request) -> None:
        super()._succeeded(request)
        if request.flags & wire.WRITE:
            place, connection = (request.offset, request.length), self._counts.children
            self._ledger.add(Acknowledged(*place, request.digest, connection))
            written, start, end = self._dirty
            if written != connection:
                start, end = place[0], 0
            self._dirty = connection, min(start, place[0]), max(end, sum(place))

    def _request_error(self, error: int, request: Request) -> MoverError:
        return for_writing(super()._request_error(error, request))

    async def _finish(self) -> None:
        await self.flush()
        await self.ready_child()  # what closes the disk in order

    def _not_closed(self) -> MoverError | None:
        return self._failure_to_close(self._last)

    def _failure_to_close(self, child: Child | None) -> MoverError | None:
        if child is None or child.killed or not child.clean:
            how = child.end_reason if child is not None else "has gone"
            return call_lost("Close", f"{how} before it had closed the disk", self._path, self._lines)
        if child.failures:
            return for_writing(answered(child.failures[0], self._path, self._lines))
        return None

    def _reason(
        self, child: Child, answer: dict[str, object] | None, lost: Sequence[Request]
    ) -> MoverError | None:
        if child is self._retired and child.clean:
            return None
        problem = super()._reason(child, answer, lost)
        if problem is None:
            return None
        if isinstance(problem, VddkError) and problem.facts.get("code") == VIX_E_FILE_ALREADY_LOCKED:
            # The host keeps the lock of a connection that was lost for a while.
            problem.transient = problem.transient or self.opened.capacity > 0
        return for_writing(problem)


def for_writing(problem: MoverError) -> MoverError:
    """The same error with a remedy for somebody who writes."""
    remedy = _REMEDIES.get(problem.facts.get("code"))  # type: ignore[call-overload]
    if remedy is None or not isinstance(problem, VddkError):
        return problem
    return VddkError(problem.problem, transient=problem.transient, remedy=remedy, **problem.facts)


def _digest(requests: Sequence[Request], buffer: Buffer) -> None:
    memory, first = buffer.memory, buffer.position
    for request in requests:
        place = request.position if request.flags & wire.SCRATCH else request.position - first
        request.digest = xxhash.xxh3_64_intdigest(memory[place : place + request.length])


def _groups(entries: Sequence[Acknowledged]) -> Sequence[Sequence[Acknowledged]]:
    """Parts that fit the scratch buffer."""
    groups: list[list[Acknowledged]] = []
    room = 0
    for entry in entries:
        if entry.length > room:
            groups.append([])
            room = SPAN
        groups[-1].append(entry)
        room -= entry.length
    return groups
