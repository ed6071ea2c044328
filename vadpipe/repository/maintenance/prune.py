"""Prune: the space of what no point needs comes back, in two phases (docs/repository.md, "Removal").

A removal first names what goes. A later prune deletes it, when every run knows of the removal. Which frames are
needed is read from the maps of all points, each map page once; it is kept as the first eight bytes of the frames'
ids, so that a false agreement only keeps a frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, Digests, IntegrityError, KiB
from pipeline.units import format_size
from vadpipe.words import counted

from ..format import frames
from ..format.config import Config, Origin
from ..format.objects import INDEX, PACKS, Damage, Missing, Objects, run_of, stem
from ..format.packs import (
    FrameAddress,
    PackWriter,
    addresses,
    read_frame,
    read_stored,
    read_table,
    sound_frames,
)
from ..format.restore_point import point_names, read_point
from ..index.lookup import Removed, RunIndex
from ..index.segments import Segment, heads
from ..reader import RepositoryReader
from ..removal import (
    Removal,
    drop,
    drop_waiting_lists,
    is_ready,
    list_waiting,
    live_segments,
    publish_removal,
    read_removals,
    read_removed,
    replace_segments,
)
from ..runs import Run, maintenance, unended_runs
from .needs import Heads, frames_needed

log = logging.getLogger(__name__)

# A pack of which less than this share is needed is written anew. Rewriting gives back at least as much as it reads.
REWRITE_BELOW = 0.5

_ROWS = 64 * KiB  # frame rows in memory at a time
_POINTS = 256  # points whose page lists are looked up together


@dataclass(frozen=True)
class PruneReport:
    """What a prune did, in bytes and objects.

    deleted: What earlier removals named. named: What this one named: it is deleted by a later prune. copied: What
    was needed of packs that were named. waiting: Ids of the runs that may not know of a removal. rescued: Packs of
    which frames were copied before they were deleted, as points need them that were made since.
    """

    deleted_packs: int
    deleted_bytes: int
    named_packs: int
    named_bytes: int
    copied_bytes: int
    rescued_packs: int
    waiting: tuple[str, ...]
    dry_run: bool = False

    def lines(self) -> list[str]:
        """For people."""
        would = "would be " if self.dry_run else ""
        lines = [
            f"{counted(self.deleted_packs, 'pack')} {would}deleted, {format_size(self.deleted_bytes)}.",
            f"{counted(self.named_packs, 'pack')} {would}named for removal, {format_size(self.named_bytes)}; "
            f"{format_size(self.copied_bytes)} of them {would}copied, as points need it.",
        ]
        if self.rescued_packs:
            lines.append(
                f"{counted(self.rescued_packs, 'pack')} held what points need that were made since; it was copied."
            )
        if self.waiting:
            lines.append(
                f"{counted(len(self.waiting), 'run')} may still use what was named: {', '.join(self.waiting[:3])}"
                f"{', ...' * (len(self.waiting) > 3)}."
            )
        if self.named_packs and not self.dry_run:
            lines.append("The next `vadpipe prune` deletes what was named, when these runs have ended.")
        return lines


def prune(
    objects: Objects,
    config: Config,
    origin: Origin,
    *,
    rewrite_below: float = REWRITE_BELOW,
    most_copied: int | None = None,
    dry_run: bool = False,
) -> PruneReport:
    """Delete what earlier removals named, and name what no point needs now. For a worker thread.

    Args:
        rewrite_below: A pack of which less than this share is needed is written anew; 0: none.
        most_copied: How many bytes may be copied out of such packs; None: all.
        dry_run: Nothing is changed.

    Raises:
        IntegrityError: A point or a map cannot be read: what it needs is not known, so nothing is removed.
        SinkError
    """
    if dry_run:
        return _Prune(objects, config, origin, None).plan_only(rewrite_below, most_copied)
    with maintenance(objects, config, origin) as run:
        return _Prune(objects, config, origin, run).do(rewrite_below, most_copied)


@dataclass
class _Plan:
    """What goes: `packs`, and `orphans` at once. `copies`: what is needed of some packs, as heads of ids."""

    sizes: Mapping[str, int]
    packs: list[str] = field(default_factory=list)
    copies: list[tuple[str, Heads]] = field(default_factory=list)
    copied: int = 0
    orphans: list[str] = field(default_factory=list)


class _Prune:
    def __init__(self, objects: Objects, config: Config, origin: Origin, run: Run | None) -> None:
        self._objects = objects
        self._config = config
        self._origin = origin
        self._run = run
        self._read: set[str] = set()  # names of the points whose needs are known
        self._known: set[bytes] = set()  # digests of their map pages, page lists and documents
        self._needs = _HeadSet.of([])
        self._deleted = [0, 0]
        self._rescued = 0
        self._packs = 0  # how many this run wrote

    def plan_only(self, rewrite_below: float, most_copied: int | None) -> PruneReport:
        ready, waiting = self._sort_removals()
        packs = [pack for removal in ready for pack in removal.packs]
        plan = self._plan(rewrite_below, most_copied)
        return self._report(plan, waiting, deleted=(len(packs), self._size_of(packs)), dry_run=True)

    def do(self, rewrite_below: float, most_copied: int | None) -> PruneReport:
        assert self._run is not None
        drop_waiting_lists(self._objects)
        ready, waiting = self._sort_removals()
        for removal in waiting:
            if removal.waiting is None:
                list_waiting(self._objects, self._config, removal.id, self._run)
        if ready:
            self._finish(ready)
            if ready := self._sort_removals()[0]:  # what nobody waits for goes at once
                self._finish(ready)
        plan = self._plan(rewrite_below, most_copied)
        self._name(plan)
        _, waiting = self._sort_removals()
        return self._report(plan, waiting, deleted=(self._deleted[0], self._deleted[1]))

    def _sort_removals(self) -> tuple[list[Removal], list[Removal]]:
        """Those that every run knows of, and the others."""
        ready: list[Removal] = []
        waiting: list[Removal] = []
        for removal in read_removals(self._objects, self._config):
            (ready if is_ready(self._objects, removal) else waiting).append(removal)
        return ready, waiting

    # Phase 2

    def _finish(self, ready: Sequence[Removal]) -> None:
        """Delete what removals name. What points need of it by now is copied first, so nothing comes back into
        use."""
        assert self._run is not None
        objects, config = self._objects, self._config
        going = frozenset[str]().union(*(removal.packs for removal in ready))
        there = [pack for pack in sorted(going) if objects.exists(objects.pack(pack))]
        copies: list[tuple[str, Heads]] = []
        missing = self._lacking(there) if there else _HeadSet.of([])
        for pack in there:
            wanted = self._wanted_of(pack, missing)
            if len(wanted):
                copies.append((pack, wanted))
                missing = missing - _HeadSet.of([wanted])
        live = self._live(read_removed(objects, config))
        naming = [segment.name for segment in live if not going.isdisjoint(segment.packs())]
        merging = {run_of(removal.id) for removal in ready if removal.segments}
        for segment in live:
            if run_of(segment.name) in merging:
                segment.prove()  # what it was merged from is deleted
        self._run.require_alive()
        if copies:
            log.info("points need frames of %d packs that are removed: they are copied", len(copies))
            self._copy(copies, or_gone=True)
        self._rescued += len(copies)
        if naming:
            replace_segments(objects, config, self._run, self._origin, naming, going)
        self._deleted[0] += len(there)
        self._deleted[1] += self._size_of(there)
        objects.backend.delete([objects.pack(pack) for pack in there])
        for removal in ready:
            objects.backend.delete([f"{INDEX}{segment}.idx" for segment in sorted(removal.segments)])
        named = self._named() if going else frozenset()
        for removal in ready:
            # A run that merges segments may carry rows of the packs on, as long as there is a segment that has
            # them.
            if named.isdisjoint(removal.packs):
                drop(objects, removal.id)

    def _named(self) -> frozenset[str]:
        """The packs that any segment names, also those that were replaced and are not deleted yet."""
        names: list[str] | None = None
        named: set[str] = set()
        while names != (names := [each.name for each in live_segments(self._objects, Removed())]):
            named = set()
            for name in names:
                try:
                    named.update(self._segment(name).packs())
                except IntegrityError as error:
                    if not isinstance(error.__cause__, Missing):
                        raise
        return frozenset(named)

    def _lacking(self, going: Sequence[str]) -> _HeadSet:
        """What points need, and no pack that stays has sound.

        Other copies of the frames in the packs that go are looked up, read and proved: one that is damaged,
        or that its segment does not find, is noticed while there is still what it was made from.
        """
        needed = self._needed()
        held = _HeadSet.of([self._heads_of(pack) for pack in going])
        removed = read_removed(self._objects, self._config)
        found: list[Heads] = []
        others: dict[FrameAddress, Segment] = {}
        for segment in self._live(removed):
            names = segment.packs()
            stays = np.array([pack not in removed.packs for pack in names], dtype=np.bool_)
            for rows in segment.frame_rows():
                staying = rows[stays[rows["pack"]]]
                head = heads(staying["id"])
                twice = held.holds(head) & needed.holds(head)
                found.append(head[~twice])
                again = staying[twice]
                for pack in np.unique(again["pack"]).tolist():
                    copies = addresses(again[again["pack"] == pack], names[pack])
                    others.update(dict.fromkeys(copies, segment))
        in_order = sorted(others, key=lambda address: (address.pack, address.offset))
        found += [heads(_row(copy.id)) for copy in in_order if self._is_sound(copy, others[copy])]
        return needed - _HeadSet.of(found)

    def _is_sound(self, address: FrameAddress, segment: Segment | None = None) -> bool:
        """Whether a frame can be read; and, where a segment is given, whether that finds it and all its chunks."""
        try:
            frame = read_frame(self._objects, self._config, address)
            frames.decode(frame, self._config.keys)
            if segment is not None:
                at = segment.find_frames(np.frombuffer(address.id, np.uint8)[None])
                holding, _ = segment.lookup(frame.chunk["digest"])
                if (at < 0).any() or (holding < 0).any():
                    raise Damage(f"the index segment {segment.place} does not find it")
        except (Damage, IntegrityError) as damage:
            log.warning("a frame of pack %s that points need is damaged: %s", address.pack, damage)
            return False
        return True

    def _heads_of(self, pack: str) -> Heads:
        """The frames of a pack."""
        try:
            return heads(read_table(self._objects, self._config.id, pack)["id"])
        except Missing:
            return np.zeros(0, np.uint64)
        except Damage:  # its frames may be sound all the same
            return _HeadSet.of(
                [heads(_row(address.id)) for address, _ in sound_frames(self._objects, pack)]
            ).head

    # Phase 1

    def _plan(self, rewrite_below: float, most_copied: int | None) -> _Plan:
        objects, config = self._objects, self._config
        removed = read_removed(objects, config)
        listed = {stem(found.name): found.size for found in objects.backend.list(PACKS)}
        running = set(unended_runs(objects))  # after the packs: the run of a new one is listed
        if self._run is not None:
            running.discard(self._run.id)
        segments = self._live(removed)  # after the runs: the segments of one that ended are listed
        places = _places(segments, removed)
        needed = self._needed().holds(places.head)
        live = np.bincount(places.pack[needed], places.size[needed], len(places.packs)).astype(np.int64)
        # A frame that lies in several packs is needed in one: in the fullest.
        kept = _in_fullest(places, needed, live)
        live = np.bincount(places.pack[kept], places.size[kept], len(places.packs)).astype(np.int64)
        whole = np.bincount(places.pack, places.size, len(places.packs)).astype(np.int64)
        plan = _Plan(sizes=listed)
        order = np.argsort(live / np.maximum(whole, 1), kind="stable")
        left = most_copied
        for number in order.tolist():
            name = places.packs[number]
            if run_of(f"{name}.pack") in running:
                continue
            if live[number] == 0:
                plan.packs.append(name)
            elif live[number] < rewrite_below * whole[number] and (left is None or left >= live[number]):
                left = None if left is None else left - int(live[number])
                plan.packs.append(name)
                plan.copies.append((name, places.head[kept & (places.pack == number)]))
                plan.copied += int(live[number])
        known = set(places.packs) | removed.packs
        plan.orphans = [
            name for name in listed if name not in known and run_of(f"{name}.pack") not in running
        ]
        return plan

    def _name(self, plan: _Plan) -> None:
        """Copy what is needed, and publish the removal."""
        assert self._run is not None
        objects, config = self._objects, self._config
        self._run.require_alive()
        objects.backend.delete([objects.pack(name) for name in plan.orphans])  # no index ever knew them
        self._deleted[0] += len(plan.orphans)
        self._deleted[1] += sum(plan.sizes[name] for name in plan.orphans)
        if not plan.packs:
            return
        if plan.copies:
            self._copy(plan.copies)
        publish_removal(objects, config, self._run, self._origin, packs=plan.packs)

    def _copy(self, copies: Sequence[tuple[str, Heads]], *, or_gone: bool = False) -> None:
        """Write frames into packs of this run, as they are stored.

        Args:
            or_gone: A pack that is gone was copied and deleted by another prune.
        """
        assert self._run is not None
        writer = PackWriter(self._objects, self._config, self._run.id, self._packs)
        index, pack = self._new_index(), ""
        try:
            for pack, wanted in copies:
                try:
                    for address, content in self._frames_of(pack, wanted):
                        frames.check(content)
                        chunk = frames.parse_chunks(content, address.id, self._config)
                        record = frames.Record(address.id, address.length, len(chunk), content, b"")
                        serial, (offset,) = writer.append([record])
                        _add(index, chunk, address, at=(serial, offset))
                except Missing:
                    if not or_gone:
                        raise
            writer.finish()
            self._packs = writer.serial
            self._publish(index)
        except Damage as damage:
            raise IntegrityError(
                f"A frame of pack {pack} that points need is damaged: {damage}.",
                remedy="Run `vadpipe verify`, then `vadpipe repair`.",
                pack=self._objects.place(self._objects.pack(pack)),
            ) from damage
        finally:
            writer.close()
            index.close()

    def _frames_of(self, pack: str, wanted: Heads) -> Iterator[tuple[FrameAddress, bytes]]:
        """Some frames of a pack as they are stored. Raises Damage."""
        try:
            table = read_table(self._objects, self._config.id, pack)
        except Missing:
            raise
        except Damage:  # its frames may be sound all the same
            for address, content in sound_frames(self._objects, pack):
                if heads(_row(address.id))[0] in wanted:
                    yield address, bytes(content)
            return
        for address in addresses(table[np.isin(heads(table["id"]), wanted)], pack):
            yield address, read_stored(self._objects, address)

    # What both phases use

    def _needed(self) -> _HeadSet:
        """The frames that the points need, and those that were removed since this prune began to ask.

        Each point is read once in a prune, and a map page once for all of them. Raises IntegrityError where it
        cannot be told what is needed.
        """
        names = [name for name in point_names(self._objects) if name not in self._read]
        try:
            read = [read_point(self._objects, self._config, name) for name in names]
            # After the points: what a point names was published before it.
            reader = RepositoryReader(
                self._objects, self._config, [point for point in read if point is not None]
            )
            for error in reader.damaged:
                raise error
        except IntegrityError as error:
            raise IntegrityError(
                f"{error.problem}; nothing is removed, as it is not known what that point or index needs.",
                remedy=error.remedy,
                **error.facts,
            ) from error
        try:
            for low in range(0, len(reader.points), _POINTS):
                needed = frames_needed(reader, reader.points[low : low + _POINTS], self._known)
                self._needs = _HeadSet.of([self._needs.head, needed])
        finally:
            reader.index.close()
        self._read.update(names)
        return self._needs

    def _new_index(self) -> RunIndex:
        assert self._run is not None
        return RunIndex(
            self._objects,
            self._config.id,
            self._run.id,
            self._config.keys,
            sealing=self._config.sealing,
            removed=read_removed(self._objects, self._config),
        )

    def _publish(self, index: RunIndex) -> None:
        assert self._run is not None
        for draft in index.last():
            index.replace(draft, index.write(draft))
        self._run.segments += len(index.publish(self._run.segments))

    def _live(self, removed: Removed) -> list[Segment]:
        return [self._segment(found.name) for found in live_segments(self._objects, removed)]

    def _segment(self, name: str) -> Segment:
        return Segment(self._objects, name, self._config.id, self._config.sealing)

    def _wanted_of(self, pack: str, missing: _HeadSet) -> Heads:
        """Those of the frames in `missing` that a pack holds, sound."""
        try:
            table = read_table(self._objects, self._config.id, pack)
        except Damage:  # its frames may be sound all the same
            held = self._heads_of(pack)
            return held[missing.holds(held)]
        wanted = missing.holds(heads(table["id"]))
        return _HeadSet.of(
            [heads(_row(address.id)) for address in addresses(table[wanted], pack) if self._is_sound(address)]
        ).head

    def _size_of(self, packs: Iterable[str]) -> int:
        total = 0
        for pack in packs:
            try:
                total += self._objects.size(self._objects.pack(pack))
            except Damage:
                continue
        return total

    def _report(
        self, plan: _Plan, waiting: Sequence[Removal], *, deleted: tuple[int, int], dry_run: bool = False
    ) -> PruneReport:
        runs = sorted(frozenset().union(*(removal.waiting or () for removal in waiting)))
        return PruneReport(
            deleted_packs=deleted[0] + (len(plan.orphans) if dry_run else 0),
            deleted_bytes=deleted[1] + (sum(plan.sizes[name] for name in plan.orphans) if dry_run else 0),
            named_packs=len(plan.packs),
            named_bytes=sum(plan.sizes.get(name, 0) for name in plan.packs),
            copied_bytes=plan.copied,
            rescued_packs=self._rescued,
            waiting=tuple(runs),
            dry_run=dry_run,
        )


@dataclass(frozen=True, eq=False)
class _HeadSet:
    """A set of frames by the first eight bytes of their ids: ascending, each once."""

    head: Heads

    @classmethod
    def of(cls, parts: Sequence[Heads]) -> _HeadSet:
        return cls(np.unique(np.concatenate([np.zeros(0, np.uint64), *parts])))

    def __sub__(self, other: _HeadSet) -> _HeadSet:
        return _HeadSet(np.setdiff1d(self.head, other.head, assume_unique=True))

    def holds(self, head: Heads) -> NDArray[np.bool_]:
        """For each of `head`, whether it is in the set."""
        if not len(self.head):
            return np.zeros(len(head), dtype=np.bool_)
        at = np.minimum(np.searchsorted(self.head, head), len(self.head) - 1)
        found: NDArray[np.bool_] = self.head[at] == head
        return found


@dataclass(frozen=True, eq=False)
class _Places:
    """Where frames lie, in columns: head of the id, number of the pack in `packs`, size in bytes."""

    packs: list[str]
    head: Heads
    pack: NDArray[np.int64]
    size: NDArray[np.int64]


def _places(segments: Sequence[Segment], removed: Removed) -> _Places:
    """Every place of every frame once, but for packs that are named by a removal."""
    number: dict[str, int] = {}
    columns: list[tuple[Heads, NDArray[np.int64], NDArray[np.int64]]] = []
    for segment in segments:
        names = segment.packs()
        numbers = np.array(
            [-1 if name in removed.packs else number.setdefault(name, len(number)) for name in names],
            dtype=np.int64,
        )
        for rows in segment.frame_rows():
            pack = numbers[rows["pack"]]
            stays = pack >= 0
            columns.append((heads(rows["id"])[stays], pack[stays], rows["size"][stays].astype(np.int64)))
    if not columns:
        return _Places([], np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    head, pack, size = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((head, pack))
    head, pack, size = head[order], pack[order], size[order]
    first = np.ones(len(head), dtype=np.bool_)
    first[1:] = (head[1:] != head[:-1]) | (pack[1:] != pack[:-1])
    return _Places(list(number), head[first], pack[first], size[first])


def _in_fullest(places: _Places, needed: NDArray[np.bool_], live: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of the places of each needed frame, the one in the pack with the most bytes that are needed."""
    kept = np.zeros(len(places.head), dtype=np.bool_)
    at = np.flatnonzero(needed)
    order = at[np.lexsort((places.pack[at], -live[places.pack[at]], places.head[at]))]
    head = places.head[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = head[1:] != head[:-1]
    kept[order[first]] = True
    return kept


def _add(
    index: RunIndex, chunk: NDArray[np.void], address: FrameAddress, at: tuple[int, int] | None = None
) -> None:
    """A frame that is stored becomes one of a run's index: where it is, or in a pack of the run, at (number,
    offset)."""
    number = index.add_frame(chunk["length"].astype(np.int64), chunk["digest"], address.id)
    if at is None:
        index.found(number, address)
    else:
        index.stored(number, *at, address.size)


def _row(identity: bytes) -> Digests:
    return np.frombuffer(identity, np.uint8).reshape(1, DIGEST_SIZE)
