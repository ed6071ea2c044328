"""Disk maps: which clusters of a disk lie where in which frame. Kernel; the byte layout is in docs/repository.md.

A disk is cut into pages of 256 MiB. A page is a table of frame ids and of rows (first cluster in the page, number
of clusters, frame, first cluster in the frame); what no row covers is zero. Pages are named by their keyed
digest, so a new point shares every page that did not change, and a page that became equal again is found again:
for that the encoding is canonical. Frame ids ascend, rows ascend and are as long as they can be.

The list of page digests proves the pages, and the root proves list and capacity:
root -> page digests -> frame ids -> chunk digests -> bytes is one hash tree.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import (
    CLUSTER,
    DIGEST_SIZE,
    Digests,
    Extents,
    IntegrityError,
    MiB,
)

from .config import Keys
from .objects import Damage

# 65536 clusters: every column of a row fits in 16 bits. A random write of the guest costs a new page of some
# 10 KiB (1024 chunks in 256 frames); the page list of a disk of 1 TiB is 128 KiB. Smaller pages make the list,
# which every point stores anew, longer than the pages it replaces; larger ones make scattered writes dearer.
PAGE: Final = 256 * MiB
PAGE_CLUSTERS: Final = PAGE // CLUSTER
assert PAGE_CLUSTERS == 1 << 16

EMPTY_PAGE: Final = bytes(DIGEST_SIZE)

_HEADER: Final = struct.Struct("<4sIII")
_MAGIC: Final = b"VMAP"
_ROW: Final = np.dtype([("offset", "<u2"), ("count", "<u2"), ("frame", "<u2"), ("place", "<u2")])
_CAPACITY: Final = struct.Struct("<Q")

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PageMap:
    """The rows of one page, in clusters. `frame` are row numbers of `frame_ids`.

    Rows are ascending and do not overlap.
    """

    offset: Column
    count: Column
    frame: Column
    place: Column
    frame_ids: Digests

    @classmethod
    def empty(cls) -> PageMap:
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none, none, np.empty((0, DIGEST_SIZE), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def end(self) -> Column:
        return self.offset + self.count

    def within(self, first: Column, last: Column) -> PageMap:
        """The parts of the rows that lie in the ranges [first, last) of clusters; ranges ascend, disjoint."""
        edges = np.unique(np.concatenate((self.offset, self.end, first, last)))
        start, end = edges[:-1], edges[1:]
        row = np.searchsorted(self.offset, start, side="right") - 1
        part = np.searchsorted(first, start, side="right") - 1
        kept = (row >= 0) & (part >= 0)
        kept[kept] = (start[kept] < self.end[row[kept]]) & (start[kept] < last[part[kept]])
        start, end, row = start[kept], end[kept], row[kept]
        place = self.place[row] + start - self.offset[row]
        return PageMap(start, end - start, self.frame[row], place, self.frame_ids)

    def differing(self, other: PageMap) -> NDArray[np.bool_]:
        """For each cluster of the page, whether the two maps name other bytes; zeros are bytes, too."""
        _, number = _unique_rows(np.concatenate((self.frame_ids, other.frame_ids)))
        mine, theirs = (
            page._named(number[first : first + len(page.frame_ids)])
            for page, first in ((self, 0), (other, len(self.frame_ids)))
        )
        differs: NDArray[np.bool_] = mine != theirs
        return differs

    def _named(self, number: Column) -> Column:
        """What each cluster of the page holds: frames by these numbers, and the place in them; -1 for zeros."""
        named = np.full(PAGE_CLUSTERS, -1, dtype=np.int64)
        inside = np.arange(int(self.count.sum())) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        at = np.repeat(self.offset, self.count) + inside
        named[at] = (np.repeat(number[self.frame], self.count) << 16) | (
            np.repeat(self.place, self.count) + inside
        )
        return named

    def canonical(self) -> PageMap:
        """The same map in its one encoding."""
        order, rank = _sorted_rows(self.frame_ids)
        frame = rank[self.frame]
        first = np.ones(len(self), dtype=np.bool_)
        first[1:] = (
            (frame[1:] != frame[:-1])
            | (self.offset[1:] != self.end[:-1])
            | (self.place[1:] != (self.place + self.count)[:-1])
        )
        starts = np.flatnonzero(first)
        count = np.add.reduceat(self.count, starts) if len(self) else self.count
        used, frame = np.unique(frame[starts], return_inverse=True)
        return PageMap(self.offset[starts], count, frame, self.place[starts], self.frame_ids[order[used]])

    def encode(self) -> bytes:
        """The bytes of a canonical map."""
        rows = np.empty(len(self), dtype=_ROW)
        rows["offset"], rows["count"] = self.offset, self.count
        rows["frame"], rows["place"] = self.frame, self.place
        header = _HEADER.pack(_MAGIC, len(self.frame_ids), len(self), 0)
        return b"".join((header, np.ascontiguousarray(self.frame_ids).tobytes(), rows.tobytes()))

    @classmethod
    def parse(cls, content: bytes | memoryview) -> PageMap:
        """Raises Damage for what `encode` does not make."""
        page, _ = cls.parse_all([content])
        return page

    @classmethod
    def parse_all(cls, contents: Sequence[bytes | memoryview]) -> tuple[PageMap, Column]:
        """Several pages at once, and how many rows each has. Raises Damage where one of them is not what `encode`
        makes.

        Returns:
            The rows of all of them, page after page. `frame` are row numbers of all `frame_ids` together; a frame
            has one in each page that uses it. So it is a map only where it is one page.
        """
        ids: list[bytes | memoryview] = []
        tables: list[bytes | memoryview] = []
        for content in contents:
            if len(content) < _HEADER.size:
                raise Damage("the map page is cut off")
            magic, frames, rows, zero = _HEADER.unpack_from(content)
            end = _HEADER.size + frames * DIGEST_SIZE
            if magic != _MAGIC or zero or end + rows * _ROW.itemsize != len(content):
                raise Damage("the map page has no valid header")
            ids.append(content[_HEADER.size : end])
            tables.append(content[end:])
        one = len(contents) == 1
        identity = np.frombuffer(ids[0] if one else b"".join(ids), np.uint8).reshape(-1, DIGEST_SIZE)
        table = np.frombuffer(tables[0] if one else b"".join(tables), _ROW)
        offset, count, frame, place = (table[name].astype(np.int64) for name in _ROW.names or ())
        many = np.array([len(each) for each in tables]) // _ROW.itemsize
        known = np.array([len(each) for each in ids]) // DIGEST_SIZE
        end = offset + count
        begins = np.ones(len(table) + 1, np.bool_)  # where another page begins, and behind the last one
        begins[1:-1] = False
        begins[np.cumsum(many)] = True
        follows = (offset[1:] >= end[:-1]) | begins[1:-1]
        sound = (count > 0).all() and follows.all() and (frame < np.repeat(known, many)).all()
        if not sound or (end > PAGE_CLUSTERS).any():
            raise Damage("the map page has impossible rows")
        if not one:
            frame += np.repeat(np.cumsum(known) - known, many)
        return cls(offset, count, frame, place, identity), many


def parse_page(content: memoryview, purpose: str) -> PageMap:
    """A map page. Raises IntegrityError that begins with `purpose`."""
    try:
        return PageMap.parse(content)
    except Damage as damage:
        raise IntegrityError(
            f"{purpose}: {damage}.", remedy="What wrote this point is at fault; use another point."
        ) from damage


def joined(pages: Sequence[PageMap]) -> PageMap:
    """The rows of maps that do not overlap, as one canonical map."""
    ids = np.concatenate([page.frame_ids for page in pages])
    shift = np.cumsum([0, *(len(page.frame_ids) for page in pages[:-1])])
    frame = np.concatenate([page.frame + low for page, low in zip(pages, shift.tolist(), strict=True)])
    unique, inverse = _unique_rows(ids)
    offset = np.concatenate([page.offset for page in pages])
    order = np.argsort(offset, kind="stable")
    return PageMap(
        offset[order],
        np.concatenate([page.count for page in pages])[order],
        inverse[frame][order],
        np.concatenate([page.place for page in pages])[order],
        unique,
    ).canonical()


def page_count(capacity: int) -> int:
    return -(-capacity // PAGE)


def clusters(extents: Extents, page: int) -> tuple[Column, Column]:
    """First and one-past-last clusters of extents within a page; the tail of a disk counts as a whole one."""
    low = page * PAGE
    return (extents.start - low) // CLUSTER, -((low - extents.end) // CLUSTER)


def page_list(digests: Digests) -> bytes:
    """What the point stores of its pages."""
    return np.ascontiguousarray(digests).tobytes()


def root_of(capacity: int, listed: bytes | memoryview, keys: Keys) -> bytes:
    """The root of a disk, from its capacity and its page list."""
    return blake3(_CAPACITY.pack(capacity) + bytes(listed), key=keys.root).digest()


def _sorted_rows(ids: Digests) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The order that sorts rows of bytes, and the rank of each row."""
    words = np.ascontiguousarray(ids).view(">u8").astype(np.uint64).reshape(len(ids), DIGEST_SIZE // 8)
    order = np.lexsort(words.T[::-1])
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return order, rank


def _unique_rows(ids: Digests) -> tuple[Digests, NDArray[np.int64]]:
    """The distinct rows, ascending, and which of them each row is."""
    order, _ = _sorted_rows(ids)
    ordered = ids[order]
    first = np.ones(len(ids), dtype=np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    inverse = np.empty(len(ids), dtype=np.int64)
    inverse[order] = np.cumsum(first) - 1
    return ordered[first], inverse
