"""Merging index segments, so that their number stays small however many runs there were.

Every run adds a segment, and every search looks into all of them. When there are more than MOST, a run first
merges the smallest ones: at least FEWEST, and more as long as the next one is no larger than all before
together. So a row is written anew about once for every doubling of the index, and a run with little to store
pays little.

Rows are copied in their order. What is sorted by digest is made anew from temporary files, one range of digests
after the other. So memory does not grow with the segments, but for a byte for each frame. Whoever merges names
the old segments in a removal when the new one is published: until then both are there, and both are right.
"""

from __future__ import annotations

import logging
import secrets
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import KiB, MiB

from ..format.objects import Objects, run_of
from ..format.sealing import Sealing, aes_gcm, open_cell, seal_cell
from .cells import Cells
from .lookup import Removed
from .segment_writer import SegmentWriter, SortedEntries, TemporarySegment, publish, temporary_errors
from .segments import ENDED_SIZE, FRAMES, MOST_CHUNKS, ROWS, Counts, Segment, heads

if TYPE_CHECKING:
    from ..backends.contract import Stored

log = logging.getLogger(__name__)

MOST: Final = 16
FEWEST: Final = 8
AT_ONCE: Final = 256  # segments in one merge
FRAMES_AT_ONCE: Final = 16 * KiB
ROWS_AT_ONCE: Final = 128 * KiB  # 5 MiB; a frame has at most 4096 chunks
SORTED_AT_ONCE: Final = 128 * KiB  # entries in a range of digests, on average

_BLOCK: Final = 16 * KiB  # of a temporary file, at most
_WAITING: Final = 16 * MiB  # what waits in memory until it is a block
_ENTRY: Final = np.dtype([("head", "<u8"), ("row", "<u4")])

# Frame rows, whose column `pack` numbers the ids that come with them; which of the frames stay.
KeepFrame = Callable[[NDArray[np.void], Sequence[str]], NDArray[np.bool_]]


def smallest(stored: Iterable[Stored], running: Collection[str]) -> list[str]:
    """The names of the segments to merge next; none when they are few enough.

    Args:
        stored: The segments that are in use.
        running: The runs that have not ended: theirs are left alone.
    """
    listed = [each for each in stored if each.size != ENDED_SIZE]
    if len(listed) <= MOST:
        return []
    sized = sorted((each.size, each.name) for each in listed if run_of(each.name) not in running)
    group: list[str] = []
    total = 0
    for size, name in sized[:AT_ONCE]:
        if len(group) >= FEWEST and size > total:
            break
        group.append(name)
        total += size
    return group if len(group) >= FEWEST else []


def merge(
    objects: Objects,
    repository_id: bytes,
    names: Sequence[str],
    final: str,
    *,
    sealing: Sealing | None = None,
    removed: Removed | None = None,
    keep_frame: KeepFrame | None = None,
    directory: Path | str | None = None,
) -> bool:
    """Publish one segment that has what some have together. The old ones stay.

    Args:
        names: Of the old segments.
        final: The name of the new one.
        removed: Frames in packs that it names are left out.
        keep_frame: Says which of the others stay; None: all.
        directory: For temporary files; None: the system's.

    Returns:
        Whether there is a new segment; there is none when no frame stays.

    Raises:
        ObjectExists: `final` is taken.
        SinkError, IntegrityError: Nothing was published.
    """
    cells = Cells(8 * MiB)
    segments = [Segment(objects, name, repository_id, sealing, cells) for name in names]
    temporary = TemporarySegment(final, directory)
    try:
        with temporary_errors(directory):
            written = _write(
                temporary, repository_id, sealing, segments, (removed or Removed()).packs, keep_frame
            )
        if written:
            publish(objects, temporary)
        return written
    finally:
        temporary.close()


def _write(
    temporary: TemporarySegment,
    repository_id: bytes,
    sealing: Sealing | None,
    segments: Sequence[Segment],
    removed: frozenset[str],
    keep_frame: KeepFrame | None,
) -> bool:
    kept = _kept(segments, removed, keep_frame)
    frames = sum(int(each.sum()) for each in kept)
    if not frames:
        return False
    chunks = sum(
        int(segment.column(FRAMES, low, high)["chunks"][keep[low:high]].sum(dtype=np.int64))
        for segment, keep in zip(segments, kept, strict=True)
        for low, high in _windows(segment)
    )
    packs, numbers = _packs(segments, kept)
    if chunks > MOST_CHUNKS:
        raise ValueError("the segments have too many chunks for one")
    counts = Counts(frames, chunks, len(packs))
    writer = SegmentWriter(temporary.file, temporary.name, repository_id, counts, sealing)
    sealed = sealing is not None and sealing.sealed
    entries = _Ranges(chunks, temporary.directory, sealed)
    ids = _Ranges(frames, temporary.directory, sealed)
    bounds = _Blocks(temporary.directory, sealed)
    frame_rows = _Blocks(temporary.directory, sealed)
    try:
        frame = row = 0
        for rows, chunk_rows in _frames(segments, kept, numbers):
            many = rows["chunks"].astype(np.int64)
            bounds.append((row + np.cumsum(many) - many).astype("<u4"))
            frame_rows.append(rows)
            ids.add(heads(rows["id"]), frame)
            chunk_rows["frame"] = frame + np.repeat(np.arange(len(rows)), many)
            entries.add(heads(chunk_rows["digest"]), row)
            writer.write(chunk_rows)
            frame, row = frame + len(rows), row + len(chunk_rows)
        writer.end_column()
        for part in (*frame_rows.pieces(), None, *bounds.pieces(), None):
            writer.end_column() if part is None else writer.write(np.frombuffer(part, np.uint8))
        writer.write(np.frombuffer(b"".join(bytes.fromhex(name) for name in packs), np.uint8))
        writer.end_column()
        entries.write(writer, with_filter=True)
        ids.write(writer, with_filter=False)
        writer.finish()
    finally:
        for each in (entries, ids, bounds, frame_rows):
            each.close()
    return True


def _windows(segment: Segment) -> Iterator[tuple[int, int]]:
    """Ranges of frames that are in memory together, with at most ROWS_AT_ONCE chunks, or one frame."""
    low = 0
    while low < segment.frames:
        high = min(low + FRAMES_AT_ONCE, segment.frames)
        bounds = segment.bounds(low, high)
        fitting = int(np.searchsorted(bounds, int(bounds[0]) + ROWS_AT_ONCE, side="right")) - 1
        high = low + max(1, min(fitting, high - low))
        yield low, high
        low = high


def _kept(
    segments: Sequence[Segment], removed: frozenset[str], keep_frame: KeepFrame | None
) -> list[NDArray[np.bool_]]:
    """For each segment which of its frames stay: a byte each.

    Two segments have the same frame of the same pack where a merge was cut off, or a segment was made of packs.
    """
    names = [segment.packs() for segment in segments]
    seen: set[str] = set()
    shared: dict[str, int] = {}
    for packs in names:
        for pack in set(packs) & seen:
            shared.setdefault(pack, len(shared))
        seen.update(packs)
    stored: NDArray[np.uint64] = np.zeros(0, np.uint64)  # frames of shared packs: pack and offset
    kept: list[NDArray[np.bool_]] = []
    for segment, packs in zip(segments, names, strict=True):
        stays = np.array([pack not in removed for pack in packs], np.bool_)
        is_shared = np.array([shared.get(pack, -1) for pack in packs], np.int64)
        keep = np.zeros(segment.frames, np.bool_)
        here: list[NDArray[np.uint64]] = []
        for low, high in _windows(segment):
            rows = segment.column(FRAMES, low, high)
            if int(rows["pack"].max()) >= len(packs):
                raise segment.damaged("a frame of it is in a pack that it does not name")
            each = stays[rows["pack"]]
            if keep_frame is not None:
                each &= keep_frame(rows, packs)
            if shared:
                number = is_shared[rows["pack"]]
                key = number.astype(np.uint64) << np.uint64(32) | rows["offset"]
                each &= (number < 0) | ~np.isin(key, stored)
                here.append(key[each & (number >= 0)])
            keep[low:high] = each
        if here:
            stored = np.unique(np.concatenate((stored, *here)))
        kept.append(keep)
    return kept


def _packs(
    segments: Sequence[Segment], kept: Sequence[NDArray[np.bool_]]
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """The packs that are still named, and for each segment the new numbers of its packs."""
    packs: dict[str, int] = {}
    numbers: list[NDArray[np.int64]] = []
    for segment, keep in zip(segments, kept, strict=True):
        names = segment.packs()
        used = np.zeros(len(names), np.bool_)
        for low, high in _windows(segment):
            used[segment.column(FRAMES, low, high)["pack"][keep[low:high]]] = True
        number = np.full(len(names), -1, np.int64)
        for place in np.flatnonzero(used).tolist():
            number[place] = packs.setdefault(names[place], len(packs))
        numbers.append(number)
    return list(packs), numbers


def _frames(
    segments: Sequence[Segment], kept: Sequence[NDArray[np.bool_]], numbers: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.void], NDArray[np.void]]]:
    """The frames that stay, and their chunk rows, in their order; the chunk rows have old frame numbers."""
    for segment, keep, number in zip(segments, kept, numbers, strict=True):
        for low, high in _windows(segment):
            stays = keep[low:high]
            if not stays.any():
                continue
            bounds = segment.bounds(low, high)
            rows = segment.column(FRAMES, low, high)
            many = np.diff(bounds)
            if (many != rows["chunks"]).any():
                raise segment.damaged("its frames have impossible chunks")
            chunks = segment.column(ROWS, int(bounds[0]), int(bounds[-1]))
            if (chunks["frame"] != np.repeat(np.arange(low, high), many)).any():
                raise segment.damaged("a chunk of it is in another frame than its row says")
            rows = rows[stays].copy()
            rows["pack"] = number[rows["pack"]]
            yield rows, chunks[np.repeat(stays, many)].copy()


class _Blocks:
    """Blocks of bytes in a temporary file, encrypted under a key that only this process knows where `sealed`."""

    def __init__(self, directory: Path | str | None, sealed: bool) -> None:
        self._file = TemporarySegment("blocks", directory)
        self._offset = array("q", [0])  # of each block, and the end of the last one
        self._cipher = aes_gcm(secrets.token_bytes(32)) if sealed else None

    def append(self, rows: NDArray[np.generic]) -> int:
        """The number of the new block."""
        content = np.ascontiguousarray(rows).tobytes()
        number = len(self._offset) - 1
        if self._cipher is not None:
            content = seal_cell(self._cipher, number, content, b"")
        self._file.file.write(content)
        self._offset.append(self._offset[-1] + len(content))
        return number

    def read(self, number: int) -> bytes:
        self._file.file.flush()
        offset, end = self._offset[number : number + 2]
        content = self._file.read("", offset, end - offset)
        return content if self._cipher is None else open_cell(self._cipher, number, content, b"")

    def pieces(self) -> Iterator[bytes]:
        """All blocks."""
        return map(self.read, range(len(self._offset) - 1))

    def close(self) -> None:
        self._file.close()


class _Ranges:
    """Digests and their rows, one range of digests after the other: they come in any order and leave sorted."""

    def __init__(self, count: int, directory: Path | str | None, sealed: bool) -> None:
        self._count = count
        self._parts = max(1, -(-count // SORTED_AT_ONCE))
        self._blocks = _Blocks(directory, sealed)
        self._directory = directory
        self._sealed = sealed
        # All in one array: many small ones among large ones would keep freed memory from being used again.
        room = max(16, min(_BLOCK, _WAITING // self._parts) // _ENTRY.itemsize)
        self._waiting = np.empty((self._parts, room), _ENTRY)
        self._rows = [0] * self._parts
        self._block = [array("q") for _ in range(self._parts)]

    def add(self, head: NDArray[np.uint64], first: int) -> None:
        """Digests of the rows from number `first` on."""
        entry = np.empty(len(head), _ENTRY)
        entry["head"], entry["row"] = head, np.arange(first, first + len(head))
        part = ((head >> np.uint64(32)) * np.uint64(self._parts)) >> np.uint64(32)
        order = np.argsort(part, kind="stable")
        borders = np.searchsorted(part[order], np.arange(self._parts + 1)).tolist()
        entry = entry[order]
        for number, (low, high) in enumerate(pairwise(borders)):
            while low < high:
                rows = self._rows[number]
                fitting = min(high - low, self._waiting.shape[1] - rows)
                self._waiting[number, rows : rows + fitting] = entry[low : low + fitting]
                self._rows[number] += fitting
                low += fitting
                if self._rows[number] == self._waiting.shape[1]:
                    self._block[number].append(self._blocks.append(self._waiting[number]))
                    self._rows[number] = 0

    def write(self, writer: SegmentWriter, *, with_filter: bool) -> None:
        """The columns of entries and of buckets, and that of the filter."""
        made = SortedEntries(self._count, with_filter=with_filter)
        words = _Blocks(self._directory, self._sealed)
        try:
            for waiting, rows, blocks in zip(self._waiting, self._rows, self._block, strict=True):
                parts = [np.frombuffer(self._blocks.read(number), _ENTRY) for number in blocks]
                entry = np.concatenate([*parts, waiting[:rows]])
                for piece in made.add(entry["head"].copy(), entry["row"]):
                    writer.write(piece)
                if with_filter:
                    words.append(made.filter(last=False))
            writer.end_column()
            writer.write(made.starts())
            writer.end_column()
            if with_filter:
                for part in words.pieces():
                    writer.write(np.frombuffer(part, np.uint8))
                writer.write(made.filter(last=True))
                writer.end_column()
        finally:
            words.close()

    def close(self) -> None:
        self._blocks.close()
