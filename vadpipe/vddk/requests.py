"""The reads and writes of an open disk: waiting, or in flight with the child process.

A read or write of the engine is a batch of requests of at most 1 MiB. Batches share the connection first come,
first served. A request succeeds, or its child is lost (it returns to the front and is made anew), or it fails for
good (its batch fails), or its batch is withdrawn.

A batch is finished only when none of its requests is in flight: until then the library may still use its buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from pipeline.extents import Extents
from pipeline.units import CLUSTER, SPAN

from . import wire
from .abi import SECTOR

_MAX_ID = 0xFFFF_FFFF


@dataclass(eq=False)
class Batch:
    """The requests of one read or write. `error` is the VixError that `failed` ended with.

    `proof`: it reads again what was written before; such a success says nothing about other requests.
    """

    unfinished: int = 0
    finished: trio.Event = field(default_factory=trio.Event)
    abandoned: bool = False
    failed: Request | None = None
    error: int = 0
    proof: bool = False

    def finish_one(self) -> None:
        self.unfinished -= 1
        if not self.unfinished:
            self.finished.set()


@dataclass(eq=False, slots=True)
class Request:
    """`count` sectors from `sector` on, to or from byte `position` of the shared memory. `flags`: see wire.REQUEST.

    `digest` of what is written, for the proof that it is still there when its connection was lost.
    """

    batch: Batch
    position: int
    sector: int
    count: int
    flags: int = 0
    digest: int = 0

    @property
    def call(self) -> str:
        return "WriteAsync" if self.flags & wire.WRITE else "ReadAsync"

    @property
    def offset(self) -> int:
        return self.sector * SECTOR

    @property
    def length(self) -> int:
        return self.count * SECTOR


def split(
    batch: Batch,
    position: int,
    offset: int,
    wanted: Extents,
    size: int,
    capacity: int,
    *,
    write: bool = False,
) -> list[Request]:
    """The requests for `wanted`, in whole clusters of 4 KiB, which unbuffered access demands. Reads are widened.

    Args:
        position: Byte position in the shared memory for disk offset `offset`, a multiple of 4 KiB.
        size: Bytes of a request at most.
        capacity: Bytes of the disk; only its tail may end at any sector.

    Raises:
        ValueError: The extents do not fit the buffer or the disk; or they are to be written and no whole clusters.
    """
    if position < 0 or offset % CLUSTER:
        raise ValueError(
            f"A transfer at offset {offset} needs a buffer that is held and a multiple of {CLUSTER}."
        )
    end = min(offset + SPAN, capacity)
    if len(wanted) and (int(wanted.start[0]) < offset or int(wanted.end[-1]) > end):
        raise ValueError(f"{wanted} is not inside [{offset}, {end}).")
    aligned = wanted.aligned(CLUSTER, capacity)
    if write and aligned != wanted:
        raise ValueError(f"{wanted} is to be written and does not consist of whole clusters of {CLUSTER}.")
    flags = wire.WRITE if write else 0
    requests = [
        Request(batch, position + start - offset, start // SECTOR, min(size, stop - start) // SECTOR, flags)
        for first, length in aligned
        for stop in (first + length,)
        for start in range(first, stop, size)
    ]
    batch.unfinished = len(requests)
    return requests


class RequestQueue:
    """At most `depth` requests in flight with a child; the others wait in order."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._waiting: deque[Request] = deque()
        self._flying: dict[int, Request] = {}
        self._last_id = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def add(self, requests: Iterable[Request]) -> None:
        self._waiting.extend(requests)

    def take(self) -> list[bytes]:
        """REQUEST records of waiting requests, which are in flight from now on: as many as the depth allows."""
        records = []
        while self._waiting and len(self._flying) < self._depth:
            request = self._waiting.popleft()
            self._last_id = self._last_id % _MAX_ID + 1
            self._flying[self._last_id] = request
            place = request.position, request.sector, request.count
            records.append(wire.REQUEST.pack(*place, self._last_id, request.flags))
        return records

    def landed(self, request_id: int) -> Request | None:
        """Take the request that ended out of flight; None for an unknown id."""
        return self._flying.pop(request_id, None)

    def put_back(self, request: Request) -> None:
        """Make it anew, before all others."""
        if request.batch.abandoned:
            request.batch.finish_one()
        else:
            self._waiting.appendleft(request)

    def abandon(self, batch: Batch) -> None:
        """Forget the waiting requests of a batch; those in flight finish it."""
        batch.abandoned = True
        mine = [request for request in self._waiting if request.batch is batch]
        self._waiting = deque(request for request in self._waiting if request.batch is not batch)
        for _ in mine:
            batch.finish_one()

    def recover(self) -> list[Request]:
        """Put back everything in flight, after its child has ended. Returns it, oldest first."""
        lost = list(self._flying.values())
        self._flying.clear()
        for request in reversed(lost):
            self.put_back(request)
        return lost

    def abandon_all(self) -> None:
        """Finish every batch; none may be in flight."""
        for batch in {id(request.batch): request.batch for request in self._waiting}.values():
            self.abandon(batch)
