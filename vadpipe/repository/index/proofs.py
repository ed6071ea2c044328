"""Proofs that a segment says the truth: a frame's id is the keyed digest of its chunk table, which is there too."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..format.config import Keys
from ..format.frames import chunk_table, frame_id
from .cells import Rows
from .segments import FRAMES, PACKS, ROWS, Segment

# Bits of so many rows lie together; a page of them is there when a row of it was proved.
_PAGE: Final = 4096

# Pages in memory: 512 KiB, for 4 million rows. When there are more, all proofs are forgotten and made again.
_PAGES: Final = 1024

# Frames whose chunk tables are proved together, when the frames before them were just met.
_AHEAD: Final = 64


class Proofs:
    """Which rows of a segment were proved.

    Memory: 4 bytes for 4096 rows of the segment, and 512 bytes for each page of rows that were met lately.
    """

    def __init__(self, segment: Segment, keys: Keys) -> None:
        self._segment = segment
        self._keys = keys
        # Not one array of a bit for each row: it would lie in huge pages, of which one bit takes 2 MiB.
        self._page = np.zeros(-(-segment.chunks // _PAGE), np.int32)  # of a row: its place among the bits
        self._bits = np.zeros((2, _PAGE // 8), np.uint8)  # the first page is that of no row
        self._pages = 1
        self._used = np.zeros(segment.count(PACKS), np.bool_)
        self._next = -1  # the frame after the last ones that were proved
        self._ahead = 0

    def used_packs(self) -> list[str]:
        """The packs of the frames that were proved, but for those that are going to be removed."""
        return self._segment.staying_packs(np.flatnonzero(self._used))

    def prove(self, row: Rows, frame: Rows) -> None:
        """Prove the frames that rows belong to. Raises IntegrityError."""
        if self._are_proved(row).all():
            return
        if self._pages > _PAGES:
            self._page[:] = 0
            self._bits[:] = 0
            self._pages = 1
        wanted = np.unique(frame[~self._are_proved(row)])
        for frames in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
            first, last = int(frames[0]), int(frames[-1]) + 1
            self._ahead = min(max(1, 2 * self._ahead), _AHEAD) if first == self._next else 0
            self._next = min(last + self._ahead, self._segment.frames)
            self._prove(first, max(last, self._next))
        if not self._are_proved(row).all():
            raise self._segment.damaged("it says that a chunk lies where another one is stored")

    def _are_proved(self, row: Rows) -> NDArray[np.bool_]:
        bits = self._bits[self._page[row // _PAGE], row % _PAGE >> 3]
        proved: NDArray[np.bool_] = (bits >> (row & 7).astype(np.uint8)) & 1 == 1
        return proved

    def _prove(self, first: int, ahead: int) -> None:
        segment = self._segment
        frames = segment.column(FRAMES, first, ahead)
        if len(frames) != ahead - first:
            raise segment.damaged("a chunk of it is in a frame that it does not have")
        bounds = segment.bounds(first, ahead)
        base = int(bounds[0])
        chunk = segment.column(ROWS, base, int(bounds[-1]))
        many = np.diff(bounds)
        place = chunk["place"].astype(np.int64)
        end = np.empty(len(chunk), np.int64)
        end[:-1] = place[1:]
        end[bounds[1:][many > 0] - base - 1] = frames["length"][many > 0]
        table = chunk_table(end - place, chunk["digest"])
        stride = len(table) // max(1, len(chunk))
        right = chunk["frame"] == np.repeat(np.arange(first, ahead), many)
        right &= (end > place) & (end - place < 1 << 32)
        starts = bounds - base
        zero = place[starts[:-1][many > 0]] == 0
        for each, (low, high) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
            identity = frames[each]["id"].tobytes()
            if frame_id(table[low * stride : high * stride], self._keys) != identity:
                right[low:high] = False
        right[starts[:-1][many > 0][~zero]] = False
        # All rows of a frame or none.
        if len(right):
            whole = np.ones(len(frames), np.bool_)
            whole[many > 0] = np.logical_and.reduceat(right, starts[:-1][many > 0])
            self._mark(base, np.repeat(whole, many))
        pack = np.unique(frames["pack"]).astype(np.int64)
        if len(pack) and int(pack[-1]) >= len(self._used):
            raise segment.damaged("a frame of it is in a pack that it does not name")
        self._used[pack] = True

    def _mark(self, first: int, proved: NDArray[np.bool_]) -> None:
        begin, end = first // _PAGE, -(-(first + len(proved)) // _PAGE)
        new = begin + np.flatnonzero(self._page[begin:end] == 0)
        self._page[new] = np.arange(self._pages, self._pages + len(new))
        self._pages += len(new)
        while self._pages > len(self._bits):
            self._bits = np.concatenate((self._bits, np.zeros_like(self._bits)))
        marked = np.zeros((end - begin) * _PAGE, np.bool_)
        marked[first - begin * _PAGE :][: len(proved)] = proved
        bits = np.packbits(marked, bitorder="little").reshape(-1, _PAGE // 8)
        self._bits[self._page[begin:end]] |= bits
