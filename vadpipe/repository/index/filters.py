"""The filters of index segments in memory: which chunks are unknown for certain, whatever the number of segments.

All filters lie in one array and are asked together. Where they are larger than the memory for them, words of a
filter are joined into one, of the largest filter first; then more unknown chunks seem known, and cost a search
each. Small filters stay as they are: each segment adds the chunks that seem to be in it, however small it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
_PIECE: Final = 128 * KiB // WORDS_MULTIPLE * WORDS_MULTIPLE  # words read at a time: 1 MiB

_U32: Final = np.uint64(32)


class Filters:
    """The filters of some segments. Before `load` every chunk may be in every segment. Not thread-safe."""

    def __init__(self, segments: Sequence[Segment], budget: int = BUDGET) -> None:
        self._segments = segments
        self._budget = budget
        self._word: NDArray[np.uint64] | None = None
        self._words = np.array([segment.count(FILTER) for segment in segments], np.uint64)[:, None]
        self._base = np.zeros((len(segments), 1), np.uint64)

    @property
    def loaded(self) -> int:
        """Bytes in memory."""
        return 0 if self._word is None else self._word.nbytes

    def load(self) -> None:
        """Read the filters, unless they are there. Raises IntegrityError, SinkError."""
        if self._word is not None:
            return
        joined = _join([segment.count(FILTER) for segment in self._segments], self._budget // 8)
        words = [segment.count(FILTER) // many for segment, many in zip(self._segments, joined, strict=True)]
        word = np.zeros(sum(words), np.uint64)
        base = 0
        for number, (segment, many) in enumerate(zip(self._segments, joined, strict=True)):
            self._base[number] = base
            for low in range(0, segment.count(FILTER), _PIECE):
                piece = segment.column(FILTER, low, low + _PIECE)
                into = word[base : base + len(piece) // many]
                for each in range(many):  # several times faster than a reduction of short rows
                    into |= piece[each::many]
                base += len(into)
        # The word of a chunk is the same part of all words, joined or not.
        self._word, self._words = word, np.array(words, np.uint64)[:, None]
        log.debug(
            "loaded filters of %d segments: %d bytes, up to %d words in one",
            len(words),
            word.nbytes,
            max(joined, default=1),
        )

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


def _join(words: Sequence[int], most: int) -> list[int]:
    """How many words of each filter become one, so that all have at most so many words together, if they can."""
    step = [0] * len(words)
    size = list(words)
    while sum(size) > most:
        largest = max(range(len(size)), key=size.__getitem__)
        step[largest] += 1
        if step[largest] == len(_JOINED):
            return [WORDS_MULTIPLE] * len(words)
        size[largest] = words[largest] // _JOINED[step[largest]]
    return [_JOINED[each] for each in step]
