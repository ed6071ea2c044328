"""Index segments: which chunk lies in which frame, and which frame in which pack. Byte layout: docs/repository.md.

A segment is immutable and sorted. It is read in cells of 64 KiB, each proved by its xxh3 when it is read: a damaged
row could name a wrong frame. All segments of an index share one bounded cache of cells and a few descriptors, so
neither memory nor descriptors grow with the repository, and a file that is cut off under a reader is damage and no
SIGBUS, as it would be if it were mapped.

Digests are uniform, so the cell where one must stand follows from its first eight bytes; those are a column of
their own. A cell beside it is looked at where the guess was wrong.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import (
    DIGEST_SIZE,
    Digests,
    IntegrityError,
    KiB,
    MiB,
)
from vadpipe.files import create, write_all

from .files import PACK_ID_SIZE, RUN_ID_SIZE, Damage, open_regular, read_exactly
from .packs import FRAME_ROW, FrameAddress

CHECKED: Final = 64 * KiB

# What of a chunk's row is not its digest's first eight bytes. `place` is bytes in the decoded frame.
CHUNK_ROW: Final = np.dtype([("rest", "u1", (DIGEST_SIZE - 8,)), ("frame", "<u4"), ("place", "<u4")])
assert CHUNK_ROW.itemsize == 32

# magic, repository, run, number in the run, frames, chunks, packs, zero, xxh3 of the checks
_HEADER: Final = struct.Struct(f"<8s16s{RUN_ID_SIZE}sIIQIIQ")
_CHECKSUM: Final = struct.Struct("<Q")
_MAGIC: Final = b"VADINDX1"
HEADER_SIZE: Final = 128

# Bounds of what a header may claim: beyond them a file would have to be larger than any file system allows.
_MOST_CHUNKS: Final = 1 << 40

HEADS, CHUNKS, ID_HEADS, ID_FRAMES, FRAMES, PACKS = range(6)
_DTYPES: Final[Sequence[np.dtype[Any]]] = (
    np.dtype("<u8"),
    CHUNK_ROW,
    np.dtype("<u8"),
    np.dtype("<u4"),
    FRAME_ROW,
    np.dtype(f"V{PACK_ID_SIZE}"),
)

MERGED: Final = (
    "merged"  # beside segments in use: those that were merged into others, for who still reads them
)

Rows = NDArray[np.int64]


class Cells:
    """The last proved cells of segments, up to `size` bytes, and a few open files. For several threads at once.

    A segment that was merged into a larger one while it was in use is found in `merged/` beside it.
    """

    OPEN_FILES: Final = 16

    def __init__(self, size: int = 64 * MiB) -> None:
        self._most = max(1, size // CHECKED)
        self._resident = size // 4
        self._cell: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._file: OrderedDict[str, int] = OrderedDict()
        self._turn = threading.Lock()
        weakref.finalize(self, _close_all, self._file)

    def get(self, segment: Segment, number: int) -> bytes:
        """Raises Damage."""
        key = segment.path.name, number
        with self._turn:
            if key in self._cell:
                self._cell.move_to_end(key)
                return self._cell[key]
            content = segment.read_cell(self._opened(segment.path), number)
            self._cell[key] = content
            if len(self._cell) > self._most:
                self._cell.popitem(last=False)
            return content

    def reserve(self, size: int) -> bool:
        """Whether a column of `size` bytes may stay in memory as a whole."""
        with self._turn:
            if size > min(self._resident, 1 * MiB):
                return False
            self._resident -= size
            return True

    def close(self) -> None:
        """Close the files. They are opened again when they are needed."""
        with self._turn:
            _close_all(self._file)

    def _opened(self, path: Path) -> int:
        if path.name in self._file:
            self._file.move_to_end(path.name)
            return self._file[path.name]
        descriptor = open_segment(path)
        self._file[path.name] = descriptor
        if len(self._file) > self.OPEN_FILES:
            os.close(self._file.popitem(last=False)[1])
        return descriptor


def _close_all(files: OrderedDict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def open_segment(path: Path) -> int:
    """A descriptor of a segment, which may have been merged into another one. Raises Damage, SinkError."""
    try:
        return open_regular(path)
    except Damage as damage:
        if getattr(damage.__cause__, "errno", None) != errno.ENOENT:
            raise
        try:
            return open_regular(path.parent / MERGED / path.name)
        except Damage:
            raise damage from damage.__cause__


class Segment:
    """One segment. Numbers of frames are rows of its frame table.

    Every method raises IntegrityError for what is damaged, and SinkError when too many files are open.
    """

    def __init__(self, path: Path, repository_id: bytes, cells: Cells | None = None) -> None:
        self.path = path
        self._cells = cells or Cells(4 * MiB)
        self._whole: dict[int, NDArray[np.uint64]] = {}
        descriptor = -1
        try:
            descriptor = open_segment(path)
            self._open(descriptor, repository_id)
        except OSError as exc:
            raise self._damaged(f"reading it failed ({exc.strerror})") from exc
        except Damage as damage:
            raise self._damaged(str(damage)) from damage
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self, descriptor: int, repository_id: bytes) -> None:
        self.size = os.fstat(descriptor).st_size
        header = read_exactly(descriptor, HEADER_SIZE, 0)
        frames, chunks, packs, checks = _parse_header(header, repository_id)
        self._count = (chunks, chunks, frames, frames, frames, packs)
        self._start = sections = _sections(chunks, frames, packs)
        cells = -(-(sections[-1] - HEADER_SIZE) // CHECKED)
        if sections[-1] + 8 * cells != self.size:
            raise Damage("its size is wrong")
        listed = read_exactly(descriptor, 8 * cells, sections[-1])
        if xxhash.xxh3_64_intdigest(listed) != checks:
            raise Damage("the checksum of its checksums is wrong")
        self._checks = np.frombuffer(listed, "<u8")

    @property
    def chunks(self) -> int:
        return self._count[CHUNKS]

    @property
    def frames(self) -> int:
        return self._count[FRAMES]

    def packs(self) -> list[str]:
        """The ids of the packs that hold its frames."""
        return [pack.tobytes().hex() for pack in self.column(PACKS, 0, self._count[PACKS])]

    def lookup(self, digest: Digests) -> tuple[Rows, Rows]:
        """The frame (-1 where there is none) and the place in it, bytes, of each chunk."""
        frame, place = np.full(len(digest), -1, np.int64), np.zeros(len(digest), np.int64)
        for at, row in self._matches(HEADS, heads(digest)):
            chunk = self._take(CHUNKS, row)
            same = (chunk["rest"] == digest[at, 8:]).all(axis=1) & (frame[at] < 0)
            frame[at[same]], place[at[same]] = chunk["frame"][same], chunk["place"][same]
        if len(frame) and int(frame.max()) >= self.frames:
            raise self._damaged("a chunk of it is in a frame that it does not have")
        return frame, place

    def find_frames(self, identity: Digests) -> Rows:
        """The frame of each id, -1 where there is none."""
        found = np.full(len(identity), -1, np.int64)
        for at, row in self._matches(ID_HEADS, heads(identity)):
            frame = self._take(ID_FRAMES, row).astype(np.int64)
            same = (self._take(FRAMES, frame)["id"] == identity[at]).all(axis=1) & (found[at] < 0)
            found[at[same]] = frame[same]
        return found

    def ids(self, frame: Rows) -> Digests:
        """The ids of frames."""
        ids: Digests = self._take(FRAMES, frame)["id"]
        return ids

    def chunks_of(self, frame: Rows) -> int:
        """How many chunks these frames have together."""
        return int(self._take(FRAMES, frame)["chunks"].sum(dtype=np.int64))

    def addresses(self, frame: Rows) -> Iterator[FrameAddress]:
        """Where frames are stored."""
        rows = self._take(FRAMES, frame)
        packs = self._take(PACKS, rows["pack"].astype(np.int64))
        for row, pack in zip(rows, packs, strict=True):
            yield FrameAddress(
                pack.tobytes().hex(),
                int(row["offset"]),
                int(row["size"]),
                int(row["length"]),
                row["id"].tobytes(),
            )

    def frames_by_pack(self) -> dict[str, Rows]:
        """For each pack the frames in it, in the order in which they lie there."""
        pieces = [self.column(FRAMES, low, low + 64 * KiB) for low in range(0, self.frames, 64 * KiB)]
        pack = np.concatenate([np.zeros(0, "<u4"), *(piece["pack"] for piece in pieces)])
        offset = np.concatenate([np.zeros(0, "<u8"), *(piece["offset"] for piece in pieces)])
        names = self.packs()
        if len(pack) and int(pack.max()) >= len(names):
            raise self._damaged("a frame of it is in a pack that it does not name")
        order = np.lexsort((offset, pack))
        borders = np.searchsorted(pack[order], np.arange(len(names) + 1))
        return {
            name: order[low:high]
            for name, low, high in zip(names, borders[:-1].tolist(), borders[1:].tolist(), strict=True)
        }

    def prove(self) -> None:
        """Check every byte, and that no row names what is not there."""
        for number in range(len(self._checks)):
            self._cell(number)
        for section, name, below in (
            (CHUNKS, "frame", self.frames),
            (ID_FRAMES, "", self.frames),
            (FRAMES, "pack", self._count[PACKS]),
        ):
            for low in range(0, self._count[section], 64 * KiB):
                piece = self.column(section, low, low + 64 * KiB)
                if int((piece[name] if name else piece).max()) >= below:
                    raise self._damaged("a row of it names what it does not have")

    def column(self, section: int, first: int, last: int) -> NDArray[Any]:
        """Rows [first, last) of a section."""
        size = _DTYPES[section].itemsize
        last = min(last, self._count[section])
        low = self._start[section] - HEADER_SIZE + first * size
        high = low + (last - first) * size
        numbers = range(low // CHECKED, -(-high // CHECKED)) if high > low else ()
        content = b"".join([self._cell(number) for number in numbers])
        skipped = low - low // CHECKED * CHECKED
        return np.frombuffer(content, _DTYPES[section], last - first, skipped if content else 0)

    def lower_bound(self, section: int, wanted: NDArray[np.uint64]) -> Rows:
        """For each number the first row of a column of heads that is not below it."""
        count = self._count[section]
        if section not in self._whole and self._cells.reserve(8 * count):
            self._whole[section] = self.column(section, 0, count).astype(np.uint64)
        if section in self._whole:
            return np.searchsorted(self._whole[section], wanted).astype(np.int64)
        base = self._start[section] - HEADER_SIZE
        lowest, highest = base // CHECKED, (base + 8 * count - 8) // CHECKED
        guess = (wanted.astype(np.float64) * (count / 2.0**64)).astype(np.int64)
        cell = np.clip((base + 8 * guess) // CHECKED, lowest, highest)
        row = np.zeros(len(wanted), dtype=np.int64)
        from_left = np.zeros(len(wanted), dtype=np.bool_)
        open_ = np.arange(len(wanted))
        while len(open_):
            going: list[NDArray[np.intp]] = []
            for number in np.unique(cell[open_]).tolist():
                at = open_[cell[open_] == number]
                first = max(0, (number * CHECKED - base) // 8)
                column = self.column(section, first, ((number + 1) * CHECKED - base) // 8)
                right = wanted[at] > column[-1]
                left = (wanted[at] <= column[0]) & ~from_left[at]
                right &= number < highest
                left &= number > lowest
                row[at] = first + np.searchsorted(column, wanted[at])
                cell[at[right]] += 1
                from_left[at[right]] = True
                cell[at[left]] -= 1
                going.append(at[right | left])
            open_ = np.concatenate(going)
        return row

    def moved(self, path: Path) -> None:
        """It has its final name now."""
        self._cells.close()
        self.path = path

    def read_cell(self, descriptor: int, number: int) -> bytes:
        """A cell from the file, proved. Raises Damage, OSError."""
        low = HEADER_SIZE + number * CHECKED
        content = read_exactly(descriptor, min(CHECKED, self._start[-1] - low), low)
        if xxhash.xxh3_64_intdigest(content) != self._checks[number]:
            raise Damage(f"the checksum of bytes {low} to {low + len(content)} is wrong")
        return content

    def _matches(self, section: int, wanted: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
        """Positions in `wanted` and rows of the column with that number; more than once where numbers are equal."""
        if not self._count[section]:
            return
        row, at = self.lower_bound(section, wanted), np.arange(len(wanted))
        while len(at):
            inside = row < self._count[section]
            at, row = at[inside], row[inside]
            equal = self._take(section, row) == wanted[at]
            at, row = at[equal], row[equal]
            if len(at):
                yield at, row
            row = row + 1

    def _take(self, section: int, row: Rows) -> NDArray[Any]:
        """Rows of a section, in the order of `row`."""
        dtype = _DTYPES[section]
        if len(row) and (int(row.max()) >= self._count[section] or int(row.min()) < 0):
            raise self._damaged("a row of it names what it does not have")
        if section in self._whole:
            return self._whole[section][row]
        size = dtype.itemsize
        result = np.empty((len(row), size), dtype=np.uint8)
        low = self._start[section] - HEADER_SIZE + row * size
        cell = low // CHECKED
        whole = cell == (low + size - 1) // CHECKED
        steps = np.arange(size)
        for number in np.unique(cell[whole]).tolist():
            at = np.flatnonzero(whole & (cell == number))
            content = np.frombuffer(self._cell(number), np.uint8)
            result[at] = content[(low[at] - number * CHECKED)[:, None] + steps]
        for astride in np.flatnonzero(~whole).tolist():
            first = int(row[astride])
            result[astride] = self.column(section, first, first + 1).view(np.uint8)
        return result.reshape(-1).view(dtype)

    def _cell(self, number: int) -> bytes:
        try:
            return self._cells.get(self, number)
        except Damage as damage:
            raise self._damaged(str(damage)) from damage
        except OSError as exc:
            raise self._damaged(f"reading it failed ({exc.strerror})") from exc

    def _damaged(self, problem: str) -> IntegrityError:
        return IntegrityError(
            f"Index segment {self.path} is damaged: {problem}.",
            remedy="Put this file back from a copy of the repository; the packs that it describes are not hit.",
            segment=str(self.path),
        )


def write_segment(
    path: Path,
    repository_id: bytes,
    run_id: str,
    serial: int,
    chunks: tuple[Digests, Rows, Rows],
    frames: NDArray[np.void],
    packs: list[str],
) -> None:
    """Write and flush a segment. `chunks` are the columns digest, frame and place, in any order. Raises OSError."""
    digest, frame, place = chunks
    order = sorted_rows(digest)
    row = np.empty(len(digest), dtype=CHUNK_ROW)
    row["rest"], row["frame"], row["place"] = digest[order, 8:], frame[order], place[order]
    by_id = sorted_rows(frames["id"])
    columns: tuple[NDArray[np.generic], ...] = (
        heads(digest)[order],
        row,
        heads(frames["id"])[by_id],
        by_id.astype("<u4"),
        frames,
        np.frombuffer(b"".join(bytes.fromhex(name) for name in packs), np.uint8),
    )
    counts = len(digest), len(frames), len(packs)
    write_columns(
        path, (repository_id, run_id, serial), counts, ([column.view(np.uint8).data] for column in columns)
    )


def write_columns(
    path: Path,
    name: tuple[bytes, str, int],
    counts: tuple[int, int, int],
    columns: Iterable[Iterable[memoryview]],
) -> None:
    """Write and flush a segment from the pieces of its columns; they are never in memory together.

    Args:
        name: repository id, run id, number of the segment in the run.
        counts: chunks, frames, packs.

    Raises:
        OSError
    """
    chunks, frames, packs = counts
    starts = _sections(*counts)
    checks: list[bytes] = []
    state, room = xxhash.xxh3_64(), CHECKED

    def write(part: memoryview) -> None:
        nonlocal state, room
        write_all(file, [part])
        while len(part):
            state.update(part[:room])
            part, room = part[room:], room - len(part[:room])
            if not room:
                checks.append(_CHECKSUM.pack(state.intdigest()))
                state, room = xxhash.xxh3_64(), CHECKED

    file = create(path)
    try:
        write_all(file, [bytes(HEADER_SIZE)])
        for column, start, end in zip(columns, starts, starts[1:], strict=False):
            size = 0
            for part in column:
                write(part)
                size += len(part)
            write(memoryview(bytes(end - start - size)))
        if room < CHECKED:
            checks.append(_CHECKSUM.pack(state.intdigest()))
        joined = b"".join(checks)
        write_all(file, [joined])
        repository_id, run_id, serial = name
        guard = xxhash.xxh3_64_intdigest(joined)
        fields = _MAGIC, repository_id, bytes.fromhex(run_id), serial, frames, chunks, packs, 0, guard
        header = _HEADER.pack(*fields).ljust(HEADER_SIZE - _CHECKSUM.size, b"\0")
        os.pwrite(file, header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)), 0)
        os.fsync(file)
    finally:
        os.close(file)


def heads(digest: Digests) -> NDArray[np.uint64]:
    """The first eight bytes of each digest as numbers that sort like the digests."""
    return np.ascontiguousarray(digest[:, :8]).view(">u8").ravel().astype("<u8")


def sorted_rows(digest: Digests) -> NDArray[np.intp]:
    """The order that sorts digests."""
    head = heads(digest)
    order = np.argsort(head, kind="stable")
    if (head[order][1:] == head[order][:-1]).any():  # eight bytes decide, but for one case in many years
        words = np.ascontiguousarray(digest).view(">u8").astype(np.uint64).reshape(len(digest), -1)
        order = np.lexsort(words.T[::-1])
    return order


def _sections(chunks: int, frames: int, packs: int) -> list[int]:
    """Where the sections of a segment begin, each at a multiple of 64 bytes, and where the last one ends."""
    starts = [HEADER_SIZE]
    for size in (
        8 * chunks,
        CHUNK_ROW.itemsize * chunks,
        8 * frames,
        4 * frames,
        FRAME_ROW.itemsize * frames,
    ):
        starts.append(-(-(starts[-1] + size) // 64) * 64)
    return [*starts, -(-(starts[-1] + PACK_ID_SIZE * packs) // 64) * 64]


def _parse_header(header: bytes, repository_id: bytes) -> tuple[int, int, int, int]:
    end = HEADER_SIZE - _CHECKSUM.size
    if xxhash.xxh3_64_intdigest(header[:end]) != _CHECKSUM.unpack_from(header, end)[0]:
        raise Damage("the checksum of its header is wrong")
    magic, repository, _, _, frames, chunks, packs, _, checks = _HEADER.unpack_from(header)
    if magic != _MAGIC:
        raise Damage("it is not an index segment")
    if repository != repository_id:
        raise Damage("it belongs to another repository")
    if chunks > _MOST_CHUNKS:
        raise Damage("its header is impossible")
    return frames, chunks, packs, checks
