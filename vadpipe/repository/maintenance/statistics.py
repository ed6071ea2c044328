"""What points take in a repository: per point, per VM, and what only one of them holds.

Statistics follow the maps. A VM's points are visited oldest first, and from one point to the next only the pages
that came and went are read: their frames begin or cease to be in use. So a page of a VM is read at most twice,
however many points share it, and what is kept is a few numbers per frame in columns, not the frames of each point.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import CLUSTER, DIGEST_SIZE, NO_FRAME, ContractError, Digests, MiB
from vadpipe.kernels.digest_table import Rows

from ..format.disk_map import PageMap, page_count
from ..format.objects import INDEX, PACKS
from ..format.restore_point import RestorePoint, StoredDisk
from ..reader import RepositoryReader
from .frame_use import FrameUse, Totals, Use

# Frames of pages that are kept until the page goes: 4 bytes per frame, some 1 KiB per page.
_KEPT_PAGES: Final = 64 * MiB

_VOID = np.dtype(f"V{DIGEST_SIZE}")


@dataclass(frozen=True)
class PointStatistics:
    """Bytes of a point.

    Args:
        point: Its id.
        vm: Name of the VM.
        uuid: Its UUID.
        created: When.
        logical: Capacities of the disks.
        allocated: Clusters that hold data.
        unique: Decoded bytes of the distinct frames of disk data that it uses, whole frames.
        stored: Of all its distinct frames in the packs: data, map pages and documents.
        maps: Of these, map pages and page lists.
        documents: Of these, documents.
        only: What removing this point alone would free, once `prune` ran.
    """

    point: str
    vm: str
    uuid: str
    created: str
    logical: int
    allocated: int
    unique: int
    stored: int
    maps: int
    documents: int
    only: int


@dataclass(frozen=True)
class VmStatistics:
    """Bytes of all points of a VM together, as in PointStatistics; `logical` and `allocated` are sums of them."""

    vm: str
    uuid: str
    points: int
    logical: int
    allocated: int
    unique: int
    stored: int
    maps: int
    documents: int
    only: int


@dataclass(frozen=True)
class RepositoryStatistics:
    """Bytes of a whole repository.

    Args:
        points: Per point, by VM, oldest first.
        vms: Per VM, by name.
        logical: Sum over points; so is `allocated`.
        allocated: Clusters that hold data.
        unique: Decoded bytes of the distinct frames of disk data.
        stored: Of all distinct frames that a point uses.
        maps: Of these, map pages and page lists.
        documents: Of these, documents.
        packs: Sizes of all packs.
        index: Sizes of all index segments.
        missing: Frames that a map names and the index does not know; `vadpipe verify` says more.
    """

    points: tuple[PointStatistics, ...]
    vms: tuple[VmStatistics, ...]
    logical: int
    allocated: int
    unique: int
    stored: int
    maps: int
    documents: int
    packs: int
    index: int
    missing: int

    @property
    def unneeded(self) -> int:
        """Bytes of packs that no point uses; tables of packs (56 bytes per frame) count among them."""
        return max(0, self.packs - self.stored)

    @property
    def deduplication(self) -> float | None:
        """How many times the unique data is allocated in the points; None where there is none."""
        return self.allocated / self.unique if self.unique else None

    @property
    def compression(self) -> float | None:
        """How many times smaller data is stored than it is; None where there is none."""
        data = self.stored - self.maps - self.documents
        return self.unique / data if data else None

    def as_dict(self) -> dict[str, object]:
        """The fields and the ratios."""
        return {
            "logical": self.logical,
            "allocated": self.allocated,
            "unique": self.unique,
            "stored": self.stored,
            "maps": self.maps,
            "documents": self.documents,
            "packs": self.packs,
            "unneeded": self.unneeded,
            "index": self.index,
            "missing_frames": self.missing,
            "deduplication": self.deduplication,
            "compression": self.compression,
            "vms": self.vms,
            "points": self.points,
        }


def statistics(reader: RepositoryReader) -> RepositoryStatistics:
    """What the points of a repository take. For a worker thread.

    Memory: 80 to 160 bytes per distinct frame, 64 MiB of the frames of pages, and the page digests of two points.

    Raises:
        IntegrityError: A map cannot be read.
        SinkError
    """
    reading = _Reading(reader)
    by_vm: dict[str, list[RestorePoint]] = {}
    for point in reader.points:
        by_vm.setdefault(point.machine.uuid, []).append(point)
    order = sorted(by_vm.values(), key=lambda points: (points[-1].machine.name, points[-1].machine.uuid))
    rows: list[tuple[RestorePoint, int, Totals]] = []
    totals: list[Totals] = []
    for points in order:
        rows += [(point, *reading.visit(point)) for point in points]
        totals.append(reading.end_vm())
    only = reading.use.only_of_points()
    each = [_of_point(*row, only=only[place]) for place, row in enumerate(rows)]
    vms: list[VmStatistics] = []
    for points, total, freed in zip(order, totals, reading.use.only_of_vms(), strict=True):
        mine = each[(done := sum(vm.points for vm in vms)) : done + len(points)]
        vms.append(_of_vm(points[-1], mine, total, freed))
    every = reading.use.all()
    packs, index = _sizes(reader)
    return RepositoryStatistics(
        points=tuple(each),
        vms=tuple(vms),
        logical=sum(vm.logical for vm in vms),
        allocated=sum(vm.allocated for vm in vms),
        unique=every.unique,
        stored=every.stored,
        maps=every.maps,
        documents=every.documents,
        packs=packs,
        index=index,
        missing=reading.missing,
    )


def _of_point(point: RestorePoint, allocated: int, total: Totals, *, only: int) -> PointStatistics:
    return PointStatistics(
        point=point.id,
        vm=point.machine.name,
        uuid=point.machine.uuid,
        created=point.created,
        logical=sum(disk.capacity for disk in point.disks),
        allocated=allocated,
        unique=total.unique,
        stored=total.stored,
        maps=total.maps,
        documents=total.documents,
        only=only,
    )


def _of_vm(newest: RestorePoint, points: Sequence[PointStatistics], total: Totals, only: int) -> VmStatistics:
    return VmStatistics(
        vm=newest.machine.name,
        uuid=newest.machine.uuid,
        points=len(points),
        logical=sum(point.logical for point in points),
        allocated=sum(point.allocated for point in points),
        unique=total.unique,
        stored=total.stored,
        maps=total.maps,
        documents=total.documents,
        only=only,
    )


def _sizes(reader: RepositoryReader) -> tuple[int, int]:
    """Bytes of all packs, and of all index segments."""
    backend = reader.objects.backend
    packs = sum(stored.size for stored in backend.list(PACKS) if stored.name.endswith(".pack"))
    return packs, sum(stored.size for stored in backend.list(INDEX) if stored.name.endswith(".idx"))


class _Reading:
    """Visits points: finds which pages came and went, and tells FrameUse their frames."""

    def __init__(self, reader: RepositoryReader) -> None:
        self.use = FrameUse()
        self._missing: set[bytes] = set()
        self._reader = reader
        self._kept: OrderedDict[bytes, tuple[NDArray[np.int32], int]] = OrderedDict()
        self._kept_bytes = 0
        self._before = _Pages.none()
        self._objects: dict[bytes, Use] = {}
        self._allocated = 0

    @property
    def missing(self) -> int:
        """Frames that the index does not know; they count as empty."""
        return len(self._missing)

    def visit(self, point: RestorePoint) -> tuple[int, Totals]:
        """Allocated bytes of the point, and what it uses. Raises IntegrityError."""
        now, before = _Pages.of(self._reader, point), self._before
        objects = _objects_of(point)
        for digest in objects.keys() - self._objects.keys():
            self.use.begin(self._object(digest, objects[digest]))
        gone: list[Rows | NDArray[np.int32]] = []
        for digest, step, came, ceased in _changes(before, now):
            source = before if ceased else now
            frames, allocated = self._page(source, digest)
            self._allocated += step * allocated
            if came:
                self.use.begin(frames)
            if ceased:
                gone.append(frames)
                self._forget(digest)
        went = self._objects.keys() - objects.keys()
        gone += [self._object(digest, self._objects[digest]) for digest in went]
        for ended in gone:
            self.use.cease(ended)
        self._before, self._objects = now, objects
        return self._allocated, self.use.end_point()

    def end_vm(self) -> Totals:
        self._before, self._objects, self._allocated = _Pages.none(), {}, 0
        return self.use.end_vm()

    def _page(self, pages: _Pages, digest: bytes) -> tuple[NDArray[np.int32], int]:
        """The frames that a page needs, its own among them, and its allocated bytes."""
        if digest in self._kept:
            return self._kept[digest]
        point, disk, number = pages.place_of(digest)
        page = self._reader.page(point, disk, number, digest)
        frames = np.concatenate((self._rows(page), self._object(digest, Use.MAP)))
        kept = self._kept[digest] = frames.astype(np.int32), int(page.count.sum()) * CLUSTER
        self._kept_bytes += kept[0].nbytes
        while self._kept_bytes > _KEPT_PAGES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1][0].nbytes
        return kept

    def _forget(self, digest: bytes) -> None:
        """A page that went; another VM reads it again."""
        if digest in self._kept:
            self._kept_bytes -= self._kept.pop(digest)[0].nbytes

    def _rows(self, page: PageMap) -> Rows:
        """The rows of the frames of disk data that a page names."""
        rows = self.use.find(page.frame_ids)
        new = page.frame_ids[rows < 0]
        if len(new):
            length, size = np.zeros(len(new), np.int64), np.zeros(len(new), np.int64)
            number = self._reader.index.find_frames(new)
            found = np.flatnonzero(number != NO_FRAME)
            for at, address in zip(found.tolist(), self._reader.index.addresses(number[found]), strict=True):
                length[at], size[at] = address.length, address.size
            self._missing.update(map(bytes, new[number == NO_FRAME]))
            self.use.add(new, Use.DATA, length, size)
            rows = self.use.find(page.frame_ids)
        return rows

    def _object(self, digest: bytes, use: Use) -> Rows:
        """The row of the frame of a page, a page list or a piece of a document."""
        number, _ = self._reader.index.lookup(_one_row(digest))
        if number[0] == NO_FRAME:
            self._missing.add(digest)
            return np.empty(0, dtype=np.int64)
        (address,) = self._reader.index.addresses(number)
        row = self.use.find(_one_row(address.id))
        if row[0] < 0:
            self.use.add(_one_row(address.id), use, np.array([address.length]), np.array([address.size]))
            row = self.use.find(_one_row(address.id))
        return row


@dataclass(frozen=True, eq=False)
class _Pages:
    """The pages of a point that are not empty: distinct digests, ascending, and how many times each is there.

    `first` is one place of each, counted over the pages of all disks.
    """

    point: RestorePoint | None
    digest: NDArray[np.void]
    count: Rows
    first: Rows

    @classmethod
    def none(cls) -> _Pages:
        none = np.empty(0, dtype=np.int64)
        return cls(None, np.empty(0, _VOID), none, none)

    @classmethod
    def of(cls, reader: RepositoryReader, point: RestorePoint) -> _Pages:
        """Raises IntegrityError."""
        found = [reader.page_digests(point, disk) for disk in point.disks]
        all_pages = np.concatenate([np.empty((0, DIGEST_SIZE), np.uint8), *found])
        used = np.flatnonzero(all_pages.any(axis=1))
        listed = np.ascontiguousarray(all_pages[used]).view(_VOID).ravel()
        digest, first, count = np.unique(listed, return_index=True, return_counts=True)
        return cls(point, digest, count, used[first])

    def place_of(self, digest: bytes) -> tuple[RestorePoint, StoredDisk, int]:
        """The point, a disk and a page of it that has this digest."""
        assert self.point is not None
        place = int(self.first[np.searchsorted(self.digest, np.frombuffer(digest, _VOID))[0]])
        for disk in self.point.disks:
            if place < page_count(disk.capacity):
                return self.point, disk, place
            place -= page_count(disk.capacity)
        raise ContractError(f"Point {self.point.id} has no page {digest.hex()}.")


def _changes(before: _Pages, now: _Pages) -> Iterator[tuple[bytes, int, bool, bool]]:
    """Pages that are there more or less often than before: digest, step, whether it came, whether it went."""
    digest, at = np.unique(np.concatenate((before.digest, now.digest)), return_inverse=True)
    was, is_ = np.zeros(len(digest), np.int64), np.zeros(len(digest), np.int64)
    was[at[: len(before.digest)]] = before.count
    is_[at[len(before.digest) :]] = now.count
    for row in np.flatnonzero(was != is_).tolist():
        yield digest[row].tobytes(), int(is_[row] - was[row]), not was[row], not is_[row]


def _objects_of(point: RestorePoint) -> dict[bytes, Use]:
    """Page lists and pieces of documents of a point, by digest."""
    lists = {bytes.fromhex(disk.pages): Use.MAP for disk in point.disks}
    parts = [part for document in point.documents.values() for part in document.parts]
    return {**lists, **{bytes.fromhex(part): Use.DOCUMENT for part in parts}}


def _one_row(digest: bytes) -> Digests:
    return np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE)
