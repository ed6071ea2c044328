"""Index segments of format 1, which are read and never written. Byte layout: docs/repository.md, "Format 1".

Their chunk rows are sorted by digest, beside a column of the digests' first eight bytes. Digests are uniform,
so the cell where one must stand follows from these bytes; a cell beside it is looked at where the guess was
wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, Digests, MiB

from ..format.objects import INDEX, PACK_ID_SIZE, RUN_ID_SIZE, Damage, Missing
from ..format.packs import FRAME_ROW
from ..format.sealing import Sealing
from .cells import CELL, Cells, Readable, Rows, aligned
from .frame_columns import PIECE, FrameColumns
from .segments import heads

# What of a chunk's row is not its digest's first eight bytes. `place` is bytes in the decoded frame.
CHUNK_ROW: Final = np.dtype([("rest", "u1", (DIGEST_SIZE - 8,)), ("frame", "<u4"), ("place", "<u4")])
assert CHUNK_ROW.itemsize == 32

# magic, repository, run, number in the run, frames, chunks, packs, zero, xxh3 of the checks
_HEADER: Final = struct.Struct(f"<8s16s{RUN_ID_SIZE}sIIQIIQ")
_CHECKSUM: Final = struct.Struct("<Q")
_MAGIC: Final = b"VADINDX1"
HEADER_SIZE: Final = 128

# Beyond this a file would have to be larger than any file system allows.
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

MERGED: Final = f"{INDEX}merged/"  # segments that were merged into others lay there for a week


class Segment1(FrameColumns):
    """One segment of format 1, with the methods that a reader needs of a Segment. `sealing` has no meaning here."""

    frame_section, pack_section = FRAMES, PACKS
    has_removed = False

    def __init__(
        self,
        objects: Readable,
        name: str,
        repository_id: bytes,
        sealing: Sealing | None = None,
        cells: Cells | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(_WithMerged(objects), name, cells or Cells(4 * MiB), _DTYPES)
        self._whole: dict[int, NDArray[np.uint64]] = {}
        try:
            self.size = self.objects.size(name) if size is None else size
            self._open(repository_id)
        except Damage as damage:
            raise self.damaged(str(damage)) from damage

    def _open(self, repository_id: bytes) -> None:
        header = self.objects.read(self.name, 0, HEADER_SIZE)
        frames, chunks, packs, checks = _parse_header(header, repository_id)
        counts = (chunks, chunks, frames, frames, frames, packs)
        starts = [HEADER_SIZE]
        for dtype, rows in zip(_DTYPES, counts, strict=True):
            starts.append(aligned(starts[-1] + dtype.itemsize * rows))
        cells = -(-(starts[-1] - HEADER_SIZE) // CELL)
        if starts[-1] + 8 * cells != self.size:
            raise Damage("its size is wrong")
        listed = self.objects.read(self.name, starts[-1], 8 * cells)
        if xxhash.xxh3_64_intdigest(listed) != checks:
            raise Damage("the checksum of its checksums is wrong")
        self.lay_out(counts, starts, np.frombuffer(listed, "<u8"))

    @property
    def chunks(self) -> int:
        return self.count(CHUNKS)

    def leave_out(self, packs: frozenset[str]) -> None:
        """Nothing is removed from a repository of format 1."""

    def lookup(self, digest: Digests, *, removed: bool = True) -> tuple[Rows, Rows]:
        """The frame (-1 where there is none) and the place in it, bytes, of each chunk."""
        frame, place = np.full(len(digest), -1, np.int64), np.zeros(len(digest), np.int64)
        for at, row in self._matches(HEADS, heads(digest)):
            chunk = self.take(CHUNKS, row)
            same = (chunk["rest"] == digest[at, 8:]).all(axis=1) & (frame[at] < 0)
            frame[at[same]], place[at[same]] = chunk["frame"][same], chunk["place"][same]
        if len(frame) and int(frame.max()) >= self.frames:
            raise self.damaged("a chunk of it is in a frame that it does not have")
        return frame, place

    def find_frames(self, identity: Digests, *, removed: bool = True) -> Rows:
        """The frame of each id, -1 where there is none."""
        found = np.full(len(identity), -1, np.int64)
        for at, row in self._matches(ID_HEADS, heads(identity)):
            frame = self.take(ID_FRAMES, row).astype(np.int64)
            same = (self.take(FRAMES, frame)["id"] == identity[at]).all(axis=1) & (found[at] < 0)
            found[at[same]] = frame[same]
        return found

    def agreeing(self, frame: Rows, many: Rows, digest: Digests, place: Rows) -> int:
        """How many of its rows say what some frames really hold; see Segment."""
        found, at = self.lookup(digest)
        return int(((found == np.repeat(frame, many)) & (at == place)).sum())

    def prove(self) -> None:
        """Check every byte, and that no row names what is not there."""
        self.prove_cells()
        for section, name, below in (
            (CHUNKS, "frame", self.frames),
            (ID_FRAMES, "", self.frames),
            (FRAMES, "pack", self.count(PACKS)),
        ):
            for low in range(0, self.count(section), PIECE):
                piece = self.column(section, low, low + PIECE)
                if int((piece[name] if name else piece).max()) >= below:
                    raise self.damaged("a row of it names what it does not have")

    def lower_bound(self, section: int, wanted: NDArray[np.uint64]) -> Rows:
        """For each number the first row of a column of heads that is not below it."""
        count = self.count(section)
        if section not in self._whole and self._cells.reserve(8 * count):
            self._whole[section] = self.column(section, 0, count).astype(np.uint64)
        if section in self._whole:
            return np.searchsorted(self._whole[section], wanted).astype(np.int64)
        base = self._start[section] - HEADER_SIZE
        lowest, highest = base // CELL, (base + 8 * count - 8) // CELL
        guess = (wanted.astype(np.float64) * (count / 2.0**64)).astype(np.int64)
        cell = np.clip((base + 8 * guess) // CELL, lowest, highest)
        row = np.zeros(len(wanted), dtype=np.int64)
        from_left = np.zeros(len(wanted), dtype=np.bool_)
        open_ = np.arange(len(wanted))
        while len(open_):
            going: list[NDArray[np.intp]] = []
            for number in np.unique(cell[open_]).tolist():
                at = open_[cell[open_] == number]
                first = max(0, (number * CELL - base) // 8)
                column = self.column(section, first, ((number + 1) * CELL - base) // 8)
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

    def _matches(self, section: int, wanted: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
        """Positions in `wanted` and rows of the column with that number; more than once where numbers are equal."""
        if not self.count(section):
            return
        row, at = self.lower_bound(section, wanted), np.arange(len(wanted))
        while len(at):
            inside = row < self.count(section)
            at, row = at[inside], row[inside]
            equal = self.take(section, row) == wanted[at]
            at, row = at[equal], row[equal]
            if len(at):
                yield at, row
            row = row + 1


class _WithMerged:
    """Finds a segment that was merged into another one after it was listed."""

    def __init__(self, objects: Readable) -> None:
        self._objects = objects

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            return self._objects.read(name, offset, length)
        except Missing:
            return self._objects.read(name.replace(INDEX, MERGED, 1), offset, length)

    def size(self, name: str) -> int:
        try:
            return self._objects.size(name)
        except Missing:
            return self._objects.size(name.replace(INDEX, MERGED, 1))

    def place(self, name: str = "") -> str:
        return self._objects.place(name)


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
