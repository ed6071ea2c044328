"""Reading everything back: every byte of every published file is proved, and every point's map is followed.

Packs come first: each frame is read, decoded and its chunks are proved, once however many points use it. Then
the maps: they say which points, disks and bytes a damaged frame hits. Nothing stops at the first damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import trio

from pipeline import (
    CLUSTER,
    IntegrityError,
    MoverError,
    format_size,
)
from vadpipe.words import counted

from .config import Config
from .disk_map import PAGE, PageMap
from .files import Damage, Layout, run_of
from .frames import decode
from .index import Index
from .packs import (
    FrameAddress,
    addresses,
    read_frame,
    read_table,
)
from .reader import RepositoryReader
from .restore_point import RestorePoint, StoredDisk
from .segments import Rows, Segment

_Listing = tuple[Segment, Rows]  # some frames of a segment


@dataclass(frozen=True)
class Hit:
    """What cannot be restored: bytes of a disk or of a document of a point."""

    point: str
    what: str
    offset: int
    length: int


@dataclass(frozen=True)
class Finding:
    """Damage at a byte position of a file, and what it hits."""

    file: str
    position: int
    problem: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class VerifyReport:
    """What was read: `bytes` of decoded frames. `damages` is empty when all is as it was written."""

    points: int
    packs: int
    frames: int
    bytes: int
    damages: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """For people."""
        size = format_size(self.bytes)
        counts = {"point": self.points, "pack": self.packs, "frame": self.frames}
        read = ", ".join([*(counted(count, noun) for noun, count in counts.items()), f"{size} read back"])
        if not self.damages:
            return [f"{read}: all sound."]
        lines = [f"{read}: {counted(len(self.damages), 'damaged place')}."]
        for found in self.damages:
            lines.append(f"{found.file}, byte {found.position}: {found.problem}")
            lines += [
                f"  hits {hit.what} of point {hit.point}, {hit.length} bytes at {hit.offset}"
                for hit in found.hits
            ]
        return lines


async def verify(reader: RepositoryReader, *, workers: int = 2) -> VerifyReport:
    """Read everything that `reader` knows of. Memory: a few frames per worker; 32 bytes per map page."""
    work = _Verification(reader)
    await trio.to_thread.run_sync(work.check_index)
    packs = iter(await trio.to_thread.run_sync(work.packs))

    async def check_packs() -> None:
        for name, expected in packs:
            work.add(await trio.to_thread.run_sync(check_pack, reader.layout, reader.config, name, expected))

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(check_packs)
    await trio.to_thread.run_sync(work.check_rows)
    await trio.to_thread.run_sync(work.check_leftovers)
    for point in reader.points:
        await trio.to_thread.run_sync(work.check_point, point)
    return work.report()


@dataclass
class _PackReport:
    """What reading one pack gave; `damaged` are addresses of frames and what is wrong with them.

    `rows`: for each segment, how many of its chunk rows agree with the frames, and how many could not be compared.
    """

    path: Path
    frames: int = 0
    bytes: int = 0
    damaged: list[tuple[FrameAddress, str]] = field(default_factory=list)
    problem: str = ""
    rows: dict[Segment, tuple[int, int]] = field(default_factory=dict)

    def count(self, segment: Segment, right: int, unknown: int) -> None:
        before = self.rows.get(segment, (0, 0))
        self.rows[segment] = before[0] + right, before[1] + unknown


def check_pack(layout: Layout, config: Config, name: str, expected: Sequence[_Listing]) -> _PackReport:
    """Read every frame of a pack: those of its own table, and those that the index expects in it.

    Every frame is compared with the rows that the index has of its chunks.
    """
    report = _PackReport(layout.pack(name))
    frames: dict[int, FrameAddress] = {}
    listed: dict[int, list[tuple[Segment, int]]] = {}
    try:
        for segment, rows in expected:
            for row, address in zip(rows.tolist(), segment.addresses(rows), strict=True):
                listed.setdefault(address.offset, []).append((segment, row))
                if frames.setdefault(address.offset, address) != address:
                    report.problem = f"the index has two frames at byte {address.offset}"
        for address in addresses(read_table(report.path, config.id), name):
            if frames.setdefault(address.offset, address) != address:
                raise Damage(f"the pack and the index disagree on the frame at byte {address.offset}")
    except Damage as damage:
        report.problem = str(damage)
    for offset, address in sorted(frames.items()):
        try:
            frame = read_frame(layout, address, config.keys)
            report.bytes += len(decode(frame, config.keys))
            report.frames += 1
        except Damage as damage:
            report.damaged.append((address, str(damage)))
            for segment, row in listed.get(offset, ()):
                report.count(segment, 0, segment.chunks_of(row))
            continue
        place = np.cumsum(frame.chunk["length"], dtype=np.int64) - frame.chunk["length"]
        for segment, row in listed.get(offset, ()):
            found, at = segment.lookup(frame.chunk["digest"])
            report.count(segment, int(((found == row) & (at == place)).sum()), 0)
    return report


@dataclass
class _Wound:
    """A finding in the making."""

    file: str
    position: int
    problem: str
    hits: dict[Hit, None] = field(default_factory=dict)


class _Verification:
    """What is known so far. Its methods run on one worker thread at a time, but for `add`."""

    def __init__(self, reader: RepositoryReader) -> None:
        self._reader = reader
        self._frames = self._bytes = self._packs = 0
        self._wounds: dict[tuple[str, int, str], _Wound] = {}
        self._of_frame: dict[bytes, _Wound] = {}
        self._rows: dict[Segment, tuple[int, int]] = {}
        self._sound: set[bytes] = set()  # digests of pages that lead to sound frames only

    def check_index(self) -> None:
        """Every segment; a damaged one counts as missing from here on."""
        for error in self._reader.damaged:
            self._wound_of(error)
        held = len(self._reader.index.damaged)
        self._reader.index.drop_damaged()
        for error in self._reader.index.damaged[held:]:
            self._wound_of(error)

    def packs(self) -> list[tuple[str, list[_Listing]]]:
        """Every pack that the index names, with the frames that the index expects in it."""
        listings: dict[str, list[_Listing]] = {}
        for segment in self._reader.index.segments:
            for name, frames in segment.frames_by_pack().items():
                listings.setdefault(name, []).append((segment, frames))
        return sorted(listings.items())

    def add(self, report: _PackReport) -> None:
        self._packs += 1
        self._frames += report.frames
        self._bytes += report.bytes
        if report.problem:
            self._wound(str(report.path), 0, report.problem)
        for segment, (right, unknown) in report.rows.items():
            before = self._rows.get(segment, (0, 0))
            self._rows[segment] = before[0] + right, before[1] + unknown
        for address, problem in report.damaged:
            self._of_frame[address.id] = self._wound(str(report.path), address.offset, problem)

    def check_rows(self) -> None:
        """After all packs: every row of the index says what a frame holds."""
        for segment in self._reader.index.segments:
            right, unknown = self._rows.get(segment, (0, 0))
            wrong = segment.chunks - right - unknown
            if wrong > 0:
                problem = f"{wrong} of its rows name a frame or a place where their chunk is not stored"
                self._wound(str(segment.path), 0, problem)

    def check_leftovers(self) -> None:
        """Packs and temporary files that belong to no run. No sweep finds them, as it goes by lock files."""
        layout = self._reader.layout
        if self._reader.index.damaged:
            return  # a segment that cannot be read may name any pack
        packs = [*layout.packs.glob("??/*.pack")]
        # A run that ended since then has no lock any more, and its segments are in the index by now.
        unlocked = [path for path in (*packs, *layout.tmp.glob("*")) if not self._is_running(path)]
        index = Index(layout, self._reader.config.id)
        if index.damaged:
            return
        named = {name for segment in index.segments for name in segment.packs()}
        for path in unlocked:
            if path.exists() and not (path.parent != layout.tmp and path.stem in named):
                self._wound(
                    str(path), 0, "no run is writing it and no index segment names it; it may be removed"
                )

    def _is_running(self, path: Path) -> bool:
        run_id = run_of(path)
        return run_id is not None and self._reader.layout.lock(run_id).exists()

    def check_point(self, point: RestorePoint) -> None:
        """Follow the maps of a point's disks, read its documents, and look for the point that it was made from."""
        if point.previous is not None and all(other.id != point.previous for other in self._reader.points):
            file = str(self._reader.layout.point(point.machine.uuid, point.previous))
            problem = f"point {point.previous} is missing or damaged: point {point.id} was made from it"
            self._wound(file, 0, problem)
        for disk in point.disks:
            self._check_disk(point, disk)
        for name, document in point.documents.items():
            try:
                self._reader.read_document(point, name)
            except IntegrityError as error:
                self._hit(self._wound_of(error), point, f"document {name}", 0, document.length)

    def report(self) -> VerifyReport:
        damages = [
            Finding(wound.file, wound.position, wound.problem, tuple(wound.hits))
            for _, wound in sorted(self._wounds.items())
        ]
        points = len(self._reader.points)
        return VerifyReport(points, self._packs, self._frames, self._bytes, tuple(damages))

    def _check_disk(self, point: RestorePoint, disk: StoredDisk) -> None:
        try:
            digests = self._reader.page_digests(point, disk)
        except IntegrityError as error:
            self._hit(self._wound_of(error), point, disk.key, 0, disk.capacity)
            return
        for number in np.flatnonzero(digests.any(axis=1)).tolist():
            digest = digests[number].tobytes()
            if digest in self._sound:
                continue
            low = number * PAGE
            try:
                page = self._reader.page(point, disk, number, digest)
                if self._check_page(point, disk, low, page):
                    self._sound.add(digest)
            except IntegrityError as error:
                self._hit(self._wound_of(error), point, disk.key, low, min(PAGE, disk.capacity - low))

    def _check_page(self, point: RestorePoint, disk: StoredDisk, low: int, page: PageMap) -> bool:
        """Whether every row of a page leads to a sound frame."""
        wounds: dict[int, _Wound] = {}
        longest = np.zeros(len(page.frame_ids), dtype=np.int64)
        for number, address in enumerate(self._reader.addresses(page)):
            identity = page.frame_ids[number].tobytes()
            if address is None:
                problem = f"frame {identity.hex()[:16]} is in no segment of the index"
                wounds[number] = self._wound(str(self._reader.layout.index), 0, problem)
            elif identity in self._of_frame:
                wounds[number] = self._of_frame[identity]
            longest[number] = address.length if address else 0
        needed = np.minimum(page.count * CLUSTER, disk.capacity - low - page.offset * CLUSTER)
        beyond = page.place * CLUSTER + needed > longest[page.frame]
        hit = np.isin(page.frame, list(wounds)) | beyond
        for row in np.flatnonzero(hit).tolist():
            problem = f"the map of disk {disk.key} reads beyond a frame"
            file = str(self._reader.layout.point(point.machine.uuid, point.id))
            wound = wounds.get(int(page.frame[row])) or self._wound(file, 0, problem)
            self._hit(wound, point, disk.key, low + int(page.offset[row]) * CLUSTER, int(needed[row]))
        return not hit.any()

    def _wound(self, file: str, position: int, problem: str) -> _Wound:
        return self._wounds.setdefault((file, position, problem), _Wound(file, position, problem))

    def _wound_of(self, error: MoverError) -> _Wound:
        """The wound of a file that an error names. A frame that `add` found damaged has one already."""
        named = (error.facts[name] for name in ("pack", "segment", "point") if name in error.facts)
        file, position = str(next(named, self._reader.layout.index)), error.facts.get("position")
        for wound in self._of_frame.values():
            if (wound.file, wound.position) == (file, position):
                return wound
        return self._wound(file, position if isinstance(position, int) else 0, error.problem)

    def _hit(self, wound: _Wound, point: RestorePoint, what: str, offset: int, length: int) -> None:
        wound.hits[Hit(point.id, what, offset, length)] = None
