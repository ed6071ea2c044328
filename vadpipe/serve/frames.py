"""Decoded frames for many readers: a cache with a bound, each frame decoded once, on threads.

Whoever wants frames waits for them together with all others who want the same. Frames that wait are decoded in
groups: the one that waits longest, and with it those of a small window that lie behind it in the same pack, so
that a store is asked once for neighbours and one trip to a thread serves several. Frames that are only expected
come after those that somebody waits for.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import trio

from pipeline.units import MiB
from vadpipe.background import in_background
from vadpipe.repository.format.frames import LARGEST_FRAME
from vadpipe.repository.format.packs import FrameAddress
from vadpipe.repository.reader import DiskContent, RepositoryReader

CACHE: Final = 256 * MiB
_PROCESSORS: Final = max(2, min(8, os.cpu_count() or 2))
THREADS: Final = max(4, _PROCESSORS)  # some of them wait for a store

_WINDOW: Final = 32  # waiting frames that are looked through for neighbours
_GROUP: Final = 4 * MiB  # decoded on one trip: as a restore does it
_REACH: Final = 8 * MiB  # of a pack, from the first frame of a group to its last: one request to a store


class Wanted(NamedTuple):
    """A frame, and the bytes of a disk that it is wanted for."""

    content: DiskContent
    address: FrameAddress | None
    identity: bytes
    offset: int
    length: int


@dataclass(eq=False)
class _Job:
    """A frame that is to be decoded, for so many who wait. `expected`: also without any."""

    wanted: Wanted
    expected: bool
    waiting: int = 0
    data: memoryview | None = None
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)


class DecodedFrames:
    """The frames of one repository, for all its disks and clients; see `decoded_frames`."""

    def __init__(self, reader: RepositoryReader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._held = 0
        self._frame: OrderedDict[bytes, memoryview] = OrderedDict()
        self._jobs: dict[bytes, _Job] = {}
        self._urgent: deque[_Job] = deque()
        self._expected: deque[_Job] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self.decoded = 0

    @property
    def held(self) -> int:
        """Bytes of the frames that are kept."""
        return self._held

    def at_hand(self, identity: bytes) -> memoryview | None:
        """A frame that was decoded already."""
        found = self._frame.get(identity)
        if found is not None:
            self._frame.move_to_end(identity)
        return found

    async def get(self, wanted: Sequence[Wanted]) -> list[memoryview]:
        """Some frames, each proved. Raises MoverError for the first that cannot be had."""
        found: list[memoryview | None] = []
        jobs: list[tuple[int, _Job]] = []
        for number, each in enumerate(wanted):
            data = self.at_hand(each.identity)
            found.append(data)
            if data is None:
                jobs.append((number, self._job(each)))
        try:
            for number, job in jobs:
                await job.done.wait()
                if job.error is not None:
                    raise job.error
                found[number] = job.data
        finally:
            for _, job in jobs:
                job.waiting -= 1
        return [each for each in found if each is not None]

    def expect(self, wanted: Sequence[Wanted]) -> None:
        """Decode these when nobody waits for others. What does not fit into a quarter of the cache is left out."""
        for each in wanted:
            length = each.address.length if each.address is not None else 0
            if (len(self._expected) + 1) * max(length, 1) > self._size // 4:
                break
            if each.identity not in self._frame and each.identity not in self._jobs:
                job = self._jobs[each.identity] = _Job(each, expected=True)
                self._expected.append(job)
                self._idle.unpark()

    def _job(self, wanted: Wanted) -> _Job:
        job = self._jobs.get(wanted.identity)
        if job is None:
            job = self._jobs[wanted.identity] = _Job(wanted, expected=False)
            self._urgent.append(job)
            self._idle.unpark()
        elif job.expected and not job.waiting and job in self._expected:
            self._expected.remove(job)
            self._urgent.append(job)
        job.waiting += 1
        return job

    async def work(self) -> None:
        """Decode what is wanted, one group after the other, for ever."""
        limiter = trio.CapacityLimiter(1)
        while True:
            group = self._next_group()
            if not group:
                await self._idle.park()
                continue
            await trio.to_thread.run_sync(self._decode, group, limiter=limiter)
            for job in group:
                self._finish(job)

    def _next_group(self) -> list[_Job]:
        """The job that waits longest and its neighbours; empty when there is none."""
        window: list[_Job] = []
        for jobs in (self._urgent, self._expected):
            while jobs and len(window) < _WINDOW:
                job = jobs.popleft()
                if job.waiting or job.expected:
                    window.append(job)
                else:  # whoever wanted it is gone
                    del self._jobs[job.wanted.identity]
            if window:
                return self._group_of(window, jobs)
        return []

    def _group_of(self, window: list[_Job], jobs: deque[_Job]) -> list[_Job]:
        """What is decoded together; the rest of the window goes back to where it came from."""
        first, rest = window[0], window[1:]
        most = -(-len(window) // _PROCESSORS)
        group = [first, *_behind(first, rest)[: most - 1]]
        taken = set(map(id, group))
        jobs.extendleft(job for job in reversed(rest) if id(job) not in taken)
        return group

    def _decode(self, group: Sequence[_Job]) -> None:
        """Runs on a thread."""
        self._reader.frames.expect([job.wanted.address for job in group if job.wanted.address is not None])
        for job in group:
            try:
                job.data = _decoded(job.wanted)
            except Exception as exc:  # for those who wait for it
                job.error = exc

    def _finish(self, job: _Job) -> None:
        identity = job.wanted.identity
        del self._jobs[identity]
        if job.data is not None:
            self.decoded += 1
            self._frame[identity] = job.data
            self._held += len(job.data)
            while self._held > self._size and len(self._frame) > 1:
                self._held -= len(self._frame.popitem(last=False)[1])
        job.done.set()


def _decoded(wanted: Wanted) -> memoryview:
    """The bytes of a frame. Raises MoverError."""
    content, address = wanted.content, wanted.address
    if address is None or address.length > LARGEST_FRAME:  # whose reader says what is wrong
        return content.frame(address, wanted.offset, wanted.length, wanted.identity)
    data = np.empty(address.length, np.uint8).data
    content.frame_into(address, wanted.offset, wanted.length, wanted.identity, data)
    return data.toreadonly()


def _behind(first: _Job, jobs: Sequence[_Job]) -> list[_Job]:
    """Of some jobs those whose frames lie behind the first one's in its pack, near enough, in that order."""
    start = first.wanted.address
    if start is None:
        return []
    near = [
        (address.offset, address.length, job)
        for job in jobs
        if (address := job.wanted.address) is not None
        and address.pack == start.pack
        and start.offset < address.offset <= start.offset + _REACH
    ]
    near.sort(key=lambda each: each[0])
    found: list[_Job] = []
    length = start.length
    for _, each, job in near:
        length += each
        if length > _GROUP:
            break
        found.append(job)
    return found


@asynccontextmanager
async def decoded_frames(reader: RepositoryReader, size: int = CACHE) -> AsyncIterator[DecodedFrames]:
    """A cache of decoded frames, with its threads.

    Args:
        reader: The repository.
        size: Bytes that it keeps.
    """
    frames = DecodedFrames(reader, size)
    async with in_background() as nursery:
        for _ in range(THREADS):
            nursery.start_soon(frames.work)
        yield frames
