"""Index segments: which chunk lies in which frame, and which frame in which pack. Byte layout: docs/repository.md.

A segment is immutable and sorted. It is mapped, not loaded: a search touches the pages that it walks over, and
the memory of a process does not grow with the repository. For a binary search numpy wants one contiguous
column, so the first eight bytes of each digest stand apart from the rest.

The file is guarded by one xxh3 per 64 KiB, proved when a search first uses what lies there: a damaged row could
name a wrong frame, and the new point that used it would be consistent and false.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import (
    DIGEST_SIZE,
    Digests,
    IntegrityError,
    KiB,
)

from .damage import Damage
from .files import create, sink_errors, write_all
from .layout import PACK_ID_SIZE, RUN_ID_SIZE
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

Rows = NDArray[np.int64]


class Segment:
    """One segment, mapped for reading. Numbers of frames are rows of its frame table.

    Every method raises IntegrityError for what is damaged. Opening raises SinkError.
    """

    def __init__(self, path: Path, repository_id: bytes) -> None:
        self.path = path
        with sink_errors(path, "map"), open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < HEADER_SIZE:
                raise self._damaged("it is cut off")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        try:
            frames, chunks, packs, checks = _parse_header(self._map[:HEADER_SIZE], repository_id)
        except Damage as damage:
            raise self._damaged(str(damage)) from damage
        self._start = sections = _sections(chunks, frames, packs)
        cells = -(-(sections[-1] - HEADER_SIZE) // CHECKED)
        if sections[-1] + 8 * cells != len(self._map):
            raise self._damaged("its size is wrong")
        self._checks = np.frombuffer(self._map, "<u8", cells, sections[-1]).copy()
        if xxhash.xxh3_64_intdigest(self._checks.tobytes()) != checks:
            raise self._damaged("the checksum of its checksums is wrong")
        self._proved = np.zeros(cells, dtype=np.bool_)
        self._head = np.frombuffer(self._map, "<u8", chunks, sections[0])
        self._chunk = np.frombuffer(self._map, CHUNK_ROW, chunks, sections[1])
        self._id_head = np.frombuffer(self._map, "<u8", frames, sections[2])
        self._id_frame = np.frombuffer(self._map, "<u4", frames, sections[3])
        self._frame = np.frombuffer(self._map, FRAME_ROW, frames, sections[4])
        self._pack = np.frombuffer(self._map, f"V{PACK_ID_SIZE}", packs, sections[5])

    @property
    def frames(self) -> NDArray[np.void]:
        """The frame table, unproved."""
        return self._frame

    @property
    def size(self) -> int:
        return len(self._map)

    def packs(self) -> list[str]:
        """The ids of the packs that hold its frames."""
        self._prove(5, np.arange(len(self._pack)), PACK_ID_SIZE)
        return [pack.tobytes().hex() for pack in self._pack]

    def lookup(self, digest: Digests) -> tuple[Rows, Rows]:
        """The frame (-1 where there is none) and the place in it, bytes, of each chunk."""
        rest = digest[:, 8:]
        row = search(
            self._head, heads(digest), lambda at, rows: (self._chunk["rest"][rows] == rest[at]).all(axis=1)
        )
        found = row >= 0
        self._prove(0, row[found], 8)
        self._prove(1, row[found], CHUNK_ROW.itemsize)
        frame, place = np.full(len(digest), -1, np.int64), np.zeros(len(digest), np.int64)
        chunk = self._chunk[row[found]]
        frame[found], place[found] = chunk["frame"], chunk["place"]
        return frame, place

    def find_frames(self, identity: Digests) -> Rows:
        """The frame of each id, -1 where there is none."""

        def same(at: Rows, rows: Rows) -> NDArray[np.bool_]:
            self._prove(3, rows, 4)
            return np.asarray((self._frame["id"][self._id_frame[rows]] == identity[at]).all(axis=1))

        row = search(self._id_head, heads(identity), same)
        self._prove(2, row[row >= 0], 8)
        row[row >= 0] = self._id_frame[row[row >= 0]]
        self._prove(4, row[row >= 0], FRAME_ROW.itemsize)
        return row

    def ids(self, frame: Rows) -> Digests:
        """The ids of frames."""
        self._prove(4, frame, FRAME_ROW.itemsize)
        ids: Digests = self._frame["id"][frame]
        return ids

    def addresses(self, frame: Rows) -> Iterator[FrameAddress]:
        """Where frames are stored."""
        self._prove(4, frame, FRAME_ROW.itemsize)
        rows = self._frame[frame]
        packs = rows["pack"].astype(np.int64)
        self._prove(5, packs, PACK_ID_SIZE)
        for row, pack in zip(rows, packs.tolist(), strict=True):
            yield FrameAddress(
                self._pack[pack].tobytes().hex(),
                int(row["offset"]),
                int(row["size"]),
                int(row["length"]),
                row["id"].tobytes(),
            )

    def frames_by_pack(self) -> dict[str, Rows]:
        """For each pack the frames in it, in the order in which they lie there."""
        self._prove(4, np.arange(len(self._frame)), FRAME_ROW.itemsize)
        order = np.lexsort((self._frame["offset"], self._frame["pack"]))
        borders = np.searchsorted(self._frame["pack"][order], np.arange(len(self._pack) + 1))
        return {
            name: order[low:high]
            for name, low, high in zip(self.packs(), borders[:-1].tolist(), borders[1:].tolist(), strict=True)
        }

    def prove(self) -> None:
        """Check every byte."""
        self._prove_cells(np.arange(len(self._proved)))

    def forget(self) -> None:
        """Unmap what was touched; the next search faults it in again from the page cache."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _prove(self, section: int, row: Rows, size: int) -> None:
        """Prove rows of a section before they are believed."""
        low = self._start[section] - HEADER_SIZE + row * size
        self._prove_cells(np.concatenate((low // CHECKED, (low + size - 1) // CHECKED)))

    def _prove_cells(self, cells: Rows) -> None:
        for cell in np.unique(cells[~self._proved[cells]]).tolist():
            low = HEADER_SIZE + cell * CHECKED
            with memoryview(self._map) as view, view[low : min(low + CHECKED, self._start[-1])] as part:
                if xxhash.xxh3_64_intdigest(part) != self._checks[cell]:
                    raise self._damaged(f"the checksum of bytes {low} to {low + len(part)} is wrong")
            self._proved[cell] = True

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
    starts = _sections(len(digest), len(frames), len(packs))
    parts: list[memoryview] = []
    for column, start, end in zip(columns, starts, starts[1:], strict=False):
        parts += [column.view(np.uint8).data, memoryview(bytes(end - start - column.nbytes))]
    checks = _cell_checksums(parts)
    run = bytes.fromhex(run_id)
    counts = len(frames), len(digest), len(packs)
    guard = xxhash.xxh3_64_intdigest(checks)
    header = _HEADER.pack(_MAGIC, repository_id, run, serial, *counts, 0, guard)
    header = header.ljust(HEADER_SIZE - _CHECKSUM.size, b"\0")
    header += _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header))
    file = create(path)
    try:
        write_all(file, [header, *parts, checks])
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


def search(
    column: NDArray[np.uint64], wanted: NDArray[np.uint64], same: Callable[[Rows, Rows], NDArray[np.bool_]]
) -> Rows:
    """For each wanted number the row of the sorted column where it is and `same(position, row)` holds; or -1."""
    row = np.searchsorted(column, wanted).astype(np.int64)
    found = np.full(len(wanted), -1, dtype=np.int64)
    at = np.flatnonzero(row < len(column))
    while len(at):
        at = at[column[row[at]] == wanted[at]]
        hit = same(at, row[at])
        found[at[hit]] = row[at[hit]]
        at = at[~hit]
        row[at] += 1
        at = at[row[at] < len(column)]
    return found


def _cell_checksums(parts: Sequence[memoryview]) -> bytes:
    """The xxh3 of every 64 KiB of the joined parts."""
    checks: list[bytes] = []
    state, room = xxhash.xxh3_64(), CHECKED
    for part in parts:
        while len(part):
            state.update(part[:room])
            part, room = part[room:], room - len(part[:room])
            if not room:
                checks.append(_CHECKSUM.pack(state.intdigest()))
                state, room = xxhash.xxh3_64(), CHECKED
    if room < CHECKED:
        checks.append(_CHECKSUM.pack(state.intdigest()))
    return b"".join(checks)


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
    return frames, chunks, packs, checks
