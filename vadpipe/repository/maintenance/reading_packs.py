"""Reading packs back: every frame is proved, and compared with what the index says of it.

Small packs are read many at a time. What costs by the call, and not by the byte, is done for all of them together:
comparing tables of frames and rows of chunks with the index. Where such packs are as they were written, that is
all. Otherwise each of them is read once more by itself, and `check_pack` says what is wrong with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, KiB, MiB

from ..format.config import Config
from ..format.frames import CHUNK, Frame, Kind, decode, parse
from ..format.objects import Damage, Missing, Objects, ReadAhead
from ..format.packs import FRAME_ROW, FrameAddress, addresses, frame_of, read_table, side_by_side, table_in
from ..index.cells import Rows
from ..index.lookup import AnySegment

_Listing = tuple[AnySegment, Rows]  # some frames of a segment
_Page = tuple[bytes, memoryview]  # digest and content of a map page or a page list
_Digest = bytes


@dataclass
class PackToRead:
    """A pack to be read: what the index lists in it, and its size in bytes.

    `needed`: offsets of the frames to be read, and `size` is theirs; None: all frames.
    """

    name: str
    listed: list[_Listing] = field(default_factory=list)
    size: int = 0
    needed: set[int] | None = None


@dataclass
class PackReport:
    """What reading one pack gave, or several that are sound.

    `damaged`: addresses of frames, and what is wrong with them.
    `misplaced`: segments, and addresses that they have of frames where the pack has another one, or none.
    `unlisted`: how many frames of the pack's own table no segment lists.
    `rows`: for each segment, how many of its chunk rows agree with the frames, and how many could not be compared.
    `pages`: digests and contents of map pages and page lists that are sound and that the index leads to; not of
    all, where they are many. `documents`: digests of such pieces of documents.
    """

    path: str
    pack: str = ""
    packs: int = 1
    frames: int = 0
    bytes: int = 0
    missing: bool = False
    damaged: list[tuple[FrameAddress, str]] = field(default_factory=list)
    misplaced: list[tuple[AnySegment, FrameAddress]] = field(default_factory=list)
    unlisted: int = 0
    problem: str = ""
    rows: dict[AnySegment, tuple[int, int]] = field(default_factory=dict)
    pages: list[_Page] = field(default_factory=list)
    documents: list[_Digest] = field(default_factory=list)

    def count(self, segment: AnySegment, right: int, unknown: int) -> None:
        before = self.rows.get(segment, (0, 0))
        self.rows[segment] = before[0] + right, before[1] + unknown


# Frames that lie side by side are read together, up to this size: a request costs as much as 1 MiB, or more.
_READ_AT_ONCE = 8 * MiB

_PAGES_OF_PACK = 8 * MiB

# A trip to a worker thread costs 0.1 ms of CPU, as much as a small pack. After so many seconds it comes back: a
# trip cannot be cancelled.
TRIP_S: Final = 0.05

_SMALL: Final = 256 * KiB  # a pack whose calls cost as much as its bytes
_TOGETHER: Final = 4 * MiB  # of small packs


def in_batches(packs: Iterable[PackToRead]) -> list[list[PackToRead]]:
    """Large packs one by one, and small ones of one segment together; in their order, but for small ones."""
    batches: list[list[PackToRead]] = []
    begun: dict[AnySegment, tuple[list[PackToRead], int]] = {}
    for pack in packs:
        if not _is_small(pack):
            batches.append([pack])
            continue
        segment = pack.listed[0][0]
        batch, size = begun.pop(segment, ([], 0))
        if not batch:
            batches.append(batch)
        batch.append(pack)
        if size + pack.size < _TOGETHER:
            begun[segment] = batch, size + pack.size
    return batches


def _is_small(pack: PackToRead) -> bool:
    return pack.needed is None and 0 < pack.size <= _SMALL and len(pack.listed) == 1


def check_packs(
    objects: Objects, config: Config, batches: Iterator[list[PackToRead]]
) -> list[tuple[list[PackToRead], PackReport]]:
    """On a worker thread: check the next packs, for a short while."""
    until = time.monotonic() + TRIP_S
    reports: list[tuple[list[PackToRead], PackReport]] = []
    for batch in batches:
        together = _sound(objects, config, batch) if _is_small(batch[0]) else None
        if together is not None:
            reports.append((batch, together))
        else:
            reports += (([pack], check_pack(objects, config, pack)) for pack in batch)
        if time.monotonic() >= until:
            break
    return reports


def _sound(objects: Objects, config: Config, packs: Sequence[PackToRead]) -> PackReport | None:
    """What reading some packs gave, of which the same segment lists frames, and no other; None where not all is as
    `check_pack` wants it."""
    report = PackReport("", packs=len(packs))
    segment = packs[0].listed[0][0]
    contents: list[bytes] = []
    tables: list[bytes] = []
    ends: list[int] = []
    chunks: list[bytes] = []
    ids: list[bytes] = []
    held = 0
    try:
        for pack in packs:
            contents.append(objects.read_whole(objects.pack(pack.name), pack.size))
            table, end = table_in(contents[-1], config.id, pack.name)
            tables.append(table)
            ends.append(end)
        rows = np.frombuffer(b"".join(tables), FRAME_ROW)
        counts = [len(table) // FRAME_ROW.itemsize for table in tables]
        listed = np.concatenate([pack.listed[0][1] for pack in packs])
        if not side_by_side(rows, counts, ends) or not _lists(segment, listed, rows):
            return None
        places = zip(*(rows[name].tolist() for name in ("offset", "size", "length")), strict=True)
        for content, count in zip(contents, counts, strict=True):
            for offset, size, length in islice(places, count):
                frame = parse(memoryview(content)[offset : offset + size], config)
                if frame.length != length:
                    return None
                data = decode(frame, config.keys)
                report.bytes += len(data)
                ids.append(frame.id)
                chunks.append(frame.table)
                if frame.kind is not Kind.DATA and len(frame.table) == CHUNK.itemsize:
                    digest = frame.table[-DIGEST_SIZE:]
                    if frame.kind is Kind.DOCUMENT:
                        report.documents.append(digest)
                    elif held < _PAGES_OF_PACK:
                        held += len(data)
                        report.pages.append((digest, _alone(frame, data)))
    except Damage:
        return None
    right, many = _agreeing(segment, listed, chunks)
    report.frames = len(rows)
    report.count(segment, right, 0)
    return report if right == many and b"".join(ids) == rows["id"].tobytes() else None


def _agreeing(segment: AnySegment, rows: Rows, tables: Sequence[bytes]) -> tuple[int, int]:
    """How many chunk rows of a segment say what its frames really hold, by their chunk tables; and of how many."""
    chunk = np.frombuffer(b"".join(tables), CHUNK)
    many = np.array([len(table) for table in tables]) // CHUNK.itemsize
    end = np.cumsum(chunk["length"], dtype=np.int64)
    place = end - chunk["length"]
    place -= np.repeat(place[np.cumsum(many) - many], many)
    return segment.agreeing(rows, many, chunk["digest"], place), len(chunk)


def check_pack(objects: Objects, config: Config, pack: PackToRead) -> PackReport:
    """Read the frames of a pack: those of its own table, and those that the index expects in it.

    Every frame is compared with the rows that the index has of its chunks.
    """
    name, report = pack.name, PackReport(objects.place(objects.pack(pack.name)), pack.name)
    if pack.needed is None:
        objects = ReadAhead(objects, _READ_AT_ONCE, most=1)  # a small pack takes one request
    frames: dict[int, FrameAddress] = {}
    listed: dict[int, list[tuple[AnySegment, int]]] = {}
    own: dict[int, FrameAddress] | None = None
    table: NDArray[np.void] | None = None
    try:
        table = read_table(objects, config.id, name)
        own = {each.offset: each for each in addresses(table, name)}
    except Damage as damage:
        report.problem, report.missing = str(damage), isinstance(damage, Missing)
        if report.missing and pack.listed:  # or these are wrong
            report.problem += f"; it is named by {', '.join(segment.name for segment, _ in pack.listed)}"
    frames.update(own or {})
    for segment, rows in pack.listed:
        if table is not None and _lists(segment, rows, table):
            for row, offset in zip(rows.tolist(), own or (), strict=True):
                listed.setdefault(offset, []).append((segment, row))
            continue
        for row, address in zip(rows.tolist(), segment.addresses(rows), strict=True):
            # The table of the pack has a checksum, and its frames prove it: a row that differs is wrong itself.
            if own is not None and own.get(address.offset) != address:
                report.misplaced.append((segment, address))
                report.count(segment, 0, segment.chunks_of(np.array([row])))
                continue
            listed.setdefault(address.offset, []).append((segment, row))
            if frames.setdefault(address.offset, address) != address:
                report.problem = f"the index has two frames at byte {address.offset}"
    report.unlisted = len((own or {}).keys() - listed.keys())
    wanted = [
        address for offset, address in sorted(frames.items()) if pack.needed is None or offset in pack.needed
    ]
    found: dict[AnySegment, list[tuple[int, bytes]]] = {}
    pages: list[_Page] = []
    documents: list[bytes] = []
    held = 0
    for address, content in _contents(objects, wanted):
        try:
            if isinstance(content, Damage):
                raise content
            frame = frame_of(content, address, config)
            data = decode(frame, config.keys)
            report.bytes += len(data)
            report.frames += 1
        except Damage as damage:
            report.damaged.append((address, str(damage)))
            for segment, row in listed.get(address.offset, ()):
                report.count(segment, 0, segment.chunks_of(np.array([row])))
            continue
        for segment, row in listed.get(address.offset, ()):
            found.setdefault(segment, []).append((row, frame.table))
        if frame.kind != Kind.DATA and len(frame.table) == CHUNK.itemsize and address.offset in listed:
            digest = frame.table[-DIGEST_SIZE:]
            if frame.kind == Kind.DOCUMENT:
                documents.append(digest)
            elif held < _PAGES_OF_PACK:
                held += len(data)
                pages.append((digest, _alone(frame, data)))
    wrong = 0
    for segment, chunks in found.items():  # all chunks of the pack at once: a comparison costs by the call
        right, many = _agreeing(segment, np.array([row for row, _ in chunks]), [table for _, table in chunks])
        report.count(segment, right, 0)
        wrong += many - right
    if not wrong:
        report.pages, report.documents = pages, documents
    return report


def _alone(frame: Frame, data: memoryview) -> memoryview:
    """The same bytes: those of a frame that is not compressed would keep the whole pack in memory."""
    return memoryview(bytes(data)) if data.obj is frame.payload.obj else data


def _lists(segment: AnySegment, rows: Rows, table: NDArray[np.void]) -> bool:
    """Whether rows of a segment are the whole table of a pack, as they are for most packs."""
    if len(rows) != len(table):
        return False
    frames = segment.take(segment.frame_section, rows).copy()
    frames["pack"] = 0
    return bool(frames.tobytes() == table.tobytes())


def _contents(
    objects: Objects, wanted: Sequence[FrameAddress]
) -> Iterator[tuple[FrameAddress, memoryview | Damage]]:
    """The stored bytes of frames, which ascend; what lies side by side is read together."""
    low = 0
    while low < len(wanted):
        high, begin = low + 1, wanted[low].offset
        while (
            high < len(wanted)
            and wanted[high].offset == wanted[high - 1].offset + wanted[high - 1].size
            and wanted[high].offset + wanted[high].size - begin <= _READ_AT_ONCE
        ):
            high += 1
        together = wanted[low:high]
        try:
            end = together[-1].offset + together[-1].size
            content = memoryview(objects.read(objects.pack(together[0].pack), begin, end - begin))
            yield from ((each, content[each.offset - begin :][: each.size]) for each in together)
        except Damage as damage:
            if len(together) == 1:
                yield together[0], damage
            else:  # one of them alone may be whole
                for each in together:
                    yield from _contents(objects, [each])
        low = high
