"""What was acknowledged since the last flush, by place and digest.

An acknowledged write is on its way through the host to the disk. When the connection is lost before a flush, it
may or may not have arrived, and its buffer holds something else by then. So the digests are kept until the next
flush, and whoever lost a connection reads these places again and compares.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.units import GiB

# A lost connection costs reading this much again, at most. A flush costs one round trip.
FLUSH_AFTER = 1 * GiB
MOST_ENTRIES = 16384  # of requests far smaller than the usual 1 MiB


class Acknowledged(NamedTuple):
    """One request that was written. `connection` counts the connections of the disk: which of them wrote it."""

    offset: int
    length: int
    digest: int
    connection: int


class Ledger:
    """The acknowledged requests, ascending and without overlaps."""

    def __init__(self) -> None:
        self._entries: list[Acknowledged] = []
        self.total = 0
        self.blurred: int | None = None  # the connection of the first entry that was written over in part

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        """Whether it is time for a flush."""
        return self.total >= FLUSH_AFTER or len(self._entries) >= MOST_ENTRIES

    def add(self, entry: Acknowledged) -> None:
        self.supersede(entry.offset, entry.length)
        insort(self._entries, entry)
        self.total += entry.length

    def supersede(self, offset: int, length: int) -> None:
        """Forget what lies in this range: it is about to be written over."""
        first = bisect_right(self._entries, offset, key=_end)
        last = bisect_left(self._entries, offset + length, key=_start)
        for entry in self._entries[first:last]:
            if entry.offset < offset or _end(entry) > offset + length:
                self.blurred = entry.connection if self.blurred is None else self.blurred
            self.total -= entry.length
        del self._entries[first:last]

    def all(self) -> Sequence[Acknowledged]:
        return tuple(self._entries)

    def flushed(self, entries: Sequence[Acknowledged]) -> None:
        """Forget these, which `all` gave before a flush that succeeded."""
        gone = set(entries)
        self._entries = [entry for entry in self._entries if entry not in gone]
        self.total = sum(entry.length for entry in self._entries)
        self.blurred = None

    def holds(self, entry: Acknowledged) -> bool:
        """Whether nothing was written over it since."""
        place = bisect_left(self._entries, entry.offset, key=_start)
        return self._entries[place : place + 1] == [entry]

    def of_others(self, connection: int) -> Sequence[Acknowledged]:
        """What other connections than this one wrote."""
        return [entry for entry in self._entries if entry.connection != connection]

    def proven(self, entries: Sequence[Acknowledged], connection: int) -> None:
        """Count these as written by this connection: they were read through it and are there."""
        found = set(entries)
        self._entries = [
            entry._replace(connection=connection) if entry in found else entry for entry in self._entries
        ]


def _start(entry: Acknowledged) -> int:
    return entry.offset


def _end(entry: Acknowledged) -> int:
    return entry.offset + entry.length
