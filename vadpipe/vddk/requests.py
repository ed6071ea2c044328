"""The read requests of an open disk: waiting, or in flight with the child process.

A read of the engine is a batch of requests of at most 1 MiB. Batches share the connection first come, first served.
A request succeeds, or its child is lost (it returns to the front and is read anew), or it fails for good (its batch
fails), or its batch is withdrawn.

A batch is finished only when none of its requests is in flight: until then the library may still write into its
buffer.
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
    """The requests of one read. `error` is the VixError that `failed` ended with."""

    unfinished: int = 0
    finished: trio.Event = field(default_factory=trio.Event)
    abandoned: bool = False
    failed: Request | None = None
    error: int = 0

    def finish_one(self) -> None:
        self.unfinished -= 1
        if not self.unfinished:
            self.finished.set()


@dataclass(eq=False, slots=True)
class Request:
    """`count` sectors from `sector` on, to byte `position` of the shared memory."""

    batch: Batch
    position: int
    sector: int
    count: int

    @property
    def offset(self) -> int:
        return self.sector * SECTOR

    @property
    def length(self) -> int:
        return self.count * SECTOR


def split(
    batch: Batch, position: int, offset: int, wanted: Extents, size: int, capacity: int
) -> list[Request]:
    """The requests for `wanted`, widened to clusters of 4 KiB: unbuffered reading demands them.

    Args:
        position: Byte position in the shared memory for disk offset `offset`, a multiple of 4 KiB.
        size: Bytes of a request at most.
        capacity: Bytes of the disk; only its tail may end at any sector.

    Raises:
        ValueError: The extents do not fit the buffer or the disk.
    """
    if position < 0 or offset % CLUSTER:
        raise ValueError(
            f"A read at offset {offset} needs a buffer that is held and a multiple of {CLUSTER}."
        )
    end = min(offset + SPAN, capacity)
    if len(wanted) and (int(wanted.start[0]) < offset or int(wanted.end[-1]) > end):
        raise ValueError(f"{wanted} is not inside [{offset}, {end}).")
    requests = [
        Request(batch, position + start - offset, start // SECTOR, min(size, stop - start) // SECTOR)
        for first, length in wanted.aligned(CLUSTER, capacity)
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
        """READ records of waiting requests, which are in flight from now on: as many as the depth allows."""
        records = []
        while self._waiting and len(self._flying) < self._depth:
            request = self._waiting.popleft()
            self._last_id = self._last_id % _MAX_ID + 1
            self._flying[self._last_id] = request
            records.append(wire.READ.pack(request.position, request.sector, request.count, self._last_id))
        return records

    def landed(self, request_id: int) -> Request | None:
        """Take the request that ended out of flight; None for an unknown id."""
        return self._flying.pop(request_id, None)

    def put_back(self, request: Request) -> None:
        """Read it anew, before all others."""
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
