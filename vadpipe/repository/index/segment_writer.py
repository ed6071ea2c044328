"""Writing index segments: from memory, or column after column. Byte layout: docs/repository.md."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import Digests, KiB, MiB, SinkError

from ..format.objects import RUN_ID_SIZE, Damage, Objects, stem
from ..format.sealing import SALT_SIZE, TAG_SIZE, Sealing, seal_cell
from .cells import CELL
from .segments import (
    CHECKSUM,
    CHUNK_ROW,
    DTYPES,
    HEADER,
    HEADER_SIZE,
    HIGH_BITS,
    MAGIC,
    PACKS,
    SHIFT_32,
    Counts,
    Segment,
    bucket_bits,
    filter_bits,
    filter_words,
    heads,
    place_of_cells,
)

# Published in one piece up to this size; a segment of a full draft has 25 MiB.
_SMALL: Final = 8 * MiB

_PIECE: Final = 64 * KiB  # rows copied together
_NO_ROWS: Final = np.zeros(0, np.int64)


class SegmentWriter:
    """Writes a segment into a file, column after column; they are never in memory together.

    What it writes is sealed already where the repository is, so the file may be a temporary one. Raises OSError.
    """

    def __init__(
        self, file: IO[bytes], name: str, repository_id: bytes, counts: Counts, sealing: Sealing | None = None
    ) -> None:
        self._file = file
        self._starts = counts.starts()
        self._columns = 0
        self._end = HEADER_SIZE
        self._cell = bytearray()
        self._checks: list[bytes] = []
        self._tags: list[bytes] = []
        sealed = sealing is not None and sealing.sealed
        epoch, salt = (
            (sealing.epoch, sealing.salt()) if sealing is not None and sealed else (0, bytes(SALT_SIZE))
        )
        run_id, number = stem(name)[: 2 * RUN_ID_SIZE], int(stem(name)[2 * RUN_ID_SIZE :], 16)
        fields = bytes.fromhex(run_id), number, counts.frames, counts.chunks, counts.packs, epoch
        self._header: Callable[[int], bytes] = lambda checks: HEADER.pack(
            MAGIC, repository_id, *fields, checks, salt
        ).ljust(HEADER_SIZE - CHECKSUM.size, b"\0")
        self._cipher = sealing.cipher(epoch, "index", salt) if sealing is not None and sealed else None
        self._place = place_of_cells(repository_id, name, self._header(0))
        file.write(bytes(HEADER_SIZE))

    def write(self, rows: NDArray[Any]) -> None:
        """Some rows of the column that is being written."""
        part = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
        self._end += len(part)
        while len(part):
            if not self._cell and len(part) >= CELL:
                self._write_cell(part[:CELL])
                part = part[CELL:]
                continue
            room = CELL - len(self._cell)
            self._cell += part[:room]
            part = part[room:]
            if len(self._cell) == CELL:
                self._write_cell(self._cell)
                self._cell = bytearray()

    def end_column(self) -> None:
        """The next rows are of the next column."""
        self._columns += 1
        self.write(np.zeros(self._starts[self._columns] - self._end, np.uint8))

    def finish(self) -> None:
        """After the last column."""
        if self._cell:
            self._write_cell(self._cell)
        listed = b"".join((*self._checks, *self._tags))
        self._file.write(listed)
        header = self._header(xxhash.xxh3_64_intdigest(listed))
        self._file.seek(0)
        self._file.write(header + CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)))
        self._file.flush()

    def _write_cell(self, content: memoryview | bytearray) -> None:
        stored: memoryview | bytearray = content
        if self._cipher is not None:
            sealed = memoryview(seal_cell(self._cipher, len(self._checks), bytes(content), self._place))
            stored = sealed[:-TAG_SIZE]
            self._tags.append(bytes(sealed[-TAG_SIZE:]))
        self._checks.append(CHECKSUM.pack(xxhash.xxh3_64_intdigest(stored)))
        self._file.write(stored)


def write_segment(
    file: IO[bytes],
    name: str,
    repository_id: bytes,
    digest: Digests,
    frames: NDArray[np.void],
    place: NDArray[np.integer],
    packs: Sequence[str],
    sealing: Sealing | None = None,
) -> None:
    """Write a segment that fits into memory.

    Args:
        file: A new file, for writing and seeking.
        name: Of the object that it will be.
        digest: The chunks, frame after frame, each frame's in their order.
        frames: Frame rows; `chunks` says how many chunks each has.
        place: Of each chunk in its frame, bytes.
        packs: Ids; the field `pack` of a frame is a row of this list.

    Raises:
        OSError
    """
    counts = Counts(len(frames), len(digest), len(packs))
    writer = SegmentWriter(file, name, repository_id, counts, sealing)
    many = frames["chunks"].astype(np.int64)
    frame = np.repeat(np.arange(len(frames), dtype=np.uint32), many)
    for low in range(0, len(digest), _PIECE):
        part = slice(low, low + _PIECE)
        rows = np.empty(len(digest[part]), dtype=CHUNK_ROW)
        rows["digest"], rows["frame"], rows["place"] = digest[part], frame[part], place[part]
        writer.write(rows)
    writer.end_column()
    for column in (
        frames,
        (np.cumsum(many) - many).astype("<u4"),
        np.frombuffer(b"".join(bytes.fromhex(pack) for pack in packs), np.uint8),
    ):
        writer.write(column)
        writer.end_column()
    for names, with_filter in ((digest, True), (frames["id"], False)):
        table = SortedEntries(len(names), with_filter=with_filter)
        for piece in table.add(heads(names)):
            writer.write(piece)
        writer.end_column()
        writer.write(table.starts())
        writer.end_column()
        if with_filter:
            writer.write(table.filter(last=True))
            writer.end_column()
    writer.finish()


def copy_segment(
    segment: Segment, file: IO[bytes], name: str, repository_id: bytes, sealing: Sealing | None = None
) -> None:
    """Write a segment again, for another name. Raises OSError, IntegrityError."""
    counts = Counts(segment.frames, segment.chunks, segment.count(PACKS))
    writer = SegmentWriter(file, name, repository_id, counts, sealing)
    for section in range(len(DTYPES)):
        for low in range(0, segment.count(section), _PIECE):
            writer.write(segment.column(section, low, low + _PIECE))
        writer.end_column()
    writer.finish()


class SortedEntries:
    """Makes the sorted entries of a table, and its filter, from digests that come in ranges, ascending."""

    def __init__(self, count: int, *, with_filter: bool) -> None:
        self._bits = bucket_bits(count)
        self._words = filter_words(count) if with_filter else 0
        self._in_bucket = np.zeros(1 << self._bits, np.int64)
        self._word: NDArray[np.int64] = _NO_ROWS
        self._mask: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._filled: list[NDArray[np.uint64]] = []
        self._written = 0

    def add(
        self, head: NDArray[np.uint64], row: NDArray[np.uint32] | None = None
    ) -> Iterator[NDArray[np.uint64]]:
        """The entries of the next range, piece by piece; equal heads come in one range.

        Args:
            row: Of each digest; None: they are those from 0 on.
        """
        order = np.argsort(head)
        known = np.uint64(max(0, 32 - self._bits))  # the bits behind these do not decide
        low = 0
        while low < len(head):
            high = min(low + _PIECE, len(head))
            while high < len(head) and head[order[high]] >> known == head[order[high - 1]] >> known:
                high += 1
            piece = order[low:high]
            yield self._entries(head[piece], piece if row is None else row[piece])
            low = high

    def _entries(self, head: NDArray[np.uint64], row: NDArray[np.integer]) -> NDArray[np.uint64]:
        bucket = head >> np.uint64(64 - self._bits) if self._bits else head & np.uint64(0)
        self._in_bucket += np.bincount(bucket.astype(np.int64), minlength=len(self._in_bucket))
        entry = (head << np.uint64(self._bits)) & HIGH_BITS | row.astype(np.uint64)
        if (
            (entry[1:] < entry[:-1]) & (bucket[1:] == bucket[:-1])
        ).any():  # equal as far as they decide: by row
            entry = entry[np.lexsort((entry, bucket))]
        if self._words:
            word = (((head >> SHIFT_32) * np.uint64(self._words)) >> SHIFT_32).astype(np.int64)
            self._word = np.concatenate((self._word, word))
            self._mask = np.concatenate((self._mask, filter_bits(head)))
            self._filled.append(self._next_words(int(self._word[-1])))
        return entry

    def starts(self) -> NDArray[np.uint32]:
        """After all ranges: where each bucket begins, and where the last one ends."""
        return np.concatenate(([0], np.cumsum(self._in_bucket))).astype("<u4")

    def filter(self, *, last: bool) -> NDArray[np.uint64]:
        """The next words of the filter: those that are known for certain, or all that are left."""
        if last:
            self._filled.append(self._next_words(self._words))
        words = np.concatenate([np.zeros(0, np.uint64), *self._filled])
        self._filled = []
        return words

    def _next_words(self, end: int) -> NDArray[np.uint64]:
        words = np.zeros(end - self._written, np.uint64)
        known = int(np.searchsorted(self._word, end))
        if known:
            word = self._word[:known]
            first = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
            words[word[first] - self._written] = np.bitwise_or.reduceat(self._mask[:known], first)
        self._word, self._mask, self._written = self._word[known:], self._mask[known:], end
        return words


class TemporarySegment:
    """A segment that is not published yet: a temporary file without a name. A `Readable`; raises SinkError.

    Args:
        name: Of the object that it will be.
        directory: For the file; None: the system's.
    """

    def __init__(self, name: str, directory: Path | str | None = None) -> None:
        self.name = name
        self.directory = directory
        with temporary_errors(directory):
            self.file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with temporary_errors(self.directory):
            content = os.pread(self.file.fileno(), length, offset)
        if len(content) != length:
            raise Damage("it is cut off")
        return content

    def size(self, name: str = "") -> int:
        with temporary_errors(self.directory):
            return os.fstat(self.file.fileno()).st_size

    def place(self, name: str = "") -> str:
        return f"{self.name} (in a temporary file)"

    def pieces(self) -> Iterator[bytes]:
        """The whole content."""
        for low in range(0, size := self.size(), MiB):
            yield self.read(self.name, low, min(MiB, size - low))

    def close(self) -> None:
        self.file.close()


@contextmanager
def temporary_errors(directory: Path | str | None) -> Iterator[None]:
    """Translate what a temporary file raises into SinkError."""
    try:
        yield
    except OSError as exc:
        place = directory or tempfile.gettempdir()
        raise SinkError(
            f"A temporary file in {place} cannot be written or read ({exc.strerror or exc}).",
            remedy="Free space there, or let TMPDIR name another directory.",
            path=str(place),
        ) from exc


def publish(objects: Objects, temporary: TemporarySegment) -> None:
    """Give a segment its name. Raises ObjectExists, SinkError."""
    if temporary.size() <= _SMALL:
        objects.backend.put(temporary.name, list(temporary.pieces()))
        return
    upload = objects.backend.begin(temporary.name)
    try:
        for piece in temporary.pieces():
            upload.write([piece])
        upload.finish()
    finally:
        upload.abort()
