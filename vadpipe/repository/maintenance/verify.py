"""Reading everything back: every byte of every published file is proved, and every point's map is followed.

Packs come first: each frame is read, decoded and its chunks are proved, once however many points use it. Then
the maps: they say which points, disks and bytes a damaged frame hits. Nothing stops at the first damage.

A verification may be limited to the frames that some points need, and to a budget of packs drawn at random. The
index, the maps and the documents are read in any case.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from struct import Struct

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline import (
    CLUSTER,
    DIGEST_SIZE,
    ConfigError,
    Digests,
    IntegrityError,
    KiB,
    MiB,
    MoverError,
    format_size,
)
from pipeline.units import UNITS
from vadpipe.words import counted

from ..format.disk_map import EMPTY_PAGE, PAGE, PageMap
from ..format.objects import INDEX, PACKS, Damage, Missing, point_name, run_of, stem
from ..format.packs import FRAME_ROW, FrameAddress
from ..format.restore_point import RestorePoint, StoredDisk, name_of
from ..index.cells import Rows
from ..index.lookup import AnySegment, Index
from ..index.segments import heads, same
from ..reader import RepositoryReader
from ..removal import read_removed, readable_removed
from ..runs import unended_runs
from .forgetting import forgotten
from .reading_packs import TRIP_S, PackReport, PackToRead, check_packs, in_batches

_Listing = tuple[AnySegment, Rows]  # some frames of a segment
_Page = tuple[bytes, memoryview]  # digest and content of a map page or a page list
_Digest = bytes


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
class Budget:
    """How much of the packs to read: a share of their bytes, or bytes. The seed decides which packs."""

    text: str
    seed: int

    def __post_init__(self) -> None:
        self.of(0)

    def of(self, total: int) -> int:
        """The bytes to read. Raises ConfigError for what is no budget."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%|B|KiB|MiB|GiB|TiB)", self.text)
        amount = float(found[1]) if found else 0
        if found is None or not amount or (found[2] == "%" and amount > 100):
            raise ConfigError(
                f"{self.text!r} is no budget.", remedy="Write a share like 10%, or a size like 5GiB."
            )
        return int(amount * (total / 100 if found[2] == "%" else UNITS[found[2]]))


@dataclass(frozen=True)
class VerifyReport:
    """What was read: `bytes` of decoded frames. `damages` is empty when all of that is as it was written.

    `unread_packs` and `unread_bytes` were left out by the budget. Its packs were drawn with `seed`; or they were
    taken in the order of their ids, up to `reached`, and `covered` is the share of all stored bytes up to there.
    """

    points: int
    packs: int
    frames: int
    bytes: int
    damages: tuple[Finding, ...]
    unread_packs: int = 0
    unread_bytes: int = 0
    seed: int | None = None
    reached: str = ""
    covered: float = 1.0

    def summary(self) -> str:
        """One line for people."""
        words = (
            counted(self.points, "point"),
            counted(self.packs, "pack"),
            counted(self.frames, "frame"),
            f"{format_size(self.bytes)} read back",
        )
        found = counted(len(self.damages), "damaged place") if self.damages else "all sound"
        drawn = "" if self.seed is None else f" (seed {self.seed})"
        left = f"{counted(self.unread_packs, 'pack')} with {format_size(self.unread_bytes)}"
        unread = f" Not read: {left}{drawn}." if self.unread_packs else ""
        if self.reached:
            unread += f" Covered so far: {self.covered:.1%} of the stored bytes."
        return f"{', '.join(words)}: {found}.{unread}"

    def lines(self) -> list[str]:
        """The summary, and every damaged place with all that it hits."""
        lines = [self.summary()]
        for found in self.damages:
            lines.append(f"{found.file}, byte {found.position}: {found.problem}")
            lines += [
                f"  hits {hit.what} of point {hit.point}, {hit.length} bytes at {hit.offset}"
                for hit in found.hits
            ]
        return lines


async def verify(
    reader: RepositoryReader,
    *,
    points: Sequence[RestorePoint] | None = None,
    budget: Budget | None = None,
    after: str | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read back what `reader` knows of. Memory: a few frames per worker; 32 bytes per map page; up to 12 MiB for
    the lengths of frames.

    Args:
        points: only the frames that these points need; None: everything.
        budget: how much of the packs to read; None: all.
        after: read packs in the order of their ids, from the first one after this id, up to the budget;
            None: packs are drawn by the budget's seed.
        progress: is told the stored bytes that were read so far, and all that will be read.
    """
    work = _Verification(reader)
    await trio.to_thread.run_sync(work.check_index)
    chosen = await trio.to_thread.run_sync(work.choose, points, budget, after)
    total, done = sum(pack.size for pack in chosen), 0
    batches = iter(in_batches(chosen))

    async def check() -> None:
        nonlocal done
        while reports := await trio.to_thread.run_sync(check_packs, reader.objects, reader.config, batches):
            for packs, report in reports:
                work.add(report)
                done += sum(pack.size for pack in packs)
            if progress is not None:
                progress(done, total)

    if progress is not None:
        progress(0, total)
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(check)
    await trio.to_thread.run_sync(work.look_again)
    if points is None:
        await trio.to_thread.run_sync(work.check_rows)
        await trio.to_thread.run_sync(work.check_leftovers)
        await trio.to_thread.run_sync(work.check_chains)
    left = iter(reader.points if points is None else points)
    while await trio.to_thread.run_sync(work.check_some, left):
        pass
    return work.report(budget)


_LOOKS = 3  # at the index, while others merge its segments

_PAGES_TOGETHER = MiB

_LISTED = Struct(f"{DIGEST_SIZE}s")

_FRAMES_IN_TABLE = 256 * KiB  # 256 GiB that were stored in order


@dataclass
class _Wound:
    """A finding in the making."""

    file: str
    position: int
    problem: str
    hits: dict[Hit, None] = field(default_factory=dict)


class _Lengths:
    """How long frames are, decoded: of all segments in one table, where the frames are few.

    A search in the index looks into one segment after the other, and takes 0.4 ms with a dozen of them. 48 bytes
    for a frame.
    """

    def __init__(self, segments: Sequence[AnySegment]) -> None:
        few = sum(segment.frames for segment in segments) <= _FRAMES_IN_TABLE
        rows = [segment.column(segment.frame_section, 0, segment.frames) for segment in segments if few]
        row = np.concatenate(rows or [np.zeros(0, FRAME_ROW)])
        head = heads(row["id"])
        order = np.argsort(head)
        self._head = head[order]
        self._id, self._length = row["id"][order], row["length"][order].astype(np.int64)

    def of(self, identity: Digests) -> NDArray[np.int64] | None:
        """The lengths of some frames; None where the table does not have all of them."""
        if not len(self._head):
            return None
        at = np.minimum(np.searchsorted(self._head, heads(identity)), len(self._head) - 1)
        return self._length[at] if same(self._id[at], identity).all() else None


class _NewPages:
    """Map pages that are looked at together: digests, stored bytes, and how many bytes of a disk each is of."""

    def __init__(self) -> None:
        self.clear()

    def add(self, digest: bytes, content: memoryview, length: int) -> None:
        self.digests.add(digest)
        self.contents.append(content)
        self.lengths.append(length)
        self.size += len(content)

    def clear(self) -> None:
        self.digests: set[bytes] = set()
        self.contents: list[memoryview] = []
        self.lengths: list[int] = []
        self.size = 0


class _Verification:
    """What is known so far. Its methods run on one worker thread at a time, but for `add`."""

    def __init__(self, reader: RepositoryReader) -> None:
        self._reader = reader
        self._points = self._packs = self._frames = self._bytes = 0
        self._unread_packs = self._unread_bytes = 0
        self._wounds: dict[tuple[str, int, str], _Wound] = {}
        self._of_frame: dict[bytes, _Wound] = {}
        self._misplaced: dict[
            tuple[object, object], _Wound
        ] = {}  # by the pack and the place that a row names
        self._rows: dict[AnySegment, tuple[int, int]] = {}
        self._there: list[str] = []  # packs that lay there when verifying began
        self._segments: list[AnySegment] = []  # whose rows are compared
        self._gone: dict[bytes, FrameAddress] = {}  # frames of packs that were removed meanwhile
        self._lengths: _Lengths | None = None
        self._sound = {EMPTY_PAGE}  # digests of pages that lead to sound frames only
        self._documents: set[bytes] = set()  # digests of pieces that are sound
        self._reached, self._covered = "", 1.0

    def check_index(self) -> None:
        """Every segment; a damaged one counts as missing from here on."""
        for error in self._reader.damaged:
            self._wound_of(error)
        index = self._reader.index
        dropped: list[IntegrityError] = []
        for _ in range(_LOOKS):
            held = len(index.damaged)
            index.drop_damaged()
            dropped = index.damaged[held:]
            if not any(isinstance(error.__cause__, Missing) for error in dropped):
                break
            self._reader.refresh()  # segments were merged meanwhile
        for error in dropped:
            self._wound_of(error)

    def choose(
        self, points: Sequence[RestorePoint] | None, budget: Budget | None, after: str | None
    ) -> list[PackToRead]:
        """The packs to read, of those that the index names. The budget leaves no missing pack out."""
        packs: dict[str, PackToRead] = {}
        self._segments = self._reader.index.segments
        for segment in self._reader.index.segments:
            for name, frames in segment.frames_by_pack().items():
                packs.setdefault(name, PackToRead(name)).listed.append((segment, frames))
        if points is not None:
            self._need(points, packs)
            packs = {name: pack for name, pack in packs.items() if pack.needed}
        else:
            sizes = {found.name: found.size for found in self._reader.objects.backend.list(PACKS)}
            self._there = list(sizes)
            for pack in packs.values():
                pack.size = sizes.get(self._reader.objects.pack(pack.name), 0)
        chosen = [pack for _, pack in sorted(packs.items())]
        if budget is None:
            return chosen
        total = sum(pack.size for pack in chosen)
        if after is None:
            order = list(chosen)
            random.Random(budget.seed).shuffle(order)
        else:
            # A missing pack is told in every slice.
            order = [pack for pack in chosen if pack.name > after or not pack.size]
            for pack in chosen:
                if pack.name <= after and pack.size:
                    self._leave_out(pack)
        left, reached = budget.of(total), after or ""
        read: list[PackToRead] = []
        for pack in order:
            if left > 0 or not pack.size:
                read.append(pack)
                if left > 0:
                    reached = max(reached, pack.name)
                left -= pack.size
            else:
                self._leave_out(pack)
        if after is not None:
            self._reached = reached
            self._covered = sum(pack.size for pack in chosen if pack.name <= self._reached) / max(1, total)
        return read

    def _need(self, points: Sequence[RestorePoint], packs: Mapping[str, PackToRead]) -> None:
        """Note which frames the points need. What keeps a map from being read is found by `check_point`."""
        for point in points:
            for disk in point.disks:
                with suppress(IntegrityError):
                    for address in self._frames_of(point, disk):
                        pack = packs[address.pack]
                        pack.needed = pack.needed or set()
                        if address.offset not in pack.needed:
                            pack.needed.add(address.offset)
                            pack.size += address.size

    def _frames_of(self, point: RestorePoint, disk: StoredDisk) -> Iterator[FrameAddress]:
        digests = self._reader.page_digests(point, disk)
        for number in np.flatnonzero(digests.any(axis=1)).tolist():
            with suppress(IntegrityError):
                page = self._reader.page(point, disk, number, digests[number].tobytes())
                yield from filter(None, self._reader.addresses(page))

    def _leave_out(self, pack: PackToRead) -> None:
        self._unread_packs += 1
        self._unread_bytes += pack.size
        for segment, frames in pack.listed:
            self._count(segment, 0, segment.chunks_of(frames))

    def add(self, report: PackReport) -> None:
        self._packs += report.packs
        self._frames += report.frames
        self._bytes += report.bytes
        for segment, (right, unknown) in report.rows.items():
            self._count(segment, right, unknown)
        if report.missing and self._was_removed(report.pack):
            self._gone.update((address.id, address) for address, _ in report.damaged)
            return
        if report.problem:
            self._wound(report.path, 0, report.problem)
        for digest, content in report.pages:
            self._reader.remember(digest, content)
        self._documents.update(report.documents)
        for address, problem in report.damaged:
            self._of_frame[address.id] = self._wound(report.path, address.offset, problem)
        for segment, address in report.misplaced:
            problem = f"it has a frame where pack {report.pack} has another one, or none"
            wound = self._of_frame[address.id] = self._wound(segment.place, 0, problem)
            self._misplaced[report.path, address.offset] = wound

    def _was_removed(self, pack: str) -> bool:
        """Whether a pack that is gone was removed on purpose since the index was read."""
        objects, config = self._reader.objects, self._reader.config
        removed = read_removed(objects, config)
        if pack in removed.packs:
            return True
        with closing(Index(objects, config.id, config.sealing, removed)) as now:
            return not now.damaged and not any(pack in segment.packs() for segment in now.segments)

    def _count(self, segment: AnySegment, right: int, unknown: int) -> None:
        before = self._rows.get(segment, (0, 0))
        self._rows[segment] = before[0] + right, before[1] + unknown

    def look_again(self) -> None:
        """After all packs: where the frames of packs lie by now that were removed meanwhile."""
        if self._gone:
            self._reader.refresh()

    def check_rows(self) -> None:
        """After all packs: every row of the index says what a frame holds."""
        for segment in self._segments:
            right, unknown = self._rows.get(segment, (0, 0))
            wrong = segment.chunks - right - unknown
            if wrong > 0:
                problem = f"{wrong} of its rows name a frame or a place where their chunk is not stored"
                self._wound(segment.place, 0, problem)

    def check_leftovers(self) -> None:
        """Packs that belong to no run. Nobody looks for them, as dead runs are found by their objects."""
        objects, config = self._reader.objects, self._reader.config
        if self._reader.index.damaged:
            return  # a segment that cannot be read may name any pack
        # A run that ended since they were listed has no object any more, and its segments are in the index by now.
        running = set(unended_runs(objects))
        unknown = [name for name in self._there if run_of(name) not in running]
        removed, unread = readable_removed(objects, config)
        index = Index(objects, config.id, sealing=config.sealing, removed=removed)
        if index.damaged or unread:
            return
        named = {name for segment in index.segments for name in segment.packs()} | removed.packs
        for name in unknown:
            if stem(name) not in named and objects.exists(name):
                self._wound(
                    objects.place(name),
                    0,
                    "no run is writing it and no index segment names it; `vadpipe prune` removes it",
                )

    def check_chains(self) -> None:
        """The points that others were made from, but for those that were forgotten."""
        known = {point.id for point in self._reader.points}
        try:
            removed = forgotten(self._reader.objects, self._reader.config)
        except IntegrityError as error:
            self._wound_of(error)
            return
        for point in self._reader.points:
            directory = self._reader.config.directory(point.machine.uuid)
            if point.previous is None or point.previous in known:
                continue
            if (directory, point.previous) not in removed:
                file = self._reader.objects.place(point_name(directory, point.previous))
                problem = f"point {point.previous} is missing or damaged: point {point.id} was made from it"
                self._wound(file, 0, problem)

    def check_some(self, points: Iterator[RestorePoint]) -> bool:
        """Check the next points, for a short while. Returns whether some may be left.

        The new map pages of all of them are looked at together. Where not all is sound, each point is checked by
        itself, to say what is wrong with it.
        """
        until = time.monotonic() + TRIP_S
        some: list[RestorePoint] = []
        new, sound = _NewPages(), not (self._of_frame or self._gone)
        for point in points:
            some.append(point)
            sound = sound and self._is_sound(point, new)
            if not sound or time.monotonic() >= until:
                break
        if sound and self._fit(new):
            self._points += len(some)
            return time.monotonic() >= until
        for point in some:
            self.check_point(point)
        return bool(some)

    def _is_sound(self, point: RestorePoint, new: _NewPages) -> bool:
        """Follow the maps of a point's disks, and read its documents.

        Pages that are not known to be sound are added to `new`. False: `check_point` will tell.
        """
        try:
            for disk in point.disks:
                listed = self._reader.page_list(point, disk)
                for number, (digest,) in enumerate(_LISTED.iter_unpack(listed)):
                    if digest not in self._sound and digest not in new.digests:
                        content = self._reader.stored_page(point, disk, number, digest)
                        new.add(digest, content, min(PAGE, disk.capacity - number * PAGE))
                        if new.size > _PAGES_TOGETHER and not self._fit(new):
                            return False
        except IntegrityError:
            return False
        self._check_documents(point)
        return True

    def _fit(self, new: _NewPages) -> bool:
        """Whether all rows of some pages lead to sound frames; then the pages are sound, and `new` is empty."""
        if new.digests:
            try:
                page, many = PageMap.parse_all(new.contents)
                longest = self._sound_lengths(page)
            except (Damage, IntegrityError):
                return False
            left = np.repeat(np.array(new.lengths), many) - page.offset * CLUSTER
            needed = np.minimum(page.count * CLUSTER, left)
            if longest is None or (page.place * CLUSTER + needed > longest[page.frame]).any():
                return False
            self._sound.update(new.digests)
            new.clear()
        return True

    def check_point(self, point: RestorePoint) -> None:
        """Follow the maps of a point's disks, and read its documents."""
        self._points += 1
        for disk in point.disks:
            self._check_disk(point, disk)
        self._check_documents(point)

    def _check_documents(self, point: RestorePoint) -> None:
        for name, document in point.documents.items():
            if self._documents.issuperset(map(bytes.fromhex, document.parts)):
                continue
            try:
                self._reader.read_document(point, name)
            except IntegrityError as error:
                self._hit(self._wound_of(error), point, f"document {name}", 0, document.length)

    def report(self, budget: Budget | None) -> VerifyReport:
        damages = [
            Finding(wound.file, wound.position, wound.problem, tuple(wound.hits))
            for _, wound in sorted(self._wounds.items())
        ]
        return VerifyReport(
            points=self._points,
            packs=self._packs,
            frames=self._frames,
            bytes=self._bytes,
            damages=tuple(damages),
            unread_packs=self._unread_packs,
            unread_bytes=self._unread_bytes,
            seed=budget.seed if budget and not self._reached else None,
            reached=self._reached,
            covered=self._covered,
        )

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
        longest = None if self._of_frame or self._gone else self._sound_lengths(page)
        if longest is None:  # each frame by itself: some are damaged, or unknown
            longest = self._longest(page, wounds)
        needed = np.minimum(page.count * CLUSTER, disk.capacity - low - page.offset * CLUSTER)
        beyond = page.place * CLUSTER + needed > longest[page.frame]
        hit = np.isin(page.frame, list(wounds)) | beyond if wounds else beyond
        for row in np.flatnonzero(hit).tolist():
            problem = f"the map of disk {disk.key} reads beyond a frame"
            file = self._reader.objects.place(name_of(point, self._reader.config))
            wound = wounds.get(int(page.frame[row])) or self._wound(file, 0, problem)
            self._hit(wound, point, disk.key, low + int(page.offset[row]) * CLUSTER, int(needed[row]))
        return not hit.any()

    def _sound_lengths(self, page: PageMap) -> NDArray[np.int64] | None:
        """The lengths of a page's frames, all of which are sound; None where the index does not know all."""
        if self._lengths is None:
            try:
                self._lengths = _Lengths(self._segments)
            except IntegrityError:  # others merged a segment since, and deleted it
                self._lengths = _Lengths([])
        found = self._lengths.of(page.frame_ids)
        return self._reader.frame_lengths(page) if found is None else found

    def _longest(self, page: PageMap, wounds: dict[int, _Wound]) -> NDArray[np.int64]:
        """The lengths of a page's frames. Those that are damaged, or unknown, get their wounds."""
        longest = np.zeros(len(page.frame_ids), dtype=np.int64)
        for number, address in enumerate(self._reader.addresses(page)):
            identity = page.frame_ids[number].tobytes()
            if address is None:
                problem = f"frame {identity.hex()[:16]} is in no segment of the index"
                wounds[number] = self._wound(self._reader.objects.place(INDEX), 0, problem)
            elif identity in self._of_frame:
                wounds[number] = self._of_frame[identity]
            elif self._gone.get(identity) == address:
                file = self._reader.objects.place(self._reader.objects.pack(address.pack))
                wounds[number] = self._wound(file, 0, "it was removed, and this point needs it")
            longest[number] = address.length if address else 0
        return longest

    def _wound(self, file: str, position: int, problem: str) -> _Wound:
        return self._wounds.setdefault((file, position, problem), _Wound(file, position, problem))

    def _wound_of(self, error: MoverError) -> _Wound:
        """The wound of a file that an error names. A frame that `add` found damaged has one already."""
        named = (
            error.facts[name] for name in ("pack", "segment", "point", "file", "path") if name in error.facts
        )
        file, position = str(next(named, self._reader.objects.place(INDEX))), error.facts.get("position")
        if (file, position) in self._misplaced:
            return self._misplaced[file, position]
        for wound in self._of_frame.values():
            if (wound.file, wound.position) == (file, position):
                return wound
        return self._wound(file, position if isinstance(position, int) else 0, error.problem)

    def _hit(self, wound: _Wound, point: RestorePoint, what: str, offset: int, length: int) -> None:
        wound.hits[Hit(point.id, what, offset, length)] = None
