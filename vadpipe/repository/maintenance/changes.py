"""What changed between two points, by their maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline import CLUSTER, DIGEST_SIZE, Digests, Extents
from vadpipe.kernels.differences import ChunkTable
from vadpipe.kernels.digest_table import Rows
from vadpipe.kernels.zeros import run_borders

from ..format.disk_map import EMPTY_PAGE, PAGE, PAGE_CLUSTERS, PageMap, page_count
from ..format.restore_point import RestorePoint, StoredDisk
from ..reader import ContentPage, DiskContent, RepositoryReader

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)

ChunksOf: TypeAlias = Callable[[int], ChunkTable]


@dataclass(frozen=True)
class DiskChanges:
    """What of a disk differs between two points.

    Args:
        key: Key of the disk.
        label: Its label.
        before: Its capacity in the first point; None: it has no such disk.
        after: Its capacity in the second point, likewise.
        changed: Where they differ, in whole clusters, but for the tail of the larger disk.
        unknown: How many of these bytes may be equal nevertheless: both points hold data there, in chunks of
            several clusters whose digests differ.
    """

    key: str
    label: str
    before: int | None
    after: int | None
    changed: Extents
    unknown: int

    def as_dict(self) -> dict[str, object]:
        """For JSON; the ranges as pairs of offset and length."""
        return {
            "key": self.key,
            "label": self.label,
            "capacity_before": self.before,
            "capacity_after": self.after,
            "changed": self.changed.total,
            "unknown": self.unknown,
            "ranges": [[offset, length] for offset, length in self.changed],
        }


@dataclass(frozen=True)
class PointChanges:
    """What differs between two points, per disk; disks in the order of the second point, then those that went."""

    before: str
    after: str
    disks: tuple[DiskChanges, ...]

    @property
    def total(self) -> int:
        """Changed bytes of all disks."""
        return sum(disk.changed.total for disk in self.disks)


def diff(reader: RepositoryReader, before: RestorePoint, after: RestorePoint) -> PointChanges:
    """What changed from one point to another one, by their maps. No data is read. For a worker thread.

    Disks with one root are equal, and so are pages with one digest; they are not read. In other pages, clusters are
    equal where both maps name the same cluster of the same frame, or the same cluster of chunks with one digest.
    Everything else counts as changed. Two cases of it may be equal in truth: clusters of longer chunks of which
    only a part differs, or which begin elsewhere (`unknown` counts them); and zeros that a point stored as data.
    What lies behind the end of the smaller disk counts as zeros there, and so does a disk that a point lacks.

    Memory: the rows and the chunk tables of two pages of 256 MiB, and the changed ranges.

    Args:
        reader: The repository.
        before: A point.
        after: Another one, also of another VM: disks are compared by their keys.

    Raises:
        IntegrityError: A map or the chunk table of a frame cannot be read.
    """
    keys = dict.fromkeys([disk.key for disk in (*after.disks, *before.disks)])
    return PointChanges(
        before.id,
        after.id,
        tuple(_disk_changes(reader, before, after, before.disk(key), after.disk(key)) for key in keys),
    )


def _disk_changes(
    reader: RepositoryReader,
    before: RestorePoint,
    after: RestorePoint,
    old: StoredDisk | None,
    new: StoredDisk | None,
) -> DiskChanges:
    shown = new or old
    assert shown is not None
    capacity = max(disk.capacity for disk in (old, new) if disk)
    ranges: list[tuple[Rows, Rows]] = []
    unknown = 0
    if old is None or new is None or old.receipt.root != new.receipt.root:
        sides = _Side(reader, before, old), _Side(reader, after, new)
        for number in range(page_count(capacity)):
            if sides[0].digest(number) == sides[1].digest(number):
                continue
            one, other = (side.page(number) for side in sides)
            chunks = [partial(side.chunks, page) for side, page in zip(sides, (one, other), strict=True)]
            differs, doubtful = differing_clusters(one.rows, other.rows, *chunks)
            first, last = (number * PAGE + border * CLUSTER for border in run_borders(differs))
            ranges.append((first, np.minimum(last, capacity) - first))
            unknown += int(doubtful.sum()) * CLUSTER
    changed = Extents.from_columns(
        np.concatenate([_NO_ROWS, *(low for low, _ in ranges)]),
        np.concatenate([_NO_ROWS, *(length for _, length in ranges)]),
    )
    return DiskChanges(
        shown.key,
        shown.receipt.label,
        old.capacity if old else None,
        new.capacity if new else None,
        changed,
        min(unknown, changed.total),
    )


class _Side:
    """A disk of one of the points, page by page; without a disk all pages are empty. Raises IntegrityError."""

    def __init__(self, reader: RepositoryReader, point: RestorePoint, disk: StoredDisk | None) -> None:
        self._content = DiskContent(reader, point, disk) if disk else None
        self._digests = reader.page_digests(point, disk) if disk else np.empty((0, DIGEST_SIZE), np.uint8)

    def digest(self, number: int) -> bytes:
        return self._digests[number].tobytes() if number < len(self._digests) else EMPTY_PAGE

    def page(self, number: int) -> ContentPage:
        if self._content is None or self.digest(number) == EMPTY_PAGE:
            return ContentPage(number * PAGE, PageMap.empty(), ())
        return self._content.page(number * PAGE, self.digest(number))

    def chunks(self, page: ContentPage, frame: int) -> ChunkTable:
        """The chunks of a frame that the page names."""
        assert self._content is not None
        row = int(np.flatnonzero(page.rows.frame == frame)[0])
        offset, count = (int(column[row]) * CLUSTER for column in (page.rows.offset, page.rows.count))
        identity = page.rows.frame_ids[frame].tobytes()
        chunks = self._content.chunks(page.addresses[frame], page.offset + offset, count, identity)
        return ChunkTable.of(chunks["length"], chunks["digest"])


def differing_clusters(
    one: PageMap, other: PageMap, chunks_of_one: ChunksOf, chunks_of_other: ChunksOf
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which clusters differ between two map pages. Kernel.

    Args:
        one: A page.
        other: Another one.
        chunks_of_one: The chunks of a frame of the first page; asked only where both pages name different data.
        chunks_of_other: Likewise.

    Returns:
        For each cluster whether it counts as changed, and whether it may be equal nevertheless.
    """
    differs, doubtful = one.differing(other), np.zeros(PAGE_CLUSTERS, dtype=np.bool_)
    mine, theirs = _Clusters.of(one), _Clusters.of(other)
    open_ = np.flatnonzero(differs & (mine.frame >= 0) & (theirs.frame >= 0))
    if len(open_):
        digest, within, length = mine.chunks(open_, chunks_of_one)
        other_digest, other_within, other_length = theirs.chunks(open_, chunks_of_other)
        equal = (digest == other_digest).all(axis=1) & (within == other_within)
        differs[open_[equal]] = False
        doubtful[open_] = ~equal & ((length > CLUSTER) | (other_length > CLUSTER))
    return differs, doubtful


@dataclass(frozen=True, eq=False)
class _Clusters:
    """For each cluster of a page its frame (-1: zeros) and its place in it, in clusters."""

    frame: Rows
    place: Rows

    @classmethod
    def of(cls, page: PageMap) -> _Clusters:
        frame, place = np.full(PAGE_CLUSTERS, -1, np.int64), np.zeros(PAGE_CLUSTERS, np.int64)
        first = np.cumsum(page.count) - page.count
        step = np.arange(int(page.count.sum())) - np.repeat(first, page.count)
        cluster = np.repeat(page.offset, page.count) + step
        frame[cluster] = np.repeat(page.frame, page.count)
        place[cluster] = np.repeat(page.place, page.count) + step
        return cls(frame, place)

    def chunks(self, cluster: Rows, chunks_of: ChunksOf) -> tuple[Digests, Rows, Rows]:
        """For each of the clusters: digest of its chunk, place in the chunk, and length of the chunk, in bytes."""
        frame, place = self.frame[cluster], self.place[cluster] * CLUSTER
        digest = np.zeros((len(cluster), DIGEST_SIZE), np.uint8)
        within, length = np.zeros(len(cluster), np.int64), np.zeros(len(cluster), np.int64)
        for number in np.unique(frame).tolist():
            table, at = chunks_of(number), np.flatnonzero(frame == number)
            row = np.minimum(np.searchsorted(table.end, place[at], side="right"), len(table.end) - 1)
            digest[at] = table.digest[row]
            within[at] = place[at] - table.start[row]
            length[at] = table.end[row] - table.start[row]
        return digest, within, length
