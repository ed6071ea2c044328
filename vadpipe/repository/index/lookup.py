"""The index of a repository as a reader or a run sees it: all published segments, and the run's own chunks.

A frame has a number: the number of its table (a segment, or a draft of the run) in the upper 32 bits, its row
there in the lower. A run collects its chunks in a `Draft` in memory. A full draft becomes a segment in a
temporary file, so that memory stays bounded however much is new. `publish` gives these segments their names.

A chunk that is known stands in a segment beside those that were stored with it. So a search first looks where
the last chunk was found: chunks that were stored in the order of the disk cost no search at all. What is not
found there is searched by digest. When many searches find nothing, the filters of the segments are loaded, and
tell most unknown chunks at once. What passes them is searched in entries that are not proved: damage there costs at
most that a chunk is stored again. What is found has a proved row, and its frame is proved.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    MiB,
)

from ..format.config import Keys
from ..format.objects import INDEX, Missing, Objects, pack_id, segment_name, stem
from ..format.packs import FrameAddress
from ..format.sealing import Sealing
from .cells import Cells, Rows
from .draft import Draft
from .filters import Filters
from .format1_segments import Segment1
from .proofs import Proofs
from .segment_writer import (
    TemporarySegment,
    copy_segment,
    publish,
    temporary_errors,
    write_segment,
)
from .segments import ROWS, Ended, Segment, heads, same

log = logging.getLogger(__name__)

# 384 Ki chunks are 24 GiB of new data. A draft of that size takes 20 MiB.
DRAFT_ROWS: Final = 384 * KiB

# For the cells of segments, in a run. It meets chunks in the order of the disk or never again.
_CELLS: Final = 6 * MiB

# Searches that found nothing, before the filters are loaded. Until then a run with little new does not read them.
_MISSES: Final = 512

Numbers = NDArray[np.uint64]
AnySegment = Segment | Segment1
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Removed:
    """What removals take out of use: ids of packs and of segments, 24 hexadecimal digits each."""

    packs: frozenset[str] = frozenset()
    segments: frozenset[str] = frozenset()


class Index:
    """The published segments; `damaged` tells of those that could not be opened and count as missing.

    Searches raise IntegrityError for damage that is found on the way. Several threads may search at once.

    Args:
        removed: Segments that it names are not opened. What lies in packs that it names is found only when it lies
            nowhere else.
    """

    def __init__(
        self,
        objects: Objects,
        repository_id: bytes,
        sealing: Sealing | None = None,
        removed: Removed | None = None,
        cells: Cells | None = None,
    ) -> None:
        self._objects = objects
        self._repository_id = repository_id
        self._sealing = sealing
        self._removed = removed or Removed()
        self._base = 0
        self.cells = cells or Cells()
        self.damaged: list[IntegrityError] = []
        # A segment keeps its place here, and so frames their numbers, when it goes out of use.
        self._table: list[AnySegment] = []
        self._used: list[int] = []
        self._dropped: dict[str, IntegrityError] = {}
        self.reload()

    @property
    def removed(self) -> Removed:
        """What removals named when the segments were listed."""
        return self._removed

    @property
    def segments(self) -> list[AnySegment]:
        """Those in use."""
        return [self._table[number] for number in self._used]

    def reload(self, removed: Removed | None = None) -> None:
        """List the segments anew: some were merged or written since. Numbers of frames stay what they are.

        Raises SinkError.
        """
        if removed is not None:
            self._removed = removed
        known = {segment.name: number for number, segment in enumerate(self._table)}
        self.damaged, used = [], []
        for stored in self._objects.backend.list(INDEX):
            name = stored.name
            if not name.endswith(".idx") or name.count("/") > 1 or stem(name) in self._removed.segments:
                continue
            if name in self._dropped:
                self.damaged.append(self._dropped[name])
                continue
            if name not in known:
                segment = self._opened(name, stored.size)
                if segment is None:
                    continue
                known[name] = len(self._table)
                self._table.append(segment)
            self._table[known[name]].leave_out(self._removed.packs)
            used.append(known[name])
        # What is searched is most likely in the largest: so few are opened for a point's maps.
        self._used = sorted(used, key=lambda number: self._table[number].size, reverse=True)

    def _opened(self, name: str, size: int) -> AnySegment | None:
        """A segment, unless it is none, gone or damaged."""
        kind = Segment if self._objects.version > 1 else Segment1
        try:
            return kind(self._objects, name, self._repository_id, self._sealing, self.cells, size)
        except Ended:
            return None
        except IntegrityError as error:
            if not isinstance(error.__cause__, Missing):  # merged since it was listed
                self.damaged.append(error)
            return None

    def close(self) -> None:
        """Give memory back. What is needed after this is read again."""
        self.cells.clear()

    def drop_damaged(self) -> None:
        """Read every segment, and move those that are damaged to `damaged`."""
        for number in tuple(self._used):
            try:
                self._table[number].prove()
            except IntegrityError as error:
                self._used.remove(number)
                self._dropped[self._table[number].name] = error
                self.damaged.append(error)

    def lookup(self, digest: Digests) -> tuple[Numbers, Rows]:
        """Frame number and byte place of each chunk; NO_FRAME where it is unknown."""
        number = np.full(len(digest), NO_FRAME, dtype=np.uint64)
        place = np.zeros(len(digest), dtype=np.int64)
        for removed in (False, True):
            for table in self._used:
                missing = np.flatnonzero(number == NO_FRAME)
                if not len(missing):
                    return number, place
                frame, at = self._table[table].lookup(digest[missing], removed=removed)
                found = frame >= 0
                number[missing[found]] = self._numbers(table, frame[found])
                place[missing[found]] = at[found]
            if not self._removed.packs:
                break
        return number, place

    def find_frames(self, identity: Digests, *, staying: bool = False) -> Numbers:
        """The number of each frame id, NO_FRAME where there is none.

        Args:
            staying: Only in packs that no removal names.
        """
        number = np.full(len(identity), NO_FRAME, dtype=np.uint64)
        for removed in (False,) if staying else (False, True):
            for table in self._used:
                missing = np.flatnonzero(number == NO_FRAME)
                if not len(missing):
                    return number
                row = self._table[table].find_frames(identity[missing], removed=removed)
                number[missing[row >= 0]] = self._numbers(table, row[row >= 0])
            if not self._removed.packs:
                break
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
            for place, address in zip(at.tolist(), self._table[table].addresses(row), strict=True):
                result[place] = address
        return [address for address in result if address is not None]

    def places(
        self, digest: bytes, *, of_chunk: bool = False
    ) -> tuple[Sequence[FrameAddress], IntegrityError | None]:
        """Every place that some segment names for a frame, and the first damage that was met. Damaged segments are
        passed over. It asks each segment by itself: for a frame that cannot be had otherwise.

        Args:
            digest: The id of the frame, or with `of_chunk` the digest of a chunk that it holds.
        """
        wanted = np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE)
        found: dict[FrameAddress, None] = {}
        damage: IntegrityError | None = None
        for removed in (False, True):
            for table in self._used:
                segment = self._table[table]
                try:
                    if of_chunk:
                        row, _ = segment.lookup(wanted, removed=removed)
                    else:
                        row = segment.find_frames(wanted, removed=removed)
                    found.update(dict.fromkeys(segment.addresses(row[row >= 0])))
                except IntegrityError as error:
                    damage = damage or error
        return list(found), damage

    def lengths(self, number: Numbers) -> Rows:
        """How long published frames are, decoded."""
        result = np.empty(len(number), np.int64)
        for table, at, row in self._by_table(number):
            result[at] = self._table[table].lengths(row)
        return result

    def _numbers(self, table: int, row: Rows) -> Numbers:
        return row.astype(np.uint64) | np.uint64((self._base + table) << 32)

    def _by_table(self, number: Numbers) -> Iterator[tuple[int, NDArray[np.intp], Rows]]:
        """For each table: which of the numbers lie in it, and their rows there."""
        tables = (number >> np.uint64(32)).astype(np.int64) - self._base
        for table in np.unique(tables).tolist():
            at = np.flatnonzero(tables == table)
            yield table, at, (number[at] & np.uint64(0xFFFF_FFFF)).astype(np.int64)

    def _ids(self, table: int, row: Rows) -> Digests:
        return self._table[table].ids(row)


def _locked(method: Callable[Concatenate[RunIndex, P], R]) -> Callable[Concatenate[RunIndex, P], R]:
    def locked(self: RunIndex, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    locked.__doc__ = method.__doc__
    return locked


class RunIndex(Index):
    """The published segments and what one run adds. Every method may be called from any thread; who needs several
    calls to see the same state holds `lock` around them.

    A chunk or a frame that lies only in packs that `removed` names is unknown to a run: it stores it anew.

    Args:
        keys: Frame ids are proved with them.
        directory: For temporary files; None: the system's.
        first: How many segments the run has published already: the number of the next one.

    Raises:
        IntegrityError: A segment is damaged; also from the methods.
        SinkError: The store failed; also from the methods.
    """

    def __init__(
        self,
        objects: Objects,
        repository_id: bytes,
        run_id: str,
        keys: Keys,
        sealing: Sealing | None = None,
        removed: Removed | None = None,
        directory: Path | str | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(objects, repository_id, sealing, removed, Cells(_CELLS))
        if self.damaged:  # what it does not find would be stored again, and nobody would look for the reason
            raise self.damaged[0]
        self.lock = threading.RLock()
        self._run_id = run_id
        self._directory = directory
        self._number = first
        self._packs: dict[str, int] = {}  # of the drafts' frames, and their numbers there
        # Numbers begin elsewhere in every run: those of another run or index are not found here.
        self._base = 1 + int(run_id[:7], 16)
        self._first = len(self._table)
        self._keys = keys
        self._published = [segment for segment in self._table if isinstance(segment, Segment)]
        self._proofs = [Proofs(segment, keys) for segment in self._published]
        self.filters = Filters(self._published)
        self._misses = 0
        self._cursor: tuple[int, int] | None = None  # table and row where the next chunk is expected
        self._own: list[Draft | Segment] = [Draft(0, DRAFT_ROWS)]
        self._own_segments: list[int] = []  # their numbers among those, in the order of the filters
        self._temporary: list[TemporarySegment] = []

    def reload(self, removed: Removed | None = None) -> None:
        """A run keeps to the segments that it found at its begin."""
        if not self._table:
            super().reload(removed)

    @_locked
    def lookup(self, digest: Digests) -> tuple[Numbers, Rows]:
        number = np.full(len(digest), NO_FRAME, dtype=np.uint64)
        place = np.zeros(len(digest), dtype=np.int64)
        if self._follow(0, digest, number, place) < len(digest):
            for serial, table in enumerate(self._own):
                if isinstance(table, Draft):
                    self._search_own(serial, np.flatnonzero(number == NO_FRAME), digest, number, place)
            self._search_segments(digest, number, place)
        return number, place

    def _search_own(self, serial: int, wanted: Rows, digest: Digests, number: Numbers, place: Rows) -> None:
        """Fill in what a draft of the run, or its segment, knows of some rows."""
        frame, at = self._own[serial].lookup(digest[wanted])
        found = frame >= 0
        number[wanted[found]] = self._numbers(self._first + serial, frame[found])
        place[wanted[found]] = at[found]

    def _search_segments(self, digest: Digests, number: Numbers, place: Rows) -> None:
        """Fill in what the run's segments and the published ones know of the rows that are still NO_FRAME."""
        published = len(self._published)
        missing = np.flatnonzero(number == NO_FRAME)
        if not len(missing) or not published + len(self._own_segments):
            return
        # A segment of the run is searched for each of its new chunks: not without a filter. It is added here, as
        # nothing is searched any more behind the last draft.
        for serial in self._own_segments[len(self.filters) - published :]:
            segment = self._own[serial]
            assert isinstance(segment, Segment)
            self.filters.add(segment)
        maybe = self.filters.maybe(heads(digest[missing]))
        for serial, some in zip(self._own_segments, maybe[published:], strict=True):
            if some.any():
                self._search_own(serial, missing[some], digest, number, place)
        if len(maybe) > published:
            left = number[missing] == NO_FRAME
            missing, maybe = missing[left], maybe[:published, left]
        asked = len(missing)
        passed = maybe.any(axis=0)
        missing, maybe = missing[passed], maybe[:, passed]
        # One search, then what stands beside what was found; as long as that answers for many. Where most are
        # unknown for certain, the others hardly stand beside each other.
        while len(missing) > 1 and 2 * len(missing) > asked:
            first, tables = missing[:1], np.flatnonzero(maybe[:, 0])
            at, table, row = self._find(digest[first], maybe[:, :1], tables)
            if not len(at):
                missing, maybe = missing[1:], maybe[:, 1:]
                self._misses += 1
                break
            self._cursor = int(table[0]), int(row[0])
            before = len(missing)
            self._follow(int(first[0]), digest, number, place)
            left = number[missing] == NO_FRAME
            missing, maybe = missing[left], maybe[:, left]
            if before - len(missing) < 4:
                break
        if not len(missing):
            return
        at, table, row = self._find(digest[missing], maybe, np.flatnonzero(maybe.any(axis=1)))
        for each in np.unique(table).tolist():
            of = table == each
            self._accept(each, row[of], missing[at[of]], number, place)
        self._misses += len(missing) - len(at)
        if self._misses > _MISSES:
            self.filters.load()

    def _find(
        self, digest: Digests, maybe: NDArray[np.bool_], tables: NDArray[np.intp]
    ) -> tuple[Rows, Rows, Rows]:
        """Positions in `digest`, tables and rows of what is found in packs that stay."""
        table = np.full(len(digest), -1, np.int64)
        row = np.zeros(len(digest), np.int64)
        for each in sorted(tables.tolist(), key=lambda number: -self._published[number].size):
            wanted = np.flatnonzero(maybe[each] & (table < 0))
            if not len(wanted):
                continue
            found = self._published[each].find(digest[wanted], removed=False, proved=False)
            table[wanted[found >= 0]] = each
            row[wanted[found >= 0]] = found[found >= 0]
        at = np.flatnonzero(table >= 0)
        return at, table[at], row[at]

    def _follow(self, first: int, digest: Digests, number: Numbers, place: Rows) -> int:
        """Compare chunks from number `first` on with the rows from the cursor on. Returns how many agree."""
        if self._cursor is None:
            return 0
        table, low = self._cursor
        segment = self._published[table]
        row = segment.column(ROWS, low, low + len(digest) - first)
        if not len(row):
            return 0
        at = np.flatnonzero(row["digest"][:, 0] == digest[first : first + len(row), 0])
        if len(at) < len(row):
            row = row[at]
        right = same(row["digest"], digest[first + at])
        right &= number[first + at] == NO_FRAME
        if not right.all():
            at, row = at[right], row[right]
        if len(at) and segment.has_removed:
            stays = segment.stays(row["frame"].astype(np.int64))
            at, row = at[stays], row[stays]
        if not len(at):
            return 0
        self._accept(table, low + at, first + at, number, place, row)
        self._cursor = table, low + len(digest) - first
        return len(at)

    def _accept(
        self,
        table: int,
        row: Rows,
        at: Rows,
        number: Numbers,
        place: Rows,
        chunk: NDArray[np.void] | None = None,
    ) -> None:
        """Chunks `at` of a search are these rows of a segment.

        A wrong row must not become a wrong map: the frame's id, which is a keyed digest, proves what it holds.
        """
        segment = self._published[table]
        if chunk is None:
            chunk = segment.take(ROWS, row)
        frame = chunk["frame"].astype(np.int64)
        self._proofs[table].prove(row, frame)
        number[at] = self._numbers(table, frame)
        place[at] = chunk["place"]

    @_locked
    def frame_ids(self, number: Numbers) -> Digests:
        return super().frame_ids(number)

    @_locked
    def readable(self, digest: Digests) -> tuple[Numbers, Rows]:
        """Like `lookup`, among all published chunks, also in packs that are going to be removed: to read them."""
        return super().lookup(digest)

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
        self._place(number, pack_id(self._run_id, pack), offset, size)

    @_locked
    def found(self, number: int, address: FrameAddress) -> None:
        """Frame `number` lies in a pack that is there already. Raises ContractError."""
        self._place(number, address.pack, address.offset, address.size)

    def _place(self, number: int, pack: str, offset: int, size: int) -> None:
        draft, row = self._waiting(number)
        row["pack"] = self._packs.setdefault(pack, len(self._packs))
        row["offset"], row["size"] = offset, size
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
        """Write a draft as a segment into a temporary file. For a worker thread. Raises SinkError."""
        name = segment_name(self._run_id, self._number + draft.serial)
        frames = draft.frame_rows.copy()
        packs, frames["pack"] = np.unique(frames["pack"], return_inverse=True)
        with self.lock:
            known = list(self._packs)
            digest, place = draft.chunks()
        names = [known[number] for number in packs.tolist()]
        self.cells.clear()  # writing takes more memory than they
        temporary = TemporarySegment(name, self._directory)
        with temporary_errors(self._directory):
            write_segment(
                temporary.file, name, self._repository_id, digest, frames, place, names, self._sealing
            )
        with self.lock:
            self._temporary.append(temporary)
        return Segment(temporary, name, self._repository_id, self._sealing, self.cells)

    @_locked
    def replace(self, draft: Draft, segment: Segment) -> None:
        """Give the memory of a draft back."""
        self._own[draft.serial] = segment
        self._own_segments.append(draft.serial)

    @property
    def used_packs(self) -> set[str]:
        """The packs of frames that were found in published segments, and of some beside them."""
        with self.lock:
            return {pack for proofs in self._proofs for pack in proofs.used_packs()}

    @_locked
    def written(self) -> Sequence[Segment]:
        """The run's segments, which are not published."""
        return [table for table in self._own if isinstance(table, Segment)]

    def packs(self) -> set[str]:
        """The packs that the run's segments name."""
        return {pack for segment in self.written() for pack in segment.packs()}

    def publish(self, first: int | None = None) -> list[str]:
        """Write what is left, and give the run's segments their names, in their order. For a worker thread.

        Args:
            first: The number of the first one, where it is not the one that was told at the begin.

        Returns:
            The names.

        Raises:
            ObjectExists: Somebody ended this run; then nothing more may be published.
            SinkError
        """
        for draft in self.last():
            self.replace(draft, self.write(draft))
        names: list[str] = []
        for segment in self.written():
            temporary = segment.objects
            assert isinstance(temporary, TemporarySegment)
            if first is not None and first != self._number:  # a cell is bound to the name
                name = segment_name(self._run_id, first + len(names))
                temporary = self._renamed(segment, name)
            publish(self._objects, temporary)
            names.append(temporary.name)
        return names

    def _renamed(self, segment: Segment, name: str) -> TemporarySegment:
        temporary = TemporarySegment(name, self._directory)
        with self.lock:
            self._temporary.append(temporary)
        with temporary_errors(self._directory):
            copy_segment(segment, temporary.file, name, self._repository_id, self._sealing)
        return temporary

    def close(self) -> None:
        """Let go of temporary files and memory."""
        super().close()
        with self.lock:
            for temporary in self._temporary:
                temporary.close()
            self._temporary = []

    def _waiting(self, number: int) -> tuple[Draft, np.void]:
        """The draft and the row of a frame that is not stored yet."""
        serial, row = (number >> 32) - self._base - self._first, number & 0xFFFF_FFFF
        draft = self._own[serial] if 0 <= serial < len(self._own) else None
        if not isinstance(draft, Draft) or row >= draft.frames or draft.frame_rows[row]["offset"]:
            raise ContractError(f"Frame {number} was not promised by this point, or it came twice.")
        found: np.void = draft.frame_rows[row]
        return draft, found

    def _ids(self, table: int, row: Rows) -> Digests:
        tables: list[Draft | AnySegment] = [*self._table, *self._own]
        if not 0 <= table < len(tables) or int(row.max()) >= tables[table].frames:
            raise ContractError(
                f"There is no frame with the number {(self._base + table) << 32 | int(row.max())}."
            )
        return tables[table].ids(row)
