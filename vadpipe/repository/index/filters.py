"""The filters of index segments in memory: which chunks are unknown for certain, whatever the number of segments.

All filters lie in one array and are asked together. Where they are larger than the memory for them, as many
words of a filter are joined into one as it takes; then more unknown chunks seem known, and cost a search each.
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

# With it, a run has at most 192 MiB against an index of 200 million chunks (bench/index.py).
BUDGET: Final = 64 * MiB

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
        self._joined = np.uint64(1)

    @property
    def loaded(self) -> int:
        """Bytes in memory."""
        return 0 if self._word is None else self._word.nbytes

    def load(self) -> None:
        """Read the filters, unless they are there. Raises IntegrityError, SinkError."""
        if self._word is not None:
            return
        total = int(self._words.sum())
        joined = next((many for many in _JOINED if 8 * total // many <= self._budget), WORDS_MULTIPLE)
        word = np.zeros(total // joined, np.uint64)
        base = 0
        for number, segment in enumerate(self._segments):
            self._base[number] = base
            for low in range(0, segment.count(FILTER), _PIECE):
                piece = segment.column(FILTER, low, low + _PIECE).astype(np.uint64, copy=False)
                if joined > 1:
                    piece = np.bitwise_or.reduce(piece.reshape(-1, joined), axis=1)
                word[base : base + len(piece)] = piece
                base += len(piece)
        self._word, self._joined = word, np.uint64(joined)
        log.debug(
            "loaded filters of %d segments: %d bytes, %d words in one", len(self._words), word.nbytes, joined
        )

    def maybe(self, head: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each segment (rows) and digest (columns) whether the chunk may be there."""
        if self._word is None:
            return np.ones((len(self._segments), len(head)), np.bool_)
        at = ((head >> _U32) * self._words) >> _U32
        if self._joined > 1:
            at //= self._joined
        at += self._base
        bits = filter_bits(head)
        # An empty segment has no words, and `at` is then that of another one or behind the last.
        word = self._word.take(at.astype(np.int64), mode="clip") if len(self._word) else np.zeros_like(at)
        maybe: NDArray[np.bool_] = ((word & bits) == bits) & (self._words > 0)
        return maybe
