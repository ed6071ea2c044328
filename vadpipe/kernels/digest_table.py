"""A hash table of digests in numpy columns: insert and look up whole batches, no Python object per digest.

Open addressing with linear probing. A batch probes together: in each round every row that has not settled
looks at its next slot. Where several rows of a batch find the same free slot, all write their number into it, the
last one stays, and the others go on to the next slot. So the number of rounds is the longest probe, not the size
of the batch. Digests are uniformly distributed (they are keyed hashes), so their own first bytes are the hash.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.values import DIGEST_SIZE, Digests

Rows = NDArray[np.int64]


class DigestTable:
    """Up to `capacity` distinct digests, numbered from 0 in the order of their insertion. Nothing is removed.

    Memory: 32 bytes per digest and 8 to 16 per slot, touched as the table fills.
    """

    def __init__(self, capacity: int) -> None:
        # At most half full: a probe then looks at 1.5 slots on average, at 2.5 for what is not there.
        slots = 1 << (2 * capacity - 1).bit_length()
        self._slots = np.zeros(slots, dtype=np.int32)  # row number + 1; 0 is free
        self._mask = np.uint64(slots - 1)
        self._digest = np.empty((capacity, DIGEST_SIZE), dtype=np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        return len(self._digest)

    @property
    def digest(self) -> Digests:
        """All digests, by row."""
        return self._digest[: self._count]

    def lookup(self, digest: Digests) -> Rows:
        """The row of each digest, -1 where there is none."""
        result = np.full(len(digest), -1, dtype=np.int64)
        slot = self._home(digest)
        searching = np.arange(len(digest))
        while len(searching):
            row = self._slots[slot[searching]].astype(np.int64) - 1
            taken = row >= 0
            searching, row = searching[taken], row[taken]
            equal = (self._digest[row] == digest[searching]).all(axis=1)
            result[searching[equal]] = row[equal]
            searching = searching[~equal]
            slot[searching] = self._next(slot[searching])
        return result

    def insert(self, digest: Digests) -> Rows:
        """Add digests that are distinct and not there yet. Returns their rows.

        Raises ValueError when the table is full.
        """
        first, last = self._count, self._count + len(digest)
        if last > self.capacity:
            raise ValueError(
                f"The table holds {first} of {self.capacity} digests, {len(digest)} are too many."
            )
        self._digest[first:last] = digest
        self._count = last
        slot = self._home(digest)
        mark = np.arange(first + 1, last + 1, dtype=np.int32)
        waiting = np.arange(len(digest))
        while len(waiting):
            free = waiting[self._slots[slot[waiting]] == 0]
            self._slots[slot[free]] = mark[free]
            waiting = waiting[self._slots[slot[waiting]] != mark[waiting]]
            slot[waiting] = self._next(slot[waiting])
        return np.arange(first, last)

    def _home(self, digest: Digests) -> NDArray[np.int64]:
        head = np.ascontiguousarray(digest[:, :8]).view("<u8").ravel()
        return (head & self._mask).astype(np.int64)

    def _next(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slot + 1) & np.int64(self._mask)
