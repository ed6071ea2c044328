"""A disk of a restore point as an export: its map, its frames, and reading ahead along the map."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import trio

from pipeline.errors import IntegrityError, MoverError
from pipeline.units import CLUSTER, MiB, format_size
from vadpipe.nbd.export import Parts, States
from vadpipe.nbd.protocol import State
from vadpipe.repository.format.disk_map import PAGE
from vadpipe.repository.format.packs import FrameAddress
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import ContentPage, DiskContent, RepositoryReader

from .frames import DecodedFrames, Wanted

log = logging.getLogger(__name__)

AHEAD: Final = 16 * MiB  # what is read ahead of a client that reads in order

_MAPS: Final = 32 * MiB  # of loaded map pages of a disk
_PER_FRAME: Final = 400  # bytes of an address, its texts and its id
_STREAMS: Final = 64  # places where clients read in order
_SEQUENTIAL: Final = 512 * 1024  # read in order before anything is read ahead
_MOST_PAGES: Final = 16  # of the map are loaded for one answer about extents
_MOST_EXTENTS: Final = 8192
_HOLE: Final = int(State.HOLE | State.ZERO)

# Where the bytes of a reply keep frames in memory that are many times as long, the bytes are copied.
_MOST_PINNED: Final = 8
_COPIED: Final = 64 * 1024
_MOST_FRAMES: Final = 8  # that are waited for at once, for one read

_LOGGED: Final = 1000  # different failures; each is told once


@dataclass(frozen=True, eq=False)
class _Page:
    """A loaded map page: its rows as columns of bytes of the page, and where its frames lie."""

    start: memoryview
    end: memoryview
    frame: memoryview
    place: memoryview
    addresses: Sequence[FrameAddress | None]
    ids: Sequence[bytes]
    weight: int

    @classmethod
    def of(cls, page: ContentPage) -> _Page:
        rows = page.rows
        start, end, frame, place = (
            np.ascontiguousarray(column).data
            for column in (rows.offset * CLUSTER, rows.end * CLUSTER, rows.frame, rows.place * CLUSTER)
        )
        ids = [each.tobytes() for each in rows.frame_ids]
        return cls(start, end, frame, place, page.addresses, ids, 4 * start.nbytes + _PER_FRAME * len(ids))


class _Run(NamedTuple):
    """A part of a disk: `length` bytes from `offset` on, which lie at `place` of a frame of a map page."""

    page: _Page
    frame: int
    identity: bytes
    place: int
    offset: int
    length: int


@dataclass(eq=False)
class _Stream:
    """A client that reads in order: how much of it, and up to where it was read ahead."""

    read: int = 0
    ahead: int = 0


class PointDisk:
    """A disk of a restore point, read-only, as an export of a server.

    Every byte is proved as a restore proves it. What is damaged fails for its range alone, and is logged with
    disk, range and pack.

    Args:
        reader: The repository.
        point: The point.
        disk: The disk of the point.
        frames: Decoded frames, which several disks may share.
        nursery: For reading ahead.
        pages: Offset and digest of the map pages that are not empty.
        tell: Is called with what cannot be read, once for each; it is in the log anyway.
    """

    def __init__(
        self,
        reader: RepositoryReader,
        point: RestorePoint,
        disk: StoredDisk,
        frames: DecodedFrames,
        nursery: trio.Nursery,
        pages: Sequence[tuple[int, bytes]],
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self._content = DiskContent(reader, point, disk)
        self._point, self._disk, self._frames, self._nursery = point, disk, frames, nursery
        self._digests = dict(pages)
        self._pages: OrderedDict[int, _Page] = OrderedDict()
        self._weight = 0
        self._loading: dict[int, trio.Event] = {}
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._told: set[str] = set()
        self._tell_others = tell

    @classmethod
    async def open(
        cls,
        reader: RepositoryReader,
        point: RestorePoint,
        disk: StoredDisk,
        frames: DecodedFrames,
        nursery: trio.Nursery,
        tell: Callable[[str], object] | None = None,
    ) -> PointDisk:
        """Prove the list of the disk's map pages by its root. Raises IntegrityError, SinkError."""
        pages = await trio.to_thread.run_sync(DiskContent(reader, point, disk).pages)
        return cls(reader, point, disk, frames, nursery, pages, tell)

    @property
    def name(self) -> str:
        return self._disk.key

    @property
    def description(self) -> str:
        size = format_size(self.size)
        return f"{self._point.machine.name}, disk {self._disk.key}, {size}, point {self._point.id}"

    @property
    def size(self) -> int:
        return self._disk.capacity

    def read_nowait(self, offset: int, length: int) -> Parts | None:
        runs = self._runs_of_range(offset, length, self._loaded)
        if runs is None:
            return None
        self._follow(offset, length)
        frames: dict[bytes, memoryview] = {}
        at_hand = self._frames.at_hand
        for run in runs:
            if not isinstance(run, int) and run.identity not in frames:
                data = at_hand(run.identity)
                if data is None:
                    return None
                frames[run.identity] = data
        try:
            return self._parts(runs, frames)
        except MoverError:
            return None  # `read` tells it

    async def read(self, offset: int, length: int) -> Parts:
        """Raises IntegrityError, SinkError."""
        try:
            runs = self._runs_of_range(offset, length, self._loaded)
            if runs is None:
                runs = await self._runs(offset, length)
                self._follow(offset, length)
            parts: list[memoryview | int] = []
            for some in _by_frames(runs):
                wanted = self._wanted(some)
                frames = await self._frames.get(list(wanted.values()))
                parts += self._parts(some, dict(zip(wanted, frames, strict=True)))
            return parts
        except (MoverError, OSError) as exc:
            self._tell(exc)
            raise

    def expect(self, offset: int, length: int) -> None:
        """Read the range ahead, as far as that is sensible."""
        self._nursery.start_soon(self._read_ahead, offset, min(length, AHEAD))

    async def states(self, offset: int, length: int) -> States:
        """Holes and data as the disk map has them. Raises IntegrityError, SinkError."""
        found: list[tuple[int, int]] = []
        place, end, loaded = offset, offset + length, 0
        try:
            while place < end and len(found) < _MOST_EXTENTS and loaded < _MOST_PAGES:
                low = place // PAGE * PAGE
                stop = min(end, low + PAGE)
                if low not in self._digests:
                    _add(found, stop - place, _HOLE)
                    place = stop
                    continue
                loaded += low not in self._pages
                page = await self._page(low)
                row = bisect_right(page.end, place - low)
                while place < stop and len(found) < _MOST_EXTENTS:
                    first = page.start[row] + low if row < len(page.start) else stop
                    if first > place:
                        _add(found, min(first, stop) - place, _HOLE)
                        place = min(first, stop)
                    else:
                        last = min(page.end[row] + low, stop)
                        _add(found, last - place, 0)
                        place = last
                        row += 1
        except (MoverError, OSError) as exc:
            if not found:
                self._tell(exc)
                raise
        return found

    def _loaded(self, low: int) -> _Page | None:
        page = self._pages.get(low)
        if page is not None:
            self._pages.move_to_end(low)
        return page

    def _runs_of_range(
        self, offset: int, length: int, page_at: Callable[[int], _Page | None]
    ) -> list[_Run | int] | None:
        """What a range consists of; numbers are zeros. None: a map page has to be loaded first."""
        found: list[_Run | int] = []
        place, end = offset, offset + length
        while place < end:
            low = place // PAGE * PAGE
            stop = min(end, low + PAGE)
            if low not in self._digests:
                found.append(stop - place)
            else:
                page = page_at(low)
                if page is None:
                    return None
                self._runs_of(page, low, place, stop, found)
            place = stop
        return found

    async def _runs(self, offset: int, length: int) -> list[_Run | int]:
        """The same, with the map pages that it takes. Raises IntegrityError, SinkError."""
        pages: dict[int, _Page] = {}
        for low in range(offset // PAGE * PAGE, offset + length, PAGE):
            if low in self._digests:
                pages[low] = await self._page(low)
        runs = self._runs_of_range(offset, length, pages.get)
        assert runs is not None
        return runs

    def _runs_of(self, page: _Page, low: int, place: int, stop: int, found: list[_Run | int]) -> None:
        row = bisect_right(page.end, place - low)
        rows = len(page.start)
        while place < stop:
            first = page.start[row] + low if row < rows else stop
            if first > place:
                gap = min(first, stop) - place
                found.append(gap)
                place += gap
                continue
            length = min(page.end[row] + low, stop) - place
            frame = page.frame[row]
            found.append(_Run(page, frame, page.ids[frame], page.place[row] + place - first, place, length))
            place += length
            row += 1

    def _wanted(self, runs: Iterable[_Run | int]) -> dict[bytes, Wanted]:
        """The frames of these runs, each once."""
        found: dict[bytes, Wanted] = {}
        for run in runs:
            if not isinstance(run, int) and run.identity not in found:
                address = run.page.addresses[run.frame]
                found[run.identity] = Wanted(self._content, address, run.identity, run.offset, run.length)
        return found

    def _parts(self, runs: Sequence[_Run | int], frames: Mapping[bytes, memoryview]) -> Parts:
        parts: list[memoryview | int] = []
        data = 0
        for run in runs:
            if isinstance(run, int):
                parts.append(run)
                continue
            frame = frames[run.identity]
            end = run.place + run.length
            if end > len(frame):
                raise self._content.damaged(run.offset, run.length, "the map reads beyond its frame")
            parts.append(frame[run.place : end])
            data += run.length
        if data <= _COPIED or sum(map(len, frames.values())) > _MOST_PINNED * data:
            return [part if isinstance(part, int) else memoryview(bytes(part)) for part in parts]
        return parts

    async def _page(self, low: int) -> _Page:
        """A map page, loaded once for all who wait for it. Raises IntegrityError, SinkError."""
        while (page := self._pages.get(low)) is None:
            if low in self._loading:
                await self._loading[low].wait()
                continue
            loaded = self._loading[low] = trio.Event()
            try:
                page = await trio.to_thread.run_sync(self._load, low)
                self._keep(low, page)
                return page
            finally:
                del self._loading[low]
                loaded.set()
        return page

    def _load(self, low: int) -> _Page:
        return _Page.of(self._content.page(low, self._digests[low]))

    def _keep(self, low: int, page: _Page) -> None:
        self._pages[low] = page
        self._weight += page.weight
        while self._weight > _MAPS and len(self._pages) > 1:
            self._weight -= self._pages.popitem(last=False)[1].weight

    def _follow(self, offset: int, length: int) -> None:
        """Note a read, and read ahead of a client that reads in order."""
        stream = self._streams.pop(offset, None) or _Stream()
        end = offset + length
        self._streams[end] = stream
        if len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)
        stream.read += length
        if stream.read <= max(length, _SEQUENTIAL) or end + AHEAD // 2 <= stream.ahead:
            return
        begin = max(end, stream.ahead)
        stream.ahead = min(end + AHEAD, self.size)
        if stream.ahead > begin:
            self._nursery.start_soon(self._read_ahead, begin, stream.ahead - begin)

    async def _read_ahead(self, offset: int, length: int) -> None:
        try:
            runs = await self._runs(offset, length)
        except Exception:
            return  # whoever reads it is told
        self._frames.expect(list(self._wanted(runs).values()))

    def _tell(self, exc: MoverError | OSError) -> None:
        """Log what cannot be read, once."""
        text = str(exc)
        if not isinstance(exc, IntegrityError):  # which names them
            text = f"Disk {self.name} of point {self._point.id} cannot be read: {exc}"
        if text not in self._told and len(self._told) < _LOGGED:
            self._told.add(text)
            log.warning("%s", text)
            if self._tell_others is not None:
                self._tell_others(text)


def _by_frames(runs: Sequence[_Run | int]) -> Iterator[Sequence[_Run | int]]:
    """The runs in order, cut where they need too many frames at once."""
    begin = 0
    seen: set[bytes] = set()
    for number, run in enumerate(runs):
        if not isinstance(run, int) and run.identity not in seen:
            if len(seen) == _MOST_FRAMES:
                yield runs[begin:number]
                begin, seen = number, set()
            seen.add(run.identity)
    yield runs[begin:]


def _add(found: list[tuple[int, int]], length: int, flags: int) -> None:
    """Append an extent, or lengthen the last one."""
    if found and found[-1][1] == flags and found[-1][0] + length < 1 << 32:
        found[-1] = (found[-1][0] + length, flags)
    elif length:
        found.append((length, flags))
