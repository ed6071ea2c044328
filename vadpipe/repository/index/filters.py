"""The filters of index segments in memory: which chunks are unknown for certain, whatever the number of segments.

All filters lie in one array and are asked together. Where they are larger than the memory for them, words of a
filter are joined into one, of the largest filter first; then more unknown chunks seem known, and cost a search
each. Small filters stay as they are: each segment adds the chunks that seem to be in it, however small it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import KiB, MiB

from .segments import FILTER, WORDS_MULTIPLE, Segment, filter_bits

log = logging.getLogger(__name__)

# With it, a run has at most 192 MiB against an index of 200 million chunks, and of these filters five words are
# joined (bench/index.py): 23 % of unknown chunks seem known.
BUDGET: Final = 80 * MiB

_JOINED: Final = tuple(many for many in range(1, WORDS_MULTIPLE + 1) if WORDS_MULTIPLE % many == 0)
_ROOM: Final = 2 * MiB  # words for segments that are added: 20 of a run, for 480 GiB of new data
_PIECE: Final = 128 * KiB // WORDS_MULTIPLE * WORDS_MULTIPLE  # words read at a time: 1 MiB

_U32: Final = np.uint64(32)


class Filters:
    """The filters of some segments. Before `load` every chunk may be in every segment. Not thread-safe."""

    def __init__(self, segments: Iterable[Segment], budget: int = BUDGET) -> None:
        self._segments = list(segments)
        self._budget = budget
        self._word: NDArray[np.uint64] | None = None
        self._end = 0  # of the words that are in use
        self._joined: list[int] = []
        self._words = np.zeros((len(self._segments), 1), np.uint64)
        self._base = np.zeros((len(self._segments), 1), np.uint64)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def loaded(self) -> int:
        """Bytes in memory."""
        return 0 if self._word is None else 8 * self._end

    def add(self, segment: Segment) -> None:
        """One more segment, whose filter is loaded with the others. Raises IntegrityError, SinkError."""
        self._segments.append(segment)
        joined = self._join()
        needed = self._end + segment.count(FILTER) // joined[-1]
        if self._word is not None and joined[:-1] == self._joined and needed <= len(self._word):
            self._read(segment, joined[-1])
            return
        self._word = None  # there is no room for two of them
        self.load()

    def load(self) -> None:
        """Read the filters, unless they are there. Raises IntegrityError, SinkError."""
        if self._word is not None:
            return
        joined = self._join()
        needed = sum(
            segment.count(FILTER) // many for segment, many in zip(self._segments, joined, strict=True)
        )
        self._end, self._joined = 0, []
        self._words = self._base = np.zeros((0, 1), np.uint64)
        # Memory that is not used yet takes none.
        word = np.zeros(max(needed, min(needed + _ROOM, self._budget // 8)), np.uint64)
        self._word = word
        for segment, many in zip(self._segments, joined, strict=True):
            self._read(segment, many)
        log.debug(
            "loaded filters of %d segments: %d bytes, up to %d words in one",
            len(joined),
            self.loaded,
            max(joined, default=1),
        )

    def _read(self, segment: Segment, many: int) -> None:
        """Put the filter of a segment behind the others, so many words as one."""
        assert self._word is not None
        base = end = self._end
        try:
            for low in range(0, segment.count(FILTER), _PIECE):
                piece = segment.column(FILTER, low, low + _PIECE)
                into = self._word[end : end + len(piece) // many]
                into[:] = piece[::many]
                for each in range(1, many):  # several times faster than a reduction of short rows
                    into |= piece[each::many]
                end += len(into)
        except BaseException:
            self._word = None  # it is asked for this one, too
            raise
        self._end = end
        # The word of a chunk is the same part of all words, joined or not.
        self._words = np.append(self._words, np.array([[end - base]], np.uint64), axis=0)
        self._base = np.append(self._base, np.array([[base]], np.uint64), axis=0)
        self._joined.append(many)

    def _join(self) -> list[int]:
        """How many words of each filter become one, so that all fit into the memory for them, if they can."""
        words = [segment.count(FILTER) for segment in self._segments]
        size, step = list(words), [0] * len(words)
        while 8 * sum(size) > self._budget:
            largest = max(range(len(size)), key=size.__getitem__)
            step[largest] += 1
            if step[largest] == len(_JOINED):
                return [WORDS_MULTIPLE] * len(words)
            size[largest] = words[largest] // _JOINED[step[largest]]
        return [_JOINED[each] for each in step]

    def maybe(self, head: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each segment (rows) and digest (columns) whether the chunk may be there."""
        if self._word is None:
            return np.ones((len(self._segments), len(head)), np.bool_)
        at = ((head >> _U32) * self._words) >> _U32
        at += self._base
        bits = filter_bits(head)
        # An empty segment has no words, and `at` is then that of another one or behind the last.
        word = self._word.take(at.astype(np.int64), mode="clip") if len(self._word) else np.zeros_like(at)
        maybe: NDArray[np.bool_] = ((word & bits) == bits) & (self._words > 0)
        return maybe
