"""A repository for reading: its points, their maps and frames, and their disks as sources of spans."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray
from trio.abc import SendChannel

from pipeline import (
    CLUSTER,
    DIGEST_SIZE,
    NO_FRAME,
    SPAN,
    BufferPool,
    ConfigError,
    Digests,
    Extents,
    IntegrityError,
    MiB,
    Source,
    Span,
    Unchanged,
    Zeros,
    run_ordered,
)
from vadpipe.kernels.zeros import run_borders

from .backends.contract import Backend
from .backends.location import backend_at
from .format.config import Config, read_config
from .format.disk_map import (
    EMPTY_PAGE,
    PAGE,
    PageMap,
    page_count,
    parse_page,
    root_of,
)
from .format.frame_cache import FrameCache
from .format.objects import Damage, Missing, Objects
from .format.packs import FrameAddress, damaged_frame, read_chunks, read_object
from .format.restore_point import RestorePoint, StoredDisk, read_points, read_wanted
from .index.lookup import Index
from .removal import readable_removed

if TYPE_CHECKING:
    from .format.ways import Way

# Frames are used in the order of the disk; only deduplicated chunks jump. A span (4 MiB) has about four frames.
DECODED: Final = 32 * MiB
PROVED: Final = 32 * MiB  # map pages, about 0.1 % of the data that they are of
CHUNK_TABLES: Final = 1024  # those of 1 GiB that was stored in order; 0.6 KiB each

# How often the index is read again for what is gone. What others remove, they move first; so once is enough, but
# for a reader that is overtaken again while it reads.
LOOKS: Final = 4

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A", bound=Span | Zeros | Unchanged)


@asynccontextmanager
async def open_repository(
    place: str | Path | Backend, *, unlock: Sequence[Way] = (), wanted: str | None = None
) -> AsyncIterator[RepositoryReader]:
    """Read what is published now. Nothing that is published is ever changed; what is removed meanwhile is missing.

    Args:
        place: A path, `s3://bucket/prefix`, or a backend.
        unlock: What may open a sealed repository; by default what the environment names.
        wanted: The only point that is needed, as `resolve` takes it: the others are not read where it can be told
            without them.

    Raises SinkError for what is no repository, IntegrityError for an altered config, ConfigError where it is sealed
    and nothing opens it.
    """
    backend = backend_at(str(place)) if isinstance(place, str | Path) else place
    reader = await trio.to_thread.run_sync(RepositoryReader.of, backend, unlock, wanted)
    try:
        yield reader
    finally:
        reader.close()  # what is read after this opens files again


class RepositoryReader:
    """The published points, oldest first, and `damaged`: what is wrong with other points and index segments.

    The methods that are not async read files and are for worker threads, several at once.

    Args:
        points: Those that are wanted, where somebody read them already.
    """

    def __init__(
        self, objects: Objects, config: Config, points: Sequence[RestorePoint] | None = None
    ) -> None:
        self.objects = objects
        self.config = config
        points, damaged = read_points(objects, config) if points is None else (points, [])
        self.points: tuple[RestorePoint, ...] = tuple(points)
        # After the points: what a point names was published before it.
        removed, unread = readable_removed(objects, config)
        self.index = Index(objects, config.id, sealing=config.sealing, removed=removed)
        self.damaged: tuple[IntegrityError, ...] = (*damaged, *unread, *self.index.damaged)
        self._turn = threading.Lock()
        self.frames = FrameCache(objects, config, DECODED)
        self._proved: dict[bytes, memoryview] = {}
        self._proved_size = 0
        self.read_chunks = lru_cache(CHUNK_TABLES)(partial(read_chunks, objects, config))

    @classmethod
    def of(cls, backend: Backend, unlock: Sequence[Way] = (), wanted: str | None = None) -> RepositoryReader:
        """Open the repository that is there. Args, Raises: see `open_repository`."""
        config = read_config(backend, unlock)
        objects = Objects(backend, config.version)
        point = None if wanted is None else read_wanted(objects, config, wanted)
        return cls(objects, config, None if point is None else [point])

    def __repr__(self) -> str:
        return f"RepositoryReader({self.objects.place()!r})"

    def close(self) -> None:
        """Let go of files and connections; they are opened again when they are needed."""
        self.index.close()
        self.objects.backend.close()

    def resolve(self, name: str, *, machine: str | None = None) -> RestorePoint:
        """The point called `name`: an id, a unique prefix of one, or 'latest'; among all or of one VM.

        Raises ConfigError; an ambiguous name lists the candidates.
        """
        points = [point for point in self.points if machine in (None, point.machine.uuid, point.machine.name)]
        of = f" of VM {machine!r}" if machine is not None else ""
        if not points:
            raise ConfigError(
                f"The repository {self.objects.place()} has no restore points{of}.",
                remedy="Run a job into it first, or name another repository.",
            )
        if name == "latest":
            return points[-1]
        found = [point for point in points if name and point.id.startswith(name)]
        if not found:
            raise ConfigError(
                f"No restore point{of} begins with {name!r}.",
                remedy=f"`vadpipe points {self.objects.place()}` lists all; the newest is {points[-1].id}.",
            )
        if len(found) > 1:
            shown = ", ".join(f"{point.id} ({point.machine.name}, {point.created})" for point in found[:8])
            raise ConfigError(
                f"{len(found)} restore points{of} begin with {name!r}: {shown}{', ...' * (len(found) > 8)}.",
                remedy="Give more digits of the id.",
            )
        return found[0]

    async def document(self, point: RestorePoint, name: str) -> bytes:
        """The content of a document of a point, proved. Raises ConfigError when it has none of that name."""
        if name not in point.documents:
            raise ConfigError(
                f"Point {point.id} has no document {name!r}.",
                remedy=f"It has: {', '.join(sorted(point.documents)) or 'none'}.",
            )
        return await trio.to_thread.run_sync(self.read_document, point, name)

    def read_document(self, point: RestorePoint, name: str) -> bytes:
        purpose = f"Document {name!r} of point {point.id}"
        parts = [self._object(bytes.fromhex(part), purpose) for part in point.documents[name].parts]
        return b"".join(parts)

    def page_list(self, point: RestorePoint, disk: StoredDisk) -> memoryview:
        """The digests of a disk's pages, one after the other, proved by its root. All zeros is an empty page."""
        digest = bytes.fromhex(disk.pages)
        listed = self._proved.get(digest)
        if listed is None:
            listed = self._object(digest, f"Disk {disk.key} of point {point.id}")
        root = root_of(disk.capacity, listed, self.config.keys)
        if root.hex() != disk.receipt.root or len(listed) != page_count(disk.capacity) * DIGEST_SIZE:
            raise IntegrityError(
                f"Disk {disk.key} of point {point.id}: its page list does not have its root.",
                remedy="Use another point.",
                disk=disk.key,
            )
        return listed

    def page_digests(self, point: RestorePoint, disk: StoredDisk) -> Digests:
        """The same as rows of bytes."""
        return np.frombuffer(self.page_list(point, disk), np.uint8).reshape(-1, DIGEST_SIZE)

    def page(self, point: RestorePoint, disk: StoredDisk, number: int, digest: bytes) -> PageMap:
        """A map page, proved by its digest."""
        return parse_page(self.stored_page(point, disk, number, digest), _purpose(point, disk, number))

    def stored_page(self, point: RestorePoint, disk: StoredDisk, number: int, digest: bytes) -> memoryview:
        """The same, as it is stored."""
        content = self._proved.get(digest)
        if content is None:
            low, high = number * PAGE, min((number + 1) * PAGE, disk.capacity)
            facts = {"disk": disk.key, "offset": low, "length": high - low}
            content = self._object(digest, _purpose(point, disk, number), **facts)
        return content

    def addresses(self, page: PageMap) -> list[FrameAddress | None]:
        """Where the frames of a page lie; None for one that the index does not know."""
        return self._looked_up(partial(self._addresses, page.frame_ids))

    def address_now(self, identity: bytes) -> FrameAddress | None:
        """Where a frame lies after others were moved or removed: the index is read again."""
        self.refresh()
        (address,) = self._looked_up(partial(self._addresses, np.frombuffer(identity, np.uint8)[None]))
        return address

    def _addresses(self, identity: Digests) -> list[FrameAddress | None]:
        try:
            number = self.index.find_frames(identity)
            known = iter(self.index.addresses(number[number != NO_FRAME]))
        except IntegrityError as error:
            if isinstance(error.__cause__, Missing):
                raise
            return [self._address_beside_damage(each.tobytes()) for each in identity]
        return [next(known) if at != NO_FRAME else None for at in number]

    def _address_beside_damage(self, identity: bytes) -> FrameAddress | None:
        """Where a frame lies, as a sound segment says."""
        found, damage = self.index.places(identity)
        if damage is not None and not found:
            raise damage
        return found[0] if found else None

    def other_places(self, address: FrameAddress) -> Sequence[FrameAddress]:
        """Where the same frame lies, too: two runs stored it at the same time, or one segment has a wrong place."""
        return [place for place in self.index.places(address.id)[0] if place != address]

    def frame_lengths(self, page: PageMap) -> NDArray[np.int64] | None:
        """How long the frames of a page are, decoded; None when the index does not know all of them."""
        return self._looked_up(partial(self._lengths, page.frame_ids))

    def _lengths(self, identity: Digests) -> NDArray[np.int64] | None:
        try:
            number = self.index.find_frames(identity)
            return None if (number == NO_FRAME).any() else self.index.lengths(number)
        except IntegrityError:
            found = self._addresses(identity)
        lengths = [address.length for address in found if address is not None]
        return np.array(lengths, np.int64) if len(lengths) == len(found) else None

    def remember(self, digest: bytes, content: memoryview) -> bool:
        """Keep a map page or a page list that was proved, so that it is not read again. False: there is no room."""
        if digest not in self._proved:
            if self._proved_size + len(content) > PROVED:
                return False
            self._proved[digest] = content
            self._proved_size += len(content)
        return True

    def read_ahead(self, digests: Sequence[bytes]) -> None:
        """Look up map pages and page lists together that will be asked for, read them and remember them.

        What cannot be read is left to the question.
        """
        wanted = [digest for digest in digests if digest not in self._proved]
        if not wanted or self._proved_size >= PROVED:
            return
        rows = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, DIGEST_SIZE)
        with suppress(IntegrityError):
            number, _ = self.index.lookup(rows)
            found = np.flatnonzero(number != NO_FRAME)
            for at, address in zip(found.tolist(), self.index.addresses(number[found]), strict=True):
                content = read_object(self.objects, self.config, address, wanted[at], "")
                if not self.remember(wanted[at], content):
                    break

    def _looked_up(self, look: Callable[[], T]) -> T:
        """What `look` returns. Where something is gone, others merged or moved it: then the index is read again."""
        for _ in range(LOOKS):
            try:
                return look()
            except IntegrityError as error:
                if not isinstance(error.__cause__, Missing):
                    raise
            self.refresh()
        return look()

    def refresh(self) -> None:
        """Read again where things lie: packs and segments are removed while others read. Raises SinkError."""
        with self._turn:
            self.index.reload(readable_removed(self.objects, self.config)[0])

    def _object(self, digest: bytes, purpose: str, **facts: object) -> memoryview:
        if digest in self._proved:
            return self._proved[digest]
        return self._looked_up(partial(self._object_now, digest, purpose, **facts))

    def _object_now(self, digest: bytes, purpose: str, **facts: object) -> memoryview:
        try:
            return self._object_at_first_place(digest, purpose, **facts)
        except IntegrityError as error:
            if isinstance(error.__cause__, Missing):
                raise
            for address in self.index.places(digest, of_chunk=True)[0]:
                with suppress(IntegrityError):
                    content = read_object(self.objects, self.config, address, digest, purpose, **facts)
                    log.warning("%s Another copy of it is used.", error)
                    return content
            raise

    def _object_at_first_place(self, digest: bytes, purpose: str, **facts: object) -> memoryview:
        number, _ = self.index.lookup(np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE))
        if number[0] == NO_FRAME:
            raise IntegrityError(
                f"{purpose}: {digest.hex()[:16]} is not in the index.",
                remedy="Put the missing files of index/ back from a copy of the repository, "
                "unless the point was removed.",
                **facts,
            ) from Missing()
        (address,) = self.index.addresses(number)
        return read_object(self.objects, self.config, address, digest, purpose, **facts)


@dataclass(frozen=True, repr=False)
class ReadPoint(Source[Span | Zeros]):
    """A disk of a restore point, whole and proved, out.

    Out: spans and zero ranges in ascending order, covering [0, capacity); in a span, what is not `data` is zero.
    Everything is proved on the way: root, page list, pages, frames, and the digest of every chunk.
    Memory: `workers` + 2 spans of `pool`, in the reader 32 MiB of decoded frames and up to 32 MiB of stored ones.
    Cancel: waits for frames being decoded. Raises: ConfigError for a disk that the point does not have,
    IntegrityError with disk, offset, length, pack and position; other disks stay readable.
    """

    reader: RepositoryReader
    point: RestorePoint
    disk: str
    workers: int = 2
    pool: BufferPool = field(default_factory=BufferPool)

    def __repr__(self) -> str:
        return f"ReadPoint({self.point.id!r}, {self.disk!r})"

    async def run(self, outbox: SendChannel[Span | Zeros]) -> None:
        content = DiskContent(self.reader, self.point, disk_of(self.point, self.disk))
        pages = await trio.to_thread.run_sync(content.pages)
        await _send(outbox, content, pages, content.parts, Zeros, self.pool, self.workers)


@dataclass(frozen=True, repr=False)
class ReadChanges(Source[Span | Zeros | Unchanged]):
    """A disk of a restore point as it differs from the same disk of another point, proved, out.

    Out: spans and unchanged ranges in ascending order, covering [0, capacity). A range counts as changed where the
    maps of the points name other places of other frames, so equal bytes that were stored twice count as changed.
    Only frames of changed ranges are read. Memory, Cancel, Raises: as ReadPoint; ConfigError where `since` has no
    such disk of this capacity.
    """

    reader: RepositoryReader
    point: RestorePoint
    disk: str
    since: RestorePoint
    workers: int = 2
    pool: BufferPool = field(default_factory=BufferPool)

    def __repr__(self) -> str:
        return f"ReadChanges({self.point.id!r}, {self.disk!r}, since={self.since.id!r})"

    async def run(self, outbox: SendChannel[Span | Zeros | Unchanged]) -> None:
        now, then = disk_of(self.point, self.disk), disk_of(self.since, self.disk)
        if now.capacity != then.capacity:
            raise ConfigError(
                f"Disk {self.disk} has {now.capacity} bytes in point {self.point.id} and {then.capacity} in "
                f"{self.since.id}.",
                remedy="Read the whole disk: ReadPoint.",
            )
        content = DiskContent(self.reader, self.point, now)
        before = DiskContent(self.reader, self.since, then)
        pages, others = await trio.to_thread.run_sync(_differing_pages, content, before)

        def parts(offset: int, digest: bytes) -> list[_Part]:
            return content.changed_parts(offset, digest, before.rows(offset, others.get(offset, EMPTY_PAGE)))

        await _send(outbox, content, pages, parts, Unchanged, self.pool, self.workers)


def _differing_pages(
    content: DiskContent, before: DiskContent
) -> tuple[list[tuple[int, bytes]], dict[int, bytes]]:
    """Offset and digest of the pages that are not as before, and the pages before by offset."""
    now, then = dict(content.pages()), dict(before.pages())
    offsets = sorted(now.keys() | then.keys())
    differing = [
        (offset, now.get(offset, EMPTY_PAGE)) for offset in offsets if now.get(offset) != then.get(offset)
    ]
    return differing, then


async def _send(
    outbox: SendChannel[Any],
    content: DiskContent,
    pages: Sequence[tuple[int, bytes]],
    parts_of: Callable[[int, bytes], Sequence[_Part]],
    gap: Callable[[int, int], Zeros | Unchanged],
    pool: BufferPool,
    workers: int,
) -> None:
    """Send the parts of some pages as spans, and gaps between them."""
    capacity = content.capacity
    threads = trio.CapacityLimiter(workers)
    held: dict[int, Span] = {}

    async def fill(piece: _Piece | Zeros | Unchanged) -> Span | Zeros | Unchanged:
        if isinstance(piece, _Piece):
            await trio.to_thread.run_sync(content.fill, piece, limiter=threads)
            return piece.span
        return piece

    async def plan(send: trio.MemorySendChannel[_Piece | Zeros | Unchanged]) -> None:
        async with send:
            reached = 0
            for offset, digest in pages:
                for part in await trio.to_thread.run_sync(parts_of, offset, digest, limiter=threads):
                    if part.offset > reached:
                        await send.send(gap(reached, part.offset - reached))
                    reached = part.offset + part.length
                    span = Span(
                        offset=part.offset,
                        length=part.length,
                        data=part.data,
                        zeros=part.zeros,
                        buffer=await pool.acquire(),
                    )
                    held[part.offset] = span
                    await send.send(_Piece(span, part))
            if reached < capacity:
                await send.send(gap(reached, capacity - reached))

    try:
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[_Piece | Zeros | Unchanged](0)
            nursery.start_soon(plan, send)
            await run_ordered(receive, HandingOver(outbox, held), fill, concurrency=workers)
    finally:
        for span in held.values():
            span.release()


def _purpose(point: RestorePoint, disk: StoredDisk, number: int) -> str:
    """What a map page is wanted for."""
    low, high = number * PAGE, min((number + 1) * PAGE, disk.capacity)
    return f"Disk {disk.key} of point {point.id}, bytes {low} to {high}, map page"


def disk_of(point: RestorePoint, key: str) -> StoredDisk:
    """The disk of a point with this key. Raises ConfigError."""
    disk = point.disk(key)
    if disk is None:
        raise ConfigError(
            f"Point {point.id} has no disk {key!r}.",
            remedy=f"It has: {', '.join(disk.key for disk in point.disks)}.",
        )
    return disk


class HandingOver(SendChannel[A]):
    """An outbox that notes which spans are now somebody else's. An error keeps the frames that it went through,
    and with them spans that were never sent: other disks would wait for their buffers forever."""

    def __init__(self, outbox: SendChannel[A], held: dict[int, Span]) -> None:
        self._outbox = outbox
        self._held = held

    async def send(self, value: A) -> None:
        await self._outbox.send(value)
        self._held.pop(value.offset, None)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, eq=False)
class _Piece:
    """A span to be filled, and the part of the map that says from where."""

    span: Span
    part: _Part


@dataclass(frozen=True, eq=False)
class _Part:
    """A span that is going to be read: what of it is data and zero, and the rows of the map for the data."""

    offset: int
    length: int
    data: Extents
    zeros: Extents
    rows: PageMap
    page: ContentPage


@dataclass(frozen=True, eq=False)
class ContentPage:
    """A loaded map page: `rows` count clusters from its begin, `addresses` say where their frames lie."""

    offset: int
    rows: PageMap
    addresses: Sequence[FrameAddress | None]

    @cached_property
    def used_once(self) -> NDArray[np.bool_]:
        """For each frame, whether one row has all that the page has of it."""
        used: NDArray[np.bool_] = np.bincount(self.rows.frame, minlength=len(self.addresses)) == 1
        return used

    def spans(self, capacity: int) -> Iterator[tuple[int, Extents, PageMap]]:
        """The spans that hold data: offset, data extents, rows."""
        if not len(self.rows):
            return
        per_span = SPAN // CLUSTER
        for number in range(int(self.rows.offset[0]) // per_span, -(-int(self.rows.end[-1]) // per_span)):
            border = np.array([number * per_span, (number + 1) * per_span])
            part = self.rows.within(border[:1], border[1:])
            if len(part):
                start = self.offset + number * SPAN
                data = Extents.from_columns(part.offset * CLUSTER + self.offset, part.count * CLUSTER)
                yield start, data.within(start, min(SPAN, capacity - start)), part


class DiskContent:
    """What a point holds of a disk, page by page. For worker threads. Raises IntegrityError."""

    def __init__(self, reader: RepositoryReader, point: RestorePoint, disk: StoredDisk) -> None:
        self._reader = reader
        self._point = point
        self._disk = disk

    @property
    def capacity(self) -> int:
        return self._disk.capacity

    def pages(self) -> list[tuple[int, bytes]]:
        """Offset and digest of the pages that are not empty."""
        digests = self._reader.page_digests(self._point, self._disk)
        used = np.flatnonzero(digests.any(axis=1)).tolist()
        return [(number * PAGE, digests[number].tobytes()) for number in used]

    def page(self, offset: int, digest: bytes) -> ContentPage:
        rows = self._reader.page(self._point, self._disk, offset // PAGE, digest)
        return ContentPage(offset, rows, self._reader.addresses(rows))

    def rows(self, offset: int, digest: bytes) -> PageMap:
        """A map page alone; that of an empty one has no rows."""
        if digest == EMPTY_PAGE:
            return PageMap.empty()
        return self._reader.page(self._point, self._disk, offset // PAGE, digest)

    def parts(self, offset: int, digest: bytes) -> list[_Part]:
        """The spans of a page that hold data."""
        page = self.page(offset, digest)
        self._reader.frames.expect(filter(None, page.addresses))
        found: list[_Part] = []
        for start, data, rows in page.spans(self.capacity):
            length = min(SPAN, self.capacity - start)
            found.append(_Part(start, length, data, data.inverted(start, length), rows, page))
        return found

    def changed_parts(self, offset: int, digest: bytes, before: PageMap) -> list[_Part]:
        """The spans of a page that differ from an earlier page."""
        rows = self.rows(offset, digest)
        first, last = run_borders(rows.differing(before))
        page = ContentPage(offset, rows.within(first, last), self._reader.addresses(rows))
        used = (page.addresses[number] for number in np.unique(page.rows.frame).tolist())
        self._reader.frames.expect(filter(None, used))
        start = first * CLUSTER + offset
        changed = Extents.from_columns(start, last * CLUSTER + offset - start).within(
            offset, min(PAGE, self.capacity - offset)
        )
        data = {start: (extents, part) for start, extents, part in page.spans(self.capacity)}
        found: list[_Part] = []
        for low in range(offset, min(offset + PAGE, self.capacity), SPAN):
            length = min(SPAN, self.capacity - low)
            if len(inside := changed.within(low, length)):
                extents, part = data.get(low, (Extents.empty(), PageMap.empty()))
                found.append(_Part(low, length, extents, inside - extents, part, page))
        return found

    def fill(self, piece: _Piece) -> None:
        """Decode what the span needs, and put it in its places."""
        span, rows, page = piece.span, piece.part.rows, piece.part.page
        memory, low = span.buffer.memory, span.offset % PAGE
        order = np.argsort(rows.frame, kind="stable")
        starts = (rows.offset[order] * CLUSTER - low).tolist()
        lengths = (rows.count[order] * CLUSTER).tolist()
        places = (rows.place[order] * CLUSTER).tolist()
        frames = rows.frame[order].tolist()
        decoded, data = -1, memoryview(b"")
        for number, start, length, place in zip(frames, starts, lengths, places, strict=True):
            length = min(length, span.length - start)  # the tail of a disk is no whole cluster
            target = memory[start : start + length]
            if number != decoded:
                address, identity = page.addresses[number], rows.frame_ids[number].tobytes()
                if address is not None and address.length == length and page.used_once[number]:
                    read = partial(self._reader.frames.read_into, target=target)
                    self._read(read, address, span.offset + start, length, identity)
                    continue
                data = self.frame(address, span.offset + start, length, identity)
                decoded = number
            if place + length > len(data):
                raise self.damaged(span.offset + start, length, "the map reads beyond its frame")
            target[:] = data[place : place + length]

    def frame(self, address: FrameAddress | None, offset: int, length: int, identity: bytes) -> memoryview:
        """The bytes of a frame, which the map names for `length` bytes at `offset` of the disk."""
        return self._read(self._reader.frames.read, address, offset, length, identity)

    def frame_into(
        self, address: FrameAddress, offset: int, length: int, identity: bytes, target: memoryview
    ) -> None:
        """As `frame`, into `address.length` bytes of memory; the frame is not kept here."""
        self._read(partial(self._reader.frames.read_into, target=target), address, offset, length, identity)

    def chunks(
        self, address: FrameAddress | None, offset: int, length: int, identity: bytes
    ) -> NDArray[np.void]:
        """As `frame`, the chunk table of the frame alone: `length` and `digest` of its chunks, side by side."""
        return self._read(self._reader.read_chunks, address, offset, length, identity)

    def _read(
        self,
        read: Callable[[FrameAddress], T],
        address: FrameAddress | None,
        offset: int,
        length: int,
        identity: bytes,
    ) -> T:
        for _ in range(LOOKS):
            try:
                if address is not None:
                    return read(address)
            except Missing:
                pass
            except Damage:
                break
            address = self._reader.address_now(identity)
        if address is None:
            raise self.damaged(offset, length, f"frame {identity.hex()[:16]} is not in the index")
        try:
            return read(address)
        except Damage as damage:
            facts = {"disk": self._disk.key, "offset": offset, "length": length}
            purpose = f"Disk {self._disk.key} of point {self._point.id}, bytes {offset} to {offset + length}"
            error = damaged_frame(self._reader.objects, address, damage, purpose, **facts)
            for other in self._reader.other_places(address):
                with suppress(Damage):
                    found = read(other)
                    log.warning("%s Another copy of it is used, in pack %s.", error, other.pack)
                    return found
            raise error from damage

    def damaged(self, offset: int, length: int, problem: str) -> IntegrityError:
        """The error for a range of the disk that cannot be had."""
        return IntegrityError(
            f"Disk {self._disk.key} of point {self._point.id}, bytes {offset} to {offset + length}: {problem}.",
            remedy="Restore another point; `vadpipe verify` lists all that is hit.",
            disk=self._disk.key,
            offset=offset,
            length=length,
        )
