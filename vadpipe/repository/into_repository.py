"""Writing one disk of a point: frames into packs, and the disk's map.

The map is built page by page, as the disk goes by. Whatever of a page is neither data nor zero is unchanged,
and its rows come from the same page of the parent point; a page that is unchanged as a whole is shared without
being loaded. Rows are kept as columns until their page is complete: work is done per page, not per span.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray
from trio.abc import ReceiveChannel

from pipeline import (
    CLUSTER,
    DIGEST_SIZE,
    NO_FRAME,
    ContractError,
    Digests,
    Disk,
    DiskReceipt,
    EncodedFrame,
    Extents,
    FramedSpan,
    Identity,
    IntegrityError,
    Sink,
    Unchanged,
    Zeros,
)
from pipeline.composition import expect_disk
from vadpipe.kernels.codecs import codec_named

from .format.disk_map import (
    EMPTY_PAGE,
    PAGE,
    PageMap,
    clusters,
    joined,
    page_count,
    page_list,
    parse_page,
    root_of,
)
from .format.frames import Kind
from .format.restore_point import StoredDisk
from .point import Point

Items = FramedSpan | Zeros | Unchanged

COUNTS = ("read", "zero_read", "zero_unread", "unchanged", "known", "new", "stored")


@dataclass(frozen=True)
class IntoRepository(Sink[Items, DiskReceipt]):
    """Framed spans and gaps of a whole disk in, its place in the point `point` and a receipt out.

    In: ascending, covering [0, capacity) exactly.
    Memory: one item, 32 bytes per chunk of one map page (256 MiB), 32 bytes per page of the disk.
    Cancel: leaves frames that the point removes when it is left without `publish`.
    Raises: ContractError when the items do not cover the disk or differ from what was promised, SinkError,
    IntegrityError for a damaged parent point.
    """

    point: Point
    disk: Disk

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)

    @property
    def index(self) -> Point:
        """What has to find the chunks: the point."""
        return self.point

    @property
    def identity(self) -> Identity:
        """What has to name the chunks."""
        return self.point.identity

    async def run(self, inbox: ReceiveChannel[Items]) -> DiskReceipt:
        writer = _DiskWriter(self.point, self.disk)
        async for item in inbox:
            await writer.take(item)
            del item  # its payloads must not wait for the next item
        stored = await writer.finish()
        self.point.keep(stored)
        return stored.receipt


class _DiskWriter:
    """The state of one run."""

    def __init__(self, point: Point, disk: Disk) -> None:
        self._point = point
        self._disk = disk
        self._capacity = disk.capacity
        self._position = 0
        self._pages: Digests = np.zeros((page_count(disk.capacity), DIGEST_SIZE), dtype=np.uint8)
        self._parent: Digests | None = None
        self._names_proved = False
        self._rows = _Rows()
        self._bytes: dict[str, int] = dict.fromkeys(COUNTS, 0)

    async def take(self, item: Items) -> None:
        end = item.offset + item.length
        if item.offset != self._position or item.length <= 0 or end > self._capacity:
            raise self._broken(f"bytes {item.offset} to {end} came where {self._position} was due")
        if end % CLUSTER and end != self._capacity:
            raise self._broken(f"an item ends at {end}, which is no whole number of clusters")
        if isinstance(item, FramedSpan):
            await self._take_span(item)
        elif isinstance(item, Zeros):
            self._count(read=item.read, zero_read=item.read, zero_unread=item.length - item.read)
            await self._take_gap(end, None)
        else:
            self._count(read=item.read, known=item.read, unchanged=item.length - item.read)
            await self._take_gap(end, await self._parent_pages())

    async def finish(self) -> StoredDisk:
        """All pages are there: store their list. Proves that all of them can be found."""
        if self._position != self._capacity:
            raise self._broken(f"the input ends at {self._position}")
        used = self._pages[self._pages.any(axis=1)]
        if not await self._point.are_stored(used):
            raise IntegrityError(
                f"Disk {self._disk.key}: map pages that it shares with its previous point are not in the index.",
                remedy="Run `vadpipe verify`; a full backup does not need them.",
            )
        listed = page_list(self._pages)
        digest, stored = await self._point.store_object(Kind.MAP, listed)
        self._count(stored=stored)
        root = root_of(self._capacity, listed, self._point.keys)
        disk = self._disk
        receipt = DiskReceipt(disk.key, disk.label, self._capacity, root.hex(), **self._bytes)
        return StoredDisk(receipt, disk.change_id, digest.hex())

    async def _take_span(self, span: FramedSpan) -> None:
        await self._check_names(span)
        end = span.offset + span.length
        inside = _inside(span.data, span.offset, end) and _inside(span.zeros, span.offset, end)
        if span.offset // PAGE != (end - 1) // PAGE or not inside:
            raise self._broken(f"the span at {span.offset} reaches over its own borders")
        unchanged = span.length - span.data.total - span.zeros.total
        if unchanged > 0:
            await self._parent_pages()
        known = int(span.chunk_length[span.known].sum()) + span.unchanged_read
        new = int(span.chunk_length[~span.known].sum())
        unchanged -= span.unchanged_read
        self._count(read=known + new + span.zero_read, known=known, new=new, unchanged=unchanged)
        self._count(zero_read=span.zero_read, zero_unread=span.zeros.total - span.zero_read)
        if span.frames:
            self._count(stored=await self._point.store_frames(span.frames))
        self._rows.add(span)
        await self._reach(end)

    async def _check_names(self, span: FramedSpan) -> None:
        """Before anything is stored: the chunks have the names that the repository gives.

        Every span says which identity named its chunks; the first frame of the disk is decoded and proved, so that
        a wrong label or a codec that does not decode what it encoded is found too.
        """
        if span.identity != self._point.identity:
            raise ContractError(
                f"The chunks of disk {self._disk.key} were named by {span.identity!r}, but this repository "
                "finds and proves them by its own key; nothing was published.",
                remedy="Write Digest(point), with the point that the path function is given.",
            )
        if span.frames and not self._names_proved:
            await trio.to_thread.run_sync(self._prove_names, span.frames[0])
            self._names_proved = True

    def _prove_names(self, frame: EncodedFrame) -> None:
        digest, start = self._point.identity.digest, 0
        try:
            data = memoryview(codec_named(frame.codec).decode(memoryview(frame.payload), frame.length))
        except LookupError:
            return  # the record says so, with the names that are known
        except ValueError as exc:
            raise ContractError(
                f"Disk {self._disk.key}: the codec {frame.codec!r} does not decode what it encoded: {exc}; "
                "nothing was published."
            ) from exc
        for length, name in zip(frame.chunk_length.tolist(), frame.digest, strict=True):
            if digest(data[start : start + length]) != name.tobytes():
                raise ContractError(
                    f"Disk {self._disk.key}: the digests of its chunks are not those of their bytes; "
                    "nothing was published.",
                    remedy="A stage between Digest and IntoRepository changed the bytes or the digests.",
                )
            start += length

    async def _take_gap(self, end: int, parent: Digests | None) -> None:
        """What is zero, or what is as in the parent's pages: whole pages at once, the rest row by row."""
        while self._position < end:
            page = self._position // PAGE
            last = page_count(end) if end == self._capacity else end // PAGE
            if self._position % PAGE == 0 and last > page:
                if parent is not None:
                    self._pages[page:last] = parent[page:last]
                    if self._point.removal_waits:
                        await self._secure_pages(page, last)
                self._position = min(last * PAGE, self._capacity)
            else:
                stop = min((page + 1) * PAGE, end)
                if parent is None:
                    self._rows.zeros.append(Extents.whole(stop - self._position, self._position))
                await self._reach(stop)

    async def _secure_pages(self, first: int, last: int) -> None:
        """Pages that are shared with the parent stay readable, whatever is removed meanwhile."""
        for page in range(first, last):
            digest = self._pages[page].tobytes()
            if digest != EMPTY_PAGE:
                purpose = self._purpose_of_page(page * PAGE)
                content = await self._point.load_object(digest, purpose)
                self._count(stored=await self._point.rescue(parse_page(content, purpose).frame_ids, purpose))
                _, stored = await self._point.store_object(Kind.MAP, bytes(content))
                self._count(stored=stored)

    def _purpose_of_page(self, offset: int) -> str:
        return f"Disk {self._disk.key} of the previous point, page at {offset}"

    async def _reach(self, position: int) -> None:
        """Everything up to `position` is in the rows; where that is a page's end, the page is made."""
        low = self._position // PAGE * PAGE
        self._position = position
        if position % PAGE == 0 or position == self._capacity:
            rows, self._rows = self._rows, _Rows()
            await self._make_page(low, position - low, rows)

    async def _make_page(self, offset: int, length: int, rows: _Rows) -> None:
        data, zeros = rows.extents()
        unchanged = (data | zeros).inverted(offset, length)
        if data.total + zeros.total + unchanged.total != length:
            raise self._broken(f"data and zeros overlap between {offset} and {offset + length}")
        ragged = (unchanged.end % CLUSTER != 0) & (unchanged.end != self._capacity)
        if (unchanged.start % CLUSTER).any() or ragged.any():
            raise self._broken(f"extents after {offset} are no whole clusters")
        parent = await self._parent_rows(offset, unchanged) if len(unchanged) else PageMap.empty()
        if len(data) or len(parent):
            content = partial(self._page, offset, data, rows, parent)
            digest, stored = await self._point.store_object(Kind.MAP, content)
            self._pages[offset // PAGE] = np.frombuffer(digest, np.uint8)
            self._count(stored=stored)

    def _page(self, offset: int, data: Extents, rows: _Rows, parent: PageMap) -> bytes:
        """On a worker thread: the encoded page."""
        new = self._new_rows(offset, data, rows) if len(data) else PageMap.empty()
        return joined([new, parent]).encode()

    def _new_rows(self, low: int, data: Extents, rows: _Rows) -> PageMap:
        """The rows of chunks. Proves that they are the data, and whole clusters in their frames."""
        offset, length, frame, place = rows.columns()
        end = offset + length
        if Extents.from_columns(offset, length) != data or (end[:-1] > offset[1:]).any():
            raise self._broken(f"the chunks after {low} are not exactly the data")
        ragged = (length % CLUSTER != 0) & (end != self._capacity)
        if (offset % CLUSTER).any() or (place % CLUSTER).any() or ragged.any() or (length <= 0).any():
            raise self._broken(f"chunks after {low} are no whole clusters")
        if (frame == NO_FRAME).any():
            raise self._broken(f"chunks after {low} have no frame")
        number, local = np.unique(frame, return_inverse=True)
        return PageMap(
            (offset - low) // CLUSTER,
            -(-length // CLUSTER),
            local,
            place // CLUSTER,
            self._point.frame_ids(number),
        )

    async def _parent_rows(self, offset: int, unchanged: Extents) -> PageMap:
        """The rows of the parent's page for the unchanged part."""
        digest = (await self._parent_pages())[offset // PAGE].tobytes()
        if digest == EMPTY_PAGE:
            return PageMap.empty()
        purpose = self._purpose_of_page(offset)
        content = await self._point.load_object(digest, purpose)
        rows = parse_page(content, purpose).within(*clusters(unchanged, offset // PAGE))
        if self._point.removal_waits and len(rows):
            used = rows.frame_ids[np.unique(rows.frame)]
            self._count(stored=await self._point.rescue(used, purpose))
        return rows

    async def _parent_pages(self) -> Digests:
        """The page list of the parent point's disk, proved by its root."""
        if self._parent is None:
            parent = self._point.parent_of(self._disk)
            if parent is None or parent.capacity != self._capacity:
                raise self._broken(
                    "something is unchanged, but no previous point has a disk of this capacity"
                )
            purpose = f"Disk {self._disk.key} of the previous point"
            listed = await self._point.load_object(bytes.fromhex(parent.pages), purpose)
            if root_of(self._capacity, listed, self._point.keys).hex() != parent.receipt.root:
                raise IntegrityError(
                    f"{purpose}: its page list does not have its root.",
                    remedy="Run `vadpipe verify`; a full backup does not need the list.",
                )
            self._parent = np.frombuffer(listed, np.uint8).reshape(-1, DIGEST_SIZE)
        return self._parent

    def _count(self, **more: int) -> None:
        for name, count in more.items():
            self._bytes[name] += count

    def _broken(self, problem: str) -> ContractError:
        return ContractError(
            f"Disk {self._disk.key} ({self._capacity} bytes) is not covered exactly once: {problem}.",
            remedy="A stage before IntoRepository lost, doubled or moved something; nothing was published.",
        )


class _Rows:
    """What is known of the page in hand: columns of the chunks, and extents; views of what the spans had."""

    def __init__(self) -> None:
        self.zeros: list[Extents] = []
        self._data: list[Extents] = []
        self._chunks: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]]
        self._chunks = []

    def add(self, span: FramedSpan) -> None:
        self._data.append(span.data)
        self.zeros.append(span.zeros)
        self._chunks.append((span.chunk_offset, span.chunk_length, span.chunk_frame, span.chunk_place))

    def extents(self) -> tuple[Extents, Extents]:
        """Data and zeros."""
        return _merged(self._data), _merged(self.zeros)

    def columns(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
        offset, length, frame, place = zip(*self._chunks, strict=True)
        return np.concatenate(offset), np.concatenate(length), np.concatenate(frame), np.concatenate(place)


def _inside(extents: Extents, low: int, high: int) -> bool:
    return not len(extents) or (int(extents.start[0]) >= low and int(extents.end[-1]) <= high)


def _merged(parts: list[Extents]) -> Extents:
    if not parts:
        return Extents.empty()
    start = np.concatenate([part.start for part in parts])
    return Extents.from_columns(start, np.concatenate([part.end for part in parts]) - start)
