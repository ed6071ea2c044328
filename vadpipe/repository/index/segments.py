"""Index segments: which chunk lies in which frame, and which frame in which pack. Byte layout: docs/repository.md.

A segment is immutable. Its chunk rows stand in the order of the disk, frame after frame, so chunks that were
stored together are found together: one cell of rows answers for some 1,600 chunks of a disk. And the whole
chunk table of a frame is there, so its id, which is the keyed digest of that table, proves the rows without a
look into the pack.

Beside the rows, `entries` are sorted by digest: 32 bits of the digest and the number of the row. Digests are
uniform; their first bits name a bucket of about a thousand entries, and `starts` says where each bucket begins.
A filter of 16 bits for each chunk tells most unknown chunks without reading any of that.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, Digests, MiB

from ..format.frames import LARGEST_FRAME
from ..format.objects import PACK_ID_SIZE, RUN_ID_SIZE, Damage, segment_name
from ..format.packs import FRAME_ROW, LARGEST_PACK
from ..format.sealing import SALT_SIZE, TAG_SIZE, Sealing, open_cell
from .cells import CELL, Cells, Readable, Rows, aligned
from .frame_columns import PIECE, FrameColumns, pack_ids

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# `place` is bytes in the decoded frame.
CHUNK_ROW: Final = np.dtype([("digest", "u1", (DIGEST_SIZE,)), ("frame", "<u4"), ("place", "<u4")])
assert CHUNK_ROW.itemsize == 40

# magic, repository, run, number in the run, frames, chunks, packs, epoch, xxh3 of the checks and tags, salt
HEADER: Final = struct.Struct(f"<8s16s{RUN_ID_SIZE}sIIQIIQ{SALT_SIZE}s")
CHECKSUM: Final = struct.Struct("<Q")
MAGIC: Final = b"VADINDX2"
HEADER_SIZE: Final = 128
BOUND: Final = slice(
    24, 56
)  # of the header: run, number, counts, epoch; part of what a sealed cell is bound to

ENDED_MAGIC: Final = (
    b"VADENDED"  # not a segment: a run whose segment 0 has this content was ended by another one
)
ENDED_SIZE: Final = len(ENDED_MAGIC) + RUN_ID_SIZE

ROWS, FRAMES, FIRSTS, PACKS, ENTRIES, STARTS, FILTER, ID_ENTRIES, ID_STARTS = range(9)
DTYPES: Final[Sequence[np.dtype[Any]]] = (
    CHUNK_ROW,
    FRAME_ROW,
    np.dtype("<u4"),
    np.dtype(f"V{PACK_ID_SIZE}"),
    *(np.dtype("<u8"), np.dtype("<u4"), np.dtype("<u8")),
    *(np.dtype("<u8"), np.dtype("<u4")),
)

BUCKET_BITS: Final = (
    10  # a bucket has at most 2**10 entries on average, 8 KiB: a cell has eight or more of them
)
MOST_CHUNKS: Final = (1 << 32) - 1

# A word of 64 bits for every four chunks, three bits of it set for each: 0.8 % of unknown chunks seem known.
# The number of words is a multiple of 60, so that a reader with little memory can join 2, 3, 4, 5, 6, ... of
# them into one.
CHUNKS_PER_WORD: Final = 4
WORDS_MULTIPLE: Final = 60

SHIFT_32: Final = np.uint64(32)
HIGH_BITS: Final = np.uint64(0xFFFF_FFFF_0000_0000)
_LOW: Final = np.uint64(0xFFFF_FFFF)


class Ended(Exception):
    """The object is no segment: it says that a run was ended by another one."""


class Counts(NamedTuple):
    """How many rows a segment has."""

    frames: int
    chunks: int
    packs: int

    def rows(self) -> tuple[int, ...]:
        """Of each column."""
        frames, chunks, packs = self
        starts, id_starts = (1 << bucket_bits(chunks)) + 1, (1 << bucket_bits(frames)) + 1
        return chunks, frames, frames, packs, chunks, starts, filter_words(chunks), frames, id_starts

    def starts(self) -> list[int]:
        """Where each column begins, and where the last one ends."""
        result = [HEADER_SIZE]
        for dtype, rows in zip(DTYPES, self.rows(), strict=True):
            result.append(aligned(result[-1] + dtype.itemsize * rows))
        return result


class Segment(FrameColumns):
    """One segment of format 2. Numbers of frames are rows of its frame table.

    Args:
        objects: What it is read from.
        name: Of the object; the header has to agree with it.
        size: In bytes, where a listing said it.

    Raises:
        IntegrityError: It is damaged; also from every method.
        Ended: It only says that a run was ended.
        SinkError: The store failed; also from every method.
    """

    frame_section, pack_section = FRAMES, PACKS

    def __init__(
        self,
        objects: Readable,
        name: str,
        repository_id: bytes,
        sealing: Sealing | None = None,
        cells: Cells | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(objects, name, cells or Cells(4 * MiB), DTYPES)
        self._tables: dict[int, _Table] = {}
        self._removed: NDArray[np.bool_] | None = None
        try:
            self.size = objects.size(name) if size is None else size
            self._open(repository_id, sealing)
        except Damage as damage:
            raise self.damaged(str(damage)) from damage

    def _open(self, repository_id: bytes, sealing: Sealing | None) -> None:
        header = self.objects.read(self.name, 0, min(self.size, HEADER_SIZE))
        if header.startswith(ENDED_MAGIC) and self.size == ENDED_SIZE:
            raise Ended
        fields = _parse_header(header, repository_id, self.name)
        starts = fields.counts.starts()
        cells = -(-(starts[-1] - HEADER_SIZE) // CELL)
        if starts[-1] + cells * (8 + bool(fields.epoch) * TAG_SIZE) != self.size:
            raise Damage("its size is wrong")
        listed = self.objects.read(self.name, starts[-1], self.size - starts[-1])
        if xxhash.xxh3_64_intdigest(listed) != fields.checks:
            raise Damage("the checksum of its checksums is wrong")
        if bool(fields.epoch) != (sealing is not None and sealing.sealed):
            raise Damage(
                "it is encrypted, but the repository is not sealed"
                if fields.epoch
                else "it is not encrypted, but the repository is sealed"
            )
        opener = None
        if sealing is not None and fields.epoch:
            cipher = sealing.cipher(fields.epoch, "index", fields.salt)
            place = place_of_cells(repository_id, self.name, header)
            opener = partial(_open_cell, cipher, place, listed[8 * cells :])
        self.lay_out(fields.counts.rows(), starts, np.frombuffer(listed, "<u8", cells), opener)

    @property
    def chunks(self) -> int:
        return self.count(ROWS)

    def leave_out(self, packs: frozenset[str]) -> None:
        """Name the packs that are going to be removed: what lies in them is found only when it is asked for."""
        self._removed = None
        if packs:
            named = np.array([pack in packs for pack in self.packs()], np.bool_)
            self._removed = named if named.any() else None

    @property
    def has_removed(self) -> bool:
        """Whether some frames of it lie in packs that are going to be removed."""
        return self._removed is not None

    def stays(self, frame: Rows) -> NDArray[np.bool_]:
        """For each frame whether its pack stays."""
        if self._removed is None:
            return np.ones(len(frame), np.bool_)
        pack = self.take(FRAMES, frame)["pack"]
        if len(pack) and int(pack.max()) >= len(self._removed):
            raise self.damaged("a frame of it is in a pack that it does not name")
        stays: NDArray[np.bool_] = ~self._removed[pack]
        return stays

    def staying_packs(self, pack: Rows) -> list[str]:
        """The ids of packs, by their rows, but for those that are going to be removed."""
        return pack_ids(self.take(PACKS, pack if self._removed is None else pack[~self._removed[pack]]))

    def find(self, digest: Digests, *, removed: bool = True, proved: bool = True) -> Rows:
        """The row of each chunk, -1 where there is none.

        Args:
            removed: Whether a chunk counts that lies only in packs that are going to be removed.
            proved: Whether the entries are proved before they are believed. Otherwise a chunk that is there may not
                be found where they are damaged. What is found has a proved row with its digest anyway.
        """
        found = np.full(len(digest), -1, np.int64)
        at, row = self._candidates(ENTRIES, heads(digest), proved)
        if len(at):
            chunk = self.take(ROWS, row)
            right = same(chunk["digest"], digest[at])
            if self._removed is not None and not removed:
                right[right] &= self.stays(self._frames_of(chunk[right]))
            at, row = at[right], row[right]
            found[at[::-1]] = row[::-1]  # of several the first
        return found

    def lookup(self, digest: Digests, *, removed: bool = True) -> tuple[Rows, Rows]:
        """The frame (-1 where there is none) and the place in it, bytes, of each chunk."""
        row = self.find(digest, removed=removed)
        frame, place = np.full(len(digest), -1, np.int64), np.zeros(len(digest), np.int64)
        found = np.flatnonzero(row >= 0)
        chunk = self.take(ROWS, row[found])
        frame[found], place[found] = self._frames_of(chunk), chunk["place"]
        return frame, place

    def find_frames(self, identity: Digests, *, removed: bool = True) -> Rows:
        """The frame of each id, -1 where there is none."""
        found = np.full(len(identity), -1, np.int64)
        at, row = self._candidates(ID_ENTRIES, heads(identity))
        if len(at):
            right = same(self.take(FRAMES, row)["id"], identity[at])
            if self._removed is not None and not removed:
                right[right] &= self.stays(row[right])
            at, row = at[right], row[right]
            found[at[::-1]] = row[::-1]
        return found

    def bounds(self, first: int, last: int) -> Rows:
        """Where the chunk rows of frames [first, last) begin, and where those of the last one end."""
        bounds = np.empty(last - first + 1, np.int64)
        known = self.column(FIRSTS, first, last + 1)
        bounds[: len(known)] = known
        if len(known) <= last - first:
            bounds[-1] = self.chunks
        if (bounds[1:] < bounds[:-1]).any() or int(bounds[-1]) > self.chunks:
            raise self.damaged("its frames have impossible chunks")
        return bounds

    def agreeing(self, frame: Rows, many: Rows, digest: Digests, place: Rows) -> int:
        """How many of its chunk rows say what some frames really hold.

        Args:
            frame: The frames, each once.
            many: How many chunks each of them has.
            digest: Of their chunks, frame after frame.
            place: Of each chunk in its frame, bytes.
        """
        first = self.take(FIRSTS, frame).astype(np.int64)
        row = np.arange(len(digest)) + np.repeat(first - (np.cumsum(many) - many), many)
        inside = row < self.chunks
        chunk = self.take(ROWS, row[inside])
        right = same(chunk["digest"], digest[inside]) & (chunk["place"] == place[inside])
        right &= chunk["frame"] == np.repeat(frame, many)[inside]
        return int(right.sum())

    def prove(self) -> None:
        """Check every byte, and that the columns fit each other: each row is found by its digest."""
        self.prove_cells()
        before = 0
        ids, chunks = _Multiset(self.frames), _Multiset(self.chunks)
        for low in range(0, self.frames, PIECE):
            bounds = self.bounds(low, min(low + PIECE, self.frames))
            frames = self.column(FRAMES, low, low + PIECE)
            if int(bounds[0]) != before or (np.diff(bounds) != frames["chunks"]).any():
                raise self.damaged("its frames have impossible chunks")
            if int(frames["pack"].max()) >= self.count(PACKS):
                raise self.damaged("a row of it names what it does not have")
            if (frames["offset"] > LARGEST_PACK).any() or (frames["size"] > 2 * LARGEST_FRAME).any():
                raise self.damaged("a frame of it lies where no frame can be")
            ids.add(heads(frames["id"]), np.arange(low, low + len(frames)))
            before = int(bounds[-1])
        if before != self.chunks:
            raise self.damaged("its frames have impossible chunks")
        frame = 0
        for low in range(0, self.chunks, PIECE):
            rows = self.column(ROWS, low, low + PIECE)
            named = self._frames_of(rows)
            bounds = self.bounds(frame, min(int(named.max()) + 1, self.frames))
            number = np.arange(low, low + len(rows))
            if (np.searchsorted(bounds, number, side="right") - 1 + frame != named).any():
                raise self.damaged("a chunk of it is in another frame than its row says")
            chunks.add(heads(rows["digest"]), number)
            frame = int(named[-1])
        for section, expected in ((ENTRIES, chunks), (ID_ENTRIES, ids)):
            if not self._table(section).is_made_of(expected):
                raise self.damaged("a row of it is not found by its digest")

    def _frames_of(self, chunk: NDArray[np.void]) -> Rows:
        frame = chunk["frame"].astype(np.int64)
        if len(frame) and int(frame.max()) >= self.frames:
            raise self.damaged("a chunk of it is in a frame that it does not have")
        return frame

    def _candidates(self, section: int, head: NDArray[np.uint64], proved: bool = True) -> tuple[Rows, Rows]:
        """Positions in `head`, ascending, and rows whose digests may be meant: 32 bits and the bucket agree."""
        return self._table(section).candidates(head, proved) if self.count(section) else (_NO_ROWS, _NO_ROWS)

    def _table(self, section: int) -> _Table:
        if section not in self._tables:
            self._tables[section] = _Table(self, section, self._cells)
        return self._tables[section]


_NO_ROWS: Final = np.zeros(0, np.int64)

# Entries of a bucket that are read on each side of where one is expected. Of uniform digests, in a bucket of 1024,
# the deviation is at most 16: 1 in 10,000 lies farther away, and the whole bucket is searched for it.
_NEAR: Final = 64
_TOGETHER: Final = 512  # searches whose entries are in memory at a time: 512 KiB


_FEW: Final = 4096  # entries: they take no longer to read than a bucket of them
_MANY: Final = 64  # searches in a table: from there on reading all of it costs less than reading buckets


class _Table:
    """The sorted entries of a segment.

    Memory: where its buckets begin, 4 bytes for 512 entries or more. A small table in which much is searched stays
    in memory as a whole.
    """

    def __init__(self, segment: Segment, section: int, cells: Cells) -> None:
        self._segment = segment
        self._section = section
        count = segment.count(section)
        self._bits = bucket_bits(count)
        self._starts = segment.column(section + 1, 0, (1 << self._bits) + 1).copy()
        if self._starts[0] or self._starts[-1] != count or (self._starts[1:] < self._starts[:-1]).any():
            raise segment.damaged("its buckets are impossible")
        self._mask = known_bits(self._bits)
        self._key: NDArray[np.uint64] | None = None
        self._row = _NO_ROWS
        self._cells = cells
        self._asked = 0
        self._may_stay = True
        if count <= _FEW:
            self._load()

    def _load(self) -> None:
        """Take the whole table into memory, where there is room."""
        segment, section = self._segment, self._section
        count = segment.count(section)
        self._may_stay = self._cells.reserve(16 * count)
        if self._may_stay:
            entry = segment.column(section, 0, count)
            bucket = np.repeat(np.arange(1 << self._bits, dtype=np.uint64), np.diff(self._starts))
            self._key = self._key_of(bucket, entry)
            self._row = (entry & _LOW).astype(np.int64)
            self._may_stay = False

    def is_made_of(self, expected: _Multiset) -> bool:
        """Whether its entries are these, and ascending."""
        found = 0
        last = np.uint64(0), np.uint64(0)
        for low in range(0, self._segment.count(self._section), PIECE):
            entry = self._segment.column(self._section, low, low + PIECE)
            number = np.arange(low, low + len(entry))
            bucket = (np.searchsorted(self._starts, number, side="right") - 1).astype(np.uint64)
            buckets, entries = np.append(last[0], bucket), np.append(last[1], entry)
            if ((entries[1:] < entries[:-1]) & (buckets[1:] == buckets[:-1])).any():
                return False
            found += expected.of(self._key_of(bucket, entry), entry & _LOW)
            last = bucket[-1], entry[-1]
        return found % (1 << 64) == expected.sum

    def _key_of(self, bucket: NDArray[np.uint64], entry: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The bits of the digests that bucket and entry know."""
        tail: NDArray[np.uint64] = (entry >> SHIFT_32) << np.uint64(32 - self._bits)
        return tail | (bucket << np.uint64(64 - self._bits)) if self._bits else tail

    def candidates(self, head: NDArray[np.uint64], proved: bool) -> tuple[Rows, Rows]:
        """See Segment._candidates."""
        self._asked += len(head)
        if self._may_stay and self._asked > _MANY:
            self._load()
        if self._key is not None:
            key = head & self._mask
            low = np.searchsorted(self._key, key)
            near = np.minimum(low, len(self._key) - 1)
            if not (self._key[near] == key).any():
                return _NO_ROWS, _NO_ROWS
            many = np.searchsorted(self._key, key, side="right") - low
            at = np.repeat(np.arange(len(head)), many)
            place = np.arange(len(at)) + np.repeat(low - (np.cumsum(many) - many), many)
            return at, self._row[place]
        if not proved and self._segment.is_scattered(self._section):
            found = [(low, self._near(head[low : low + _TOGETHER])) for low in range(0, len(head), _TOGETHER)]
            return (
                np.concatenate([_NO_ROWS, *(low + at for low, (at, _) in found)]),
                np.concatenate([_NO_ROWS, *(row for _, (_, row) in found)]),
            )
        bucket = self._bucket_of(head)
        low, high = self._starts[bucket].tolist(), self._starts[bucket + 1].tolist()
        least = (head << np.uint64(self._bits)) & HIGH_BITS
        ats: list[int] = []
        rows: list[int] = []
        order: list[int] = np.argsort(bucket).tolist()  # what is in one cell, one after the other
        for number in order:
            entry = self._segment.column(self._section, low[number], high[number])
            wanted = least[number]
            place = int(entry.searchsorted(wanted))
            while place < len(entry) and entry[place] & HIGH_BITS == wanted:
                ats.append(number)
                rows.append(int(entry[place] & _LOW))
                place += 1
        at, row = np.array(ats, np.int64), np.array(rows, np.int64)
        ascending = np.argsort(at, kind="stable")
        return at[ascending], row[ascending]

    def _bucket_of(self, head: NDArray[np.uint64]) -> Rows:
        bucket = head >> np.uint64(64 - self._bits) if self._bits else np.zeros_like(head)
        return bucket.astype(np.int64)

    def _near(self, head: NDArray[np.uint64]) -> tuple[Rows, Rows]:
        """Candidates in entries that are read without a proof, and only where they are expected in their bucket."""
        bucket = self._bucket_of(head)
        order = np.argsort(bucket)
        low, high = (self._starts[each[order]].astype(np.int64) for each in (bucket, bucket + 1))
        wanted = (head[order] << np.uint64(self._bits)) & HIGH_BITS
        place = low + (((wanted >> SHIFT_32).astype(np.int64) * (high - low)) >> 32)
        first, last = np.maximum(place - _NEAR, low), np.minimum(place + _NEAR, high)
        entry = self._segment.unproved(self._section, first, last)
        end = np.cumsum(last - first)
        number = np.repeat(np.arange(len(head)), last - first)
        high_bits = entry & HIGH_BITS
        hit = np.flatnonzero(high_bits == wanted[number])
        at, row = number[hit], (entry[hit] & _LOW).astype(np.int64)
        # Entries that continue beyond what was read: digests that are not uniform.
        filled = last > first
        before, after = filled & (first > low), filled & (last < high)
        before[filled] &= high_bits[(end - (last - first))[filled]] >= wanted[filled]
        after[filled] &= high_bits[end[filled] - 1] <= wanted[filled]
        beyond = before | after
        if beyond.any():
            kept = ~beyond[at]
            others, rows = self.candidates(head[order[beyond]], proved=True)
            at = np.concatenate((at[kept], np.flatnonzero(beyond)[others]))
            row = np.concatenate((row[kept], rows))
        at = order[at]
        ascending = np.argsort(at, kind="stable")
        return at[ascending], row[ascending]


class _Multiset:
    """Whether two tables have the same entries, in whatever order, without having them in memory.

    It is the sum of a random function of each entry. Tables that differ have equal sums once in 2**64 tries.
    """

    def __init__(self, count: int) -> None:
        self.mask = known_bits(bucket_bits(count))
        self.sum = 0
        one, two, three = (np.uint64(secrets.randbits(64) | 1) for _ in range(3))
        self._factors = one, two, three

    def add(self, head: NDArray[np.uint64], row: Rows) -> None:
        self.sum = (self.sum + self.of(head & self.mask, row.astype(np.uint64))) % (1 << 64)

    def of(self, key: NDArray[np.uint64], row: NDArray[np.uint64]) -> int:
        """Of some entries: the bits of the digest that are known, and the row."""
        one, two, three = self._factors
        mixed = key * one + row * two
        mixed ^= mixed >> SHIFT_32
        mixed *= three
        mixed ^= mixed >> SHIFT_32
        return int((mixed * one).sum(dtype=np.uint64))


def _open_cell(cipher: AESGCM, place: bytes, tags: bytes, number: int, stored: bytes) -> bytes:
    return open_cell(cipher, number, stored + tags[number * TAG_SIZE : (number + 1) * TAG_SIZE], place)


class _Header(NamedTuple):
    counts: Counts
    epoch: int
    checks: int
    salt: bytes


def _parse_header(header: bytes, repository_id: bytes, name: str) -> _Header:
    if len(header) < HEADER_SIZE:
        raise Damage("it is cut off")
    end = HEADER_SIZE - CHECKSUM.size
    if xxhash.xxh3_64_intdigest(header[:end]) != CHECKSUM.unpack_from(header, end)[0]:
        raise Damage("the checksum of its header is wrong")
    magic, repository, run, number, frames, chunks, packs, epoch, checks, salt = HEADER.unpack_from(header)
    if magic != MAGIC:
        raise Damage("it is not an index segment of format 2")
    if repository != repository_id:
        raise Damage("it belongs to another repository")
    if segment_name(run.hex(), number) != name:
        raise Damage("it has the content of another segment")
    if chunks > MOST_CHUNKS or (not epoch and any(salt)):
        raise Damage("its header is impossible")
    return _Header(Counts(frames, chunks, packs), epoch, checks, salt)


def place_of_cells(repository_id: bytes, name: str, header: bytes) -> bytes:
    """What a sealed cell is bound to, besides its number."""
    return b"index" + repository_id + header[BOUND] + name.encode("ascii")


def bucket_bits(count: int) -> int:
    """How many bits of a digest name its bucket in a table with so many entries."""
    return max(0, (count - 1).bit_length() - BUCKET_BITS) if count else 0


def known_bits(bits: int) -> np.uint64:
    """The bits of a head that decide in a table whose buckets have so many bits: those, and the next 32."""
    return np.uint64(((1 << (bits + 32)) - 1) << (32 - bits))


def filter_words(chunks: int) -> int:
    """How many words the filter of so many chunks has."""
    return -(-chunks // (CHUNKS_PER_WORD * WORDS_MULTIPLE)) * WORDS_MULTIPLE


def filter_bits(head: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bits that a digest sets in its word of the filter. Its last bits choose them, the first ones the word."""
    one, low = np.uint64(1), np.uint64(63)
    bits: NDArray[np.uint64] = one << (head & low)
    bits |= one << ((head >> np.uint64(6)) & low)
    bits |= one << ((head >> np.uint64(12)) & low)
    return bits


def heads(digest: Digests) -> NDArray[np.uint64]:
    """The first eight bytes of each digest as numbers that sort like the digests."""
    head: NDArray[np.uint64] = digest[:, :8].copy().view("<u8").ravel()
    head.byteswap(inplace=True)
    return head


def same(one: Digests, other: Digests) -> NDArray[np.bool_]:
    """Row by row, whether digests are equal."""
    equal: NDArray[np.bool_] = (one == other).all(axis=1)
    return equal
