"""The index of a repository as a reader or a run sees it: all published segments, and the run's own chunks.

A frame has a number: the number of its table (a segment, or a draft of the run) in the upper 32 bits, its row there
in the lower. A run collects its chunks in a `Draft` in memory. A full draft becomes a segment of the run, on disk
but not published, so that memory stays bounded however much is new.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import (
    DIGEST_SIZE,
    NO_FRAME,
    ContractError,
    Digests,
    IntegrityError,
    KiB,
)
from vadpipe.kernels.digest_table import DigestTable

from .config import Keys
from .files import Damage, Layout, pack_id, sink_errors
from .packs import FRAME_ROW, FrameAddress, damaged_frame, read_chunks
from .segments import Cells, Rows, Segment, write_segment

# 512 Ki chunks are 32 GiB of new data. A draft of that size takes 28 MiB.
DRAFT_ROWS: Final = 512 * KiB

# Chunk tables of frames that were met; one has some 16 chunks of 44 bytes.
TABLES_AT_MOST: Final = 4096

Numbers = NDArray[np.uint64]
P = ParamSpec("P")
R = TypeVar("R")


class Index:
    """The published segments; `damaged` tells of those that could not be opened and count as missing.

    Searches raise IntegrityError for damage that is found on the way. Several threads may search at once.
    """

    def __init__(self, layout: Layout, repository_id: bytes) -> None:
        self._repository_id = repository_id
        self._base = 0
        self.cells = Cells()
        self.segments: list[Segment] = []
        self.damaged: list[IntegrityError] = []
        for path in sorted(layout.index.glob("*.idx")):
            try:
                self.segments.append(Segment(path, repository_id, self.cells))
            except IntegrityError as error:
                self.damaged.append(error)

    def drop_damaged(self) -> None:
        """Read every segment, and move those that are damaged to `damaged`."""
        for segment in tuple(self.segments):
            try:
                segment.prove()
            except IntegrityError as error:
                self.segments.remove(segment)
                self.damaged.append(error)

    def lookup(self, digest: Digests) -> tuple[Numbers, Rows]:
        """Frame number and byte place of each chunk; NO_FRAME where it is unknown."""
        number = np.full(len(digest), NO_FRAME, dtype=np.uint64)
        place = np.zeros(len(digest), dtype=np.int64)
        self._search(digest, number, place)
        return number, place

    def find_frames(self, identity: Digests) -> Numbers:
        """The number of each frame id, NO_FRAME where there is none."""
        number = np.full(len(identity), NO_FRAME, dtype=np.uint64)
        for table, segment in enumerate(self.segments):
            missing = np.flatnonzero(number == NO_FRAME)
            row = segment.find_frames(identity[missing])
            number[missing[row >= 0]] = self._numbers(table, row[row >= 0])
        return number

    def frame_ids(self, number: Numbers) -> Digests:
        """The ids of frames by number."""
        result = np.empty((len(number), DIGEST_SIZE), dtype=np.uint8)
        for table, at, row in self._by_table(number):
            result[at] = self._ids(table, row)
        return result

    def addresses(self, number: Numbers) -> list[FrameAddress]:
        """Where published frames are stored."""
        result: list[FrameAddress | None] = [None] * len(number)
        for table, at, row in self._by_table(number):
            for place, address in zip(at.tolist(), self.segments[table].addresses(row), strict=True):
                result[place] = address
        return [address for address in result if address is not None]

    def _numbers(self, table: int, row: Rows) -> Numbers:
        return row.astype(np.uint64) | np.uint64((self._base + table) << 32)

    def _by_table(self, number: Numbers) -> Iterator[tuple[int, NDArray[np.intp], Rows]]:
        """For each table: which of the numbers lie in it, and their rows there."""
        tables = (number >> np.uint64(32)).astype(np.int64) - self._base
        for table in np.unique(tables).tolist():
            at = np.flatnonzero(tables == table)
            yield table, at, (number[at] & np.uint64(0xFFFF_FFFF)).astype(np.int64)

    def _ids(self, table: int, row: Rows) -> Digests:
        return self.segments[table].ids(row)

    def _search(self, digest: Digests, number: Numbers, place: Rows) -> None:
        """Fill in what the segments know of the rows that are still NO_FRAME."""
        for table in reversed(range(len(self.segments))):  # what is new is most likely to be met again
            missing = np.flatnonzero(number == NO_FRAME)
            if not len(missing):
                break
            frame, at = self.segments[table].lookup(digest[missing])
            found = frame >= 0
            number[missing[found]] = self._numbers(table, frame[found])
            place[missing[found]] = at[found]


class Draft:
    """The chunks and frames of a run that are not in a segment yet. Rows of frames as in FRAME_ROW."""

    def __init__(self, serial: int, rows: int) -> None:
        self.serial = serial
        self.missing = 0  # frames that were promised and are not stored yet
        self._table = DigestTable(rows)
        self._chunk = np.empty((rows, 2), dtype=np.uint32)  # frame, place
        self._waiting: list[tuple[Digests, NDArray[np.uint32]]] = []  # inserted together: cheaper by far
        self._waiting_rows = 0
        self._frame = np.zeros(1024, dtype=FRAME_ROW)
        self._frames = 0

    def __len__(self) -> int:
        return len(self._table) + self._waiting_rows

    def has_room(self, chunks: int) -> bool:
        return len(self) + chunks <= self._table.capacity

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def frame_rows(self) -> NDArray[np.void]:
        return self._frame[: self._frames]

    def ids(self, frame: Rows) -> Digests:
        ids: Digests = self.frame_rows["id"][frame]
        return ids

    def add_frame(self, length: Rows, digest: Digests, identity: bytes) -> int:
        row = self._frames
        if row == len(self._frame):
            self._frame = np.concatenate((self._frame, np.zeros_like(self._frame)))
        self._frame[row]["id"] = np.frombuffer(identity, np.uint8)
        self._frame[row]["length"] = length.sum()
        self._frame[row]["chunks"] = len(length)
        self._frames += 1
        self.missing += 1
        chunk = np.empty((len(length), 2), dtype=np.uint32)
        chunk[:, 0], chunk[:, 1] = row, np.cumsum(length) - length
        self._waiting.append((digest.copy(), chunk))
        self._waiting_rows += len(length)
        return row

    def lookup(self, digest: Digests) -> tuple[Rows, Rows]:
        self._insert()
        row = self._table.lookup(digest)
        found = self._chunk[row].astype(np.int64)
        return np.where(row >= 0, found[:, 0], -1), found[:, 1]

    def chunks(self) -> tuple[Digests, Rows, Rows]:
        """The columns digest, frame and place."""
        self._insert()
        chunk = self._chunk[: len(self._table)]
        return self._table.digest, chunk[:, 0].astype(np.int64), chunk[:, 1].astype(np.int64)

    def _insert(self) -> None:
        if self._waiting:
            rows = self._table.insert(np.concatenate([digest for digest, _ in self._waiting]))
            self._chunk[rows] = np.concatenate([chunk for _, chunk in self._waiting])
            self._waiting, self._waiting_rows = [], 0


def _locked(method: Callable[Concatenate[RunIndex, P], R]) -> Callable[Concatenate[RunIndex, P], R]:
    def locked(self: RunIndex, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    locked.__doc__ = method.__doc__
    return locked


class RunIndex(Index):
    """The published segments and what one run adds. Every method may be called from any thread; who needs several
    calls to see the same state holds `lock` around them.

    Raises IntegrityError when a segment is damaged.
    """

    def __init__(self, layout: Layout, repository_id: bytes, run_id: str, keys: Keys) -> None:
        super().__init__(layout, repository_id)
        if self.damaged:  # what it does not find would be stored again, and nobody would look for the reason
            raise self.damaged[0]
        self.lock = threading.RLock()
        self._layout = layout
        self._run_id = run_id
        # Numbers begin elsewhere in every run: those of another run or index are not found here.
        self._base = 1 + int(run_id[:7], 16)
        self._first = len(self.segments)
        self._keys = keys
        self.used_packs: set[str] = set()  # of frames that were found in published segments
        self._tables: OrderedDict[int, tuple[NDArray[np.void], Rows]] = OrderedDict()
        self._own: list[Draft | Segment] = [Draft(0, DRAFT_ROWS)]

    @_locked
    def lookup(self, digest: Digests) -> tuple[Numbers, Rows]:
        number = np.full(len(digest), NO_FRAME, dtype=np.uint64)
        place = np.zeros(len(digest), dtype=np.int64)
        for serial in reversed(range(len(self._own))):
            missing = np.flatnonzero(number == NO_FRAME)
            frame, at = self._own[serial].lookup(digest[missing])
            found = frame >= 0
            number[missing[found]] = self._numbers(self._first + serial, frame[found])
            place[missing[found]] = at[found]
        unknown = number == NO_FRAME
        self._search(digest, number, place)
        self._check_hits(np.flatnonzero(unknown & (number != NO_FRAME)), digest, number, place)
        return number, place

    def _check_hits(self, hits: Rows, digest: Digests, number: Numbers, place: Rows) -> None:
        """A wrong row of a segment must not become a wrong map: the frame itself says which chunks it holds."""
        for frame in np.unique(number[hits]).tolist():
            at = hits[number[hits] == frame]
            chunk, start = self._chunks_of(frame)
            row = np.minimum(np.searchsorted(start, place[at]), len(start) - 1)
            if ((start[row] != place[at]) | (chunk["digest"][row] != digest[at]).any(axis=1)).any():
                segment = self.segments[(frame >> 32) - self._base].path
                raise IntegrityError(
                    f"Index segment {segment} is damaged: it says that a chunk lies where another one is stored.",
                    remedy="Put this file back from a copy of the repository; `vadpipe verify` counts such rows.",
                    segment=str(segment),
                )

    def _chunks_of(self, frame: int) -> tuple[NDArray[np.void], Rows]:
        """The chunk table of a stored frame, and where its chunks begin; cached."""
        if frame in self._tables:
            self._tables.move_to_end(frame)
            return self._tables[frame]
        (address,) = self.addresses(np.array([frame], dtype=np.uint64))
        try:
            chunk = read_chunks(self._layout, address, self._keys)
        except Damage as damage:
            purpose = "A chunk that is stored already"
            raise damaged_frame(self._layout, address, damage, purpose) from damage
        start = np.cumsum(chunk["length"], dtype=np.int64) - chunk["length"]
        self.used_packs.add(address.pack)
        self._tables[frame] = chunk, start
        if len(self._tables) > TABLES_AT_MOST:
            self._tables.popitem(last=False)
        return chunk, start

    @_locked
    def frame_ids(self, number: Numbers) -> Digests:
        return super().frame_ids(number)

    @_locked
    def add_frame(self, length: Rows, digest: Digests, identity: bytes) -> int:
        """Promise a frame; its number."""
        draft = self._own[-1]
        if not isinstance(draft, Draft) or not draft.has_room(len(length)):
            draft = Draft(len(self._own), DRAFT_ROWS)
            self._own.append(draft)
        return (self._base + self._first + draft.serial) << 32 | draft.add_frame(length, digest, identity)

    @_locked
    def promised(self, number: int) -> bytes:
        """The id of a frame that was promised and is not stored yet. Raises ContractError."""
        return bytes(self._waiting(number)[1]["id"])

    @_locked
    def stored(self, number: int, pack: int, offset: int, size: int) -> None:
        """Frame `number` lies at `offset` of the run's pack number `pack`. Raises ContractError."""
        draft, row = self._waiting(number)
        row["pack"], row["offset"], row["size"] = pack, offset, size
        draft.missing -= 1

    @_locked
    def missing(self) -> int:
        """Frames that were promised and are not stored."""
        return sum(table.missing for table in self._own if isinstance(table, Draft))

    @_locked
    def full(self) -> list[Draft]:
        """Drafts that can become segments: nothing is added to them any more, and all is stored."""
        return [table for table in self._own[:-1] if isinstance(table, Draft) and not table.missing]

    @_locked
    def last(self) -> list[Draft]:
        """All that is left when everything is stored."""
        return [table for table in self._own if isinstance(table, Draft) and len(table)]

    def write(self, draft: Draft) -> Segment:
        """Write a draft as a segment under a temporary name. For a worker thread. Raises SinkError."""
        path = self._layout.tmp / self._layout.segment(self._run_id, draft.serial).name
        frames = draft.frame_rows.copy()
        packs, frames["pack"] = np.unique(frames["pack"], return_inverse=True)
        names = [pack_id(self._run_id, serial) for serial in packs.tolist()]
        with self.lock:
            chunks = draft.chunks()
        with sink_errors(path, "write"):
            write_segment(path, self._repository_id, self._run_id, draft.serial, chunks, frames, names)
        return Segment(path, self._repository_id, self.cells)

    @_locked
    def replace(self, draft: Draft, segment: Segment) -> None:
        """Give the memory of a draft back."""
        self._own[draft.serial] = segment

    @_locked
    def written(self) -> Sequence[Segment]:
        """The run's segments, which still have their temporary names."""
        return [table for table in self._own if isinstance(table, Segment)]

    def _waiting(self, number: int) -> tuple[Draft, np.void]:
        """The draft and the row of a frame that is not stored yet."""
        serial, row = (number >> 32) - self._base - self._first, number & 0xFFFF_FFFF
        draft = self._own[serial] if 0 <= serial < len(self._own) else None
        if not isinstance(draft, Draft) or row >= draft.frames or draft.frame_rows[row]["offset"]:
            raise ContractError(f"Frame {number} was not promised by this point, or it came twice.")
        found: np.void = draft.frame_rows[row]
        return draft, found

    def _ids(self, table: int, row: Rows) -> Digests:
        tables: list[Draft | Segment] = [*self.segments, *self._own]
        if not 0 <= table < len(tables) or int(row.max()) >= tables[table].frames:
            raise ContractError(
                f"There is no frame with the number {(self._base + table) << 32 | int(row.max())}."
            )
        return tables[table].ids(row)
