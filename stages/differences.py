"""What has to be written onto a disk so that it holds what a point holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import trio
from numpy.typing import NDArray
from trio.abc import SendChannel

from pipeline import CLUSTER, SPAN, ConfigError, Disk, Extents, Source, Span, Unchanged, run_ordered
from pipeline.composition import at_least, expect_disk
from vadpipe.kernels.differences import ChunkTable, clear_nonzero, differing_parts, take_differing
from vadpipe.kernels.digest import Blake3
from vadpipe.repository.format.disk_map import PAGE, PageMap
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import ContentPage, DiskContent, HandingOver, RepositoryReader

_WINDOW = 32 << 30  # as much as one QueryAllocatedBlocks call covers; a whole number of pages


@dataclass(frozen=True)
class DifferencesReceipt:
    """What was compared. Bytes: `read` from the disk, and `allocated` on it as far as its reader can tell."""

    read: int
    allocated: int


@dataclass
class _Counts:
    read: int = 0
    allocated: int = 0


@dataclass(frozen=True, repr=False)
class Differences(Source[Span | Unchanged]):
    """A disk as it is now compared with a disk of a point; what differs out.

    Out: spans and unchanged ranges in ascending order, covering [0, capacity). In a span, `data` holds the point's
    bytes where the disk holds others, and `zeros` is where the point holds zeros and the disk does not; both are
    whole clusters. The rest is equal. What the disk does not allocate counts as zeros and is not read.

    The disk is compared by the digests of the point's chunks, so the point's bytes are read only for chunks that
    differ. Map, chunk tables and bytes are proved on the way: when nothing differs, the disk has the point's root.

    Memory: `workers` + 2 spans of the disk's pool, 32 MiB of decoded frames in the reader.
    Cancel: waits for reads and frames in flight.
    Raises: ConfigError for a disk that the point does not have, or of another capacity; SourceError where the disk
    cannot be read; IntegrityError where the point is damaged.

    Args:
        reader: The repository.
        point: The point.
        key: Key of the disk in the point.
        disk: The disk as it is now. It has the same capacity.
        within: Only spans that overlap with this are compared; the rest counts as equal. None: everything.
        workers: Spans that are read and compared at once.
    """

    reader: RepositoryReader
    point: RestorePoint
    key: str
    disk: Disk
    within: Extents | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)
        at_least(1, self, "workers")

    def __repr__(self) -> str:
        return f"Differences({self.point.id!r}, {self.key!r})"

    async def run(self, outbox: SendChannel[Span | Unchanged]) -> DifferencesReceipt:
        stored = self._stored()
        threads = trio.CapacityLimiter(self.workers)
        comparing = _Comparing(self.reader, self.point, stored)
        held: dict[int, Span] = {}
        counts = _Counts()

        async def compare(piece: _Piece | Unchanged) -> Span | Unchanged:
            if isinstance(piece, Unchanged):
                return piece
            span = piece.span
            if len(span.data):
                await self.disk.read(span.buffer, span.offset, span.data)
                counts.read += span.data.total
            differing = await trio.to_thread.run_sync(comparing.compare, piece, limiter=threads)
            if isinstance(differing, Unchanged):
                held.pop(span.offset).release()
            return differing

        async def plan(send: trio.MemorySendChannel[_Piece | Unchanged]) -> None:
            async with send:
                reached = 0
                async with aclosing(self._parts(comparing.content, threads, counts)) as parts:
                    async for part in parts:
                        if part.offset > reached:
                            await send.send(Unchanged(reached, part.offset - reached))
                        reached = part.offset + part.length
                        span = Span(
                            offset=part.offset,
                            length=part.length,
                            data=part.allocated,
                            zeros=Extents.empty(),
                            buffer=await self.disk.pool.acquire(),
                        )
                        held[part.offset] = span
                        await send.send(_Piece(span, part.rows, part.page))
                if reached < stored.capacity:
                    await send.send(Unchanged(reached, stored.capacity - reached))

        try:
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[_Piece | Unchanged](0)
                nursery.start_soon(plan, send)
                await run_ordered(receive, HandingOver(outbox, held), compare, concurrency=self.workers)
        finally:
            for span in held.values():
                span.release()
        return DifferencesReceipt(counts.read, counts.allocated)

    async def bytes_to_compare(self) -> NDArray[np.int64]:
        """The bytes of each span that the disk allocates or the point has data for, by the number of the span.

        Raises: as `run`.
        """
        stored = self._stored()
        content = DiskContent(self.reader, self.point, stored)
        sizes = np.zeros(-(-stored.capacity // SPAN), dtype=np.int64)
        async with aclosing(self._parts(content, trio.CapacityLimiter(1), _Counts())) as parts:
            async for part in parts:
                page = part.offset // PAGE * PAGE
                data = Extents.from_columns(part.rows.offset * CLUSTER + page, part.rows.count * CLUSTER)
                sizes[part.offset // SPAN] = (part.allocated | data.within(part.offset, part.length)).total
        return sizes

    async def _parts(
        self, content: DiskContent, threads: trio.CapacityLimiter, counts: _Counts
    ) -> AsyncGenerator[_Part, None]:
        """The spans that may differ, ascending."""
        capacity = self.disk.capacity
        allocated = Extents.empty()
        pages = dict(await trio.to_thread.run_sync(content.pages, limiter=threads))
        for offset in range(0, capacity, PAGE):
            if offset % _WINDOW == 0:
                allocated = await self.disk.allocated(offset, min(_WINDOW, capacity - offset))
                counts.allocated += allocated.total
                allocated = allocated.aligned(CLUSTER, capacity)
            page = None
            if offset in pages:
                page = await trio.to_thread.run_sync(content.page, offset, pages[offset], limiter=threads)
            elif not len(allocated.within(offset, PAGE)):
                continue
            for part in _parts(page, offset, capacity, allocated, self.within):
                yield part

    def _stored(self) -> StoredDisk:
        stored = self.point.disk(self.key)
        if stored is None:
            raise ConfigError(
                f"Point {self.point.id} has no disk {self.key!r}.",
                remedy=f"It has: {', '.join(disk.key for disk in self.point.disks)}.",
            )
        if stored.capacity != self.disk.capacity:
            raise ConfigError(
                f"Disk {self.key} of point {self.point.id} has {stored.capacity} bytes, and the disk "
                f"{self.disk.key} has {self.disk.capacity}.",
                remedy="Compare disks of one size, or restore into a new VM.",
            )
        return stored


@dataclass(frozen=True, eq=False)
class _Piece:
    """A span to be read, and the rows of the map for it; `page` is None where the point holds zeros."""

    span: Span
    rows: PageMap
    page: ContentPage | None


@dataclass(frozen=True, eq=False)
class _Part:
    """A span of the disk that may differ: what is allocated of it, and its rows of the map."""

    offset: int
    length: int
    allocated: Extents
    rows: PageMap
    page: ContentPage | None


def _parts(
    page: ContentPage | None, offset: int, capacity: int, allocated: Extents, within: Extents | None
) -> Iterator[_Part]:
    """The spans of a page that may differ; their rows count clusters from the begin of the page."""
    per_span = SPAN // CLUSTER
    for number in range(-(-min(PAGE, capacity - offset) // SPAN)):
        start = offset + number * SPAN
        length = min(SPAN, capacity - start)
        if within is not None and not len(within.within(start, length)):
            continue
        border = np.array([number * per_span, (number + 1) * per_span])
        rows = PageMap.empty() if page is None else page.rows.within(border[:1], border[1:])
        taken = allocated.within(start, length)
        if len(rows) or len(taken):
            yield _Part(start, length, taken, rows, page)


class _Comparing:
    """What runs on worker threads. Raises IntegrityError."""

    def __init__(self, reader: RepositoryReader, point: RestorePoint, disk: StoredDisk) -> None:
        self.content = DiskContent(reader, point, disk)
        self._name = Blake3(reader.config.keys.chunk).digest

    def compare(self, piece: _Piece) -> Span | Unchanged:
        """The span with what differs of it. Its buffer then holds the point's bytes in `data`."""
        span, rows, page = piece.span, piece.rows, piece.page
        now = span.buffer.array[: span.length]
        for low, length in span.data.inverted(span.offset, span.length):
            now[low - span.offset : low - span.offset + length] = 0
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        if page is not None:
            tables: dict[int, ChunkTable] = {}
            columns = rows.offset * CLUSTER - span.offset % PAGE, rows.count, rows.frame, rows.place
            for low, count, frame, place in zip(*(column.tolist() for column in columns), strict=True):
                length = min(count * CLUSTER, span.length - low)  # the tail of a disk is no whole cluster
                wanted = span.offset + low, length, page.rows.frame_ids[frame].tobytes()
                address = page.addresses[frame]
                table = tables.get(frame)
                if table is None:
                    chunks = self.content.chunks(address, *wanted)
                    table = tables[frame] = ChunkTable.of(chunks["length"], chunks["digest"])
                for at, size in differing_parts(now, low, length, place * CLUSTER, table, self._name):
                    frame_bytes = np.frombuffer(self.content.frame(address, *wanted), np.uint8)
                    begin = place * CLUSTER + at - low
                    if begin + size > len(frame_bytes):
                        raise self.content.damaged(*wanted[:2], "the map reads beyond its frame")
                    start, end = take_differing(now[at : at + size], frame_bytes[begin : begin + size])
                    if len(start):
                        found.append((start + at, end + at))
        data = _joined(found, span.offset)
        held = Extents.from_columns(rows.offset * CLUSTER, rows.count * CLUSTER)
        nonzero = []
        for low, length in held.inverted(span.offset % PAGE, span.length):
            at = low - span.offset % PAGE
            start, end = clear_nonzero(now[at : at + length])
            nonzero.append((start + at, end + at))
        zeros = _joined(nonzero, span.offset)
        if not len(data) and not len(zeros):
            return Unchanged(span.offset, span.length)
        return Span(offset=span.offset, length=span.length, data=data, zeros=zeros, buffer=span.buffer)


def _joined(runs: list[tuple[NDArray[np.int64], NDArray[np.int64]]], offset: int) -> Extents:
    if not runs:
        return Extents.empty()
    start = np.concatenate([run[0] for run in runs])
    end = np.concatenate([run[1] for run in runs])
    return Extents.from_columns(start + offset, end - start)
