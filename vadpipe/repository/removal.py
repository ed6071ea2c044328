"""Removals: which packs and segments are going to be deleted, and when that is safe.

Nothing is deleted that a run may use. A removal names what goes; runs that begin later leave it out. Then the runs
are listed that had begun before: only these may not know. When all of them have ended, what the removal names is
used by nobody, but for points that were published meanwhile (prune.py). No step depends on a clock.

Merging index segments uses the same way: the merged segment is published, and a removal names the old ones.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from pipeline import IntegrityError, SinkError

from .backends.contract import ObjectExists, Stored
from .format.config import VERSION, Config, Origin
from .format.objects import (
    ENDED,
    INDEX,
    LARGEST_LIST,
    REMOVALS,
    Damage,
    Missing,
    Objects,
    pack_id,
    removal_name,
    segment_name,
    stem,
    waiting_name,
)
from .index.lookup import Removed
from .index.merging import merge, smallest
from .index.segments import Segment
from .runs import Run, has_ended, unended_runs

log = logging.getLogger(__name__)

_WAITING = "-waiting"


@dataclass(frozen=True)
class Removal:
    """What goes. `waiting`: the runs that may not know of it; None: they were not listed yet."""

    id: str
    packs: frozenset[str]
    segments: frozenset[str]
    waiting: frozenset[str] | None


def read_removals(objects: Objects, config: Config) -> list[Removal]:
    """All removals, finished ones excepted. Raises IntegrityError for a damaged one, SinkError."""
    if objects.version == 1:
        return []
    names: set[str] | None = None
    while True:
        # A listing comes in pages, and takes time. Meanwhile a removal may be dropped and the one that replaces it
        # be written where the listing was before. Two listings that agree, and name what is there, miss neither.
        while names != (names := _listed(objects)):
            pass
        found = _read_listed(objects, config, names)
        if found is not None:
            return found


def _read_listed(objects: Objects, config: Config, names: set[str]) -> list[Removal] | None:
    """The removals of these names; None where one was finished meanwhile."""
    found: list[Removal] = []
    for removal_id in sorted(name for name in names if not name.endswith(_WAITING)):
        fields = _read(objects, config, removal_name(removal_id))
        if fields is None:
            return None
        waiting = None
        if removal_id + _WAITING in names:
            listed = _read(objects, config, waiting_name(removal_id))
            waiting = None if listed is None else _texts(listed, "runs")
        found.append(Removal(removal_id, _texts(fields, "packs"), _texts(fields, "segments"), waiting))
    return found


def _listed(objects: Objects) -> set[str]:
    return {stem(found.name) for found in objects.backend.list(REMOVALS) if found.name.endswith(".json")}


def read_removed(objects: Objects, config: Config) -> Removed:
    """What any removal names. Raises IntegrityError, SinkError."""
    return named_by(read_removals(objects, config))


def named_by(removals: Sequence[Removal]) -> Removed:
    """What any of the removals names."""
    return Removed(
        packs=frozenset().union(*(each.packs for each in removals)),
        segments=frozenset().union(*(each.segments for each in removals)),
    )


def readable_removed(objects: Objects, config: Config) -> tuple[Removed, list[IntegrityError]]:
    """For readers, who remove nothing: what the removals name that can be read, and what is wrong with the others.

    Raises SinkError.
    """
    with suppress(IntegrityError):
        return read_removed(objects, config), []
    packs: set[str] = set()
    segments: set[str] = set()
    damaged: list[IntegrityError] = []
    for stored in objects.backend.list(REMOVALS):
        if not stored.name.endswith(".json"):
            continue
        try:
            fields = _read(objects, config, stored.name) or {}
        except IntegrityError as error:
            damaged.append(error)
            continue
        packs |= _texts(fields, "packs")
        segments |= _texts(fields, "segments")
    return Removed(packs=frozenset(packs), segments=frozenset(segments)), damaged


def publish_removal(
    objects: Objects,
    config: Config,
    run: Run,
    origin: Origin,
    *,
    packs: Collection[str] = (),
    segments: Collection[str] = (),
) -> None:
    """Name what goes, and then list the runs that may not know. Raises SinkError."""
    removal_id = pack_id(run.id, run.removals)
    name = removal_name(removal_id)
    fields = {
        "version": VERSION,
        "packs": sorted(packs),
        "segments": sorted(segments),
        "created": origin.timestamp(),
    }
    objects.backend.put(name, [config.encode(name, fields)])
    run.removals += 1
    list_waiting(objects, config, removal_id, run)


def list_waiting(objects: Objects, config: Config, removal_id: str, run: Run) -> None:
    """List the runs that had begun before a removal, and may not know of it: all that have not ended now."""
    runs = [each for each in unended_runs(objects) if each != run.id]
    name = waiting_name(removal_id)
    try:
        objects.backend.put(name, [config.encode(name, {"version": VERSION, "runs": sorted(runs)})])
    except ObjectExists:  # by another prune, which did the same
        log.info("%s is there", objects.place(name))


def drop_waiting_lists(objects: Objects) -> None:
    """Delete waiting lists of removals that are finished: somebody listed the runs anew while it was dropped."""
    names = [found.name for found in objects.backend.list(REMOVALS)]
    ids = {stem(name) for name in names}
    lost = [name for name in names if stem(name).removesuffix(_WAITING) not in ids]
    objects.backend.delete(lost)


def is_ready(objects: Objects, removal: Removal) -> bool:
    """Whether every run knows of it."""
    return removal.waiting is not None and all(has_ended(objects, run_id) for run_id in removal.waiting)


def drop(objects: Objects, removal_id: str) -> None:
    """A removal is finished. Its waiting list goes first: without it the runs are listed anew, which is safe."""
    objects.backend.delete([waiting_name(removal_id)])
    objects.backend.delete([removal_name(removal_id)])


def live_segments(objects: Objects, removed: Removed) -> list[Stored]:
    """The segments in use. Raises SinkError."""
    return [
        found
        for found in objects.backend.list(INDEX)
        if found.name.endswith(".idx")
        and stem(found.name) not in removed.segments
        and not _is_ended(found.size)
    ]


def merge_segments(objects: Objects, config: Config, run: Run, origin: Origin) -> int:
    """Merge segments until they are few, if that can be done. Returns how many were merged.

    Only what a run needs is worth failing for: what keeps a merge from being made is logged.
    """
    merged = 0
    try:
        while group := smallest(_mergeable(objects, config), unended_runs(objects)):
            log.info("merging %d index segments of %s", len(group), objects.place())
            replace_segments(objects, config, run, origin, group)
            merged += len(group)
    except ObjectExists as exc:
        raise run.was_ended() from exc
    except (SinkError, IntegrityError) as exc:
        log.warning("index segments could not be merged: %s", exc)
    return merged


def _mergeable(objects: Objects, config: Config) -> list[Stored]:
    """The segments in use, but for those that name a pack of a removal: the prune that deletes the pack rewrites
    them, and no other run carries their rows into a new segment."""
    removed = read_removed(objects, config)
    live = live_segments(objects, removed)
    if not removed.packs:
        return live
    return [
        found
        for found in live
        if removed.packs.isdisjoint(Segment(objects, found.name, config.id, config.sealing).packs())
    ]


def replace_segments(
    objects: Objects,
    config: Config,
    run: Run,
    origin: Origin,
    names: Sequence[str],
    without: Collection[str] = (),
    *,
    packs: Collection[str] = (),
    more_segments: Collection[str] = (),
) -> None:
    """Write one segment of several, and name the old ones, and packs, in a removal.

    Args:
        names: Of the segments that the new one is made of.
        without: Ids of packs whose rows are left out: no point needs them.
        packs: Ids of packs that the removal names, too.
        more_segments: Ids of segments that it names, and that cannot be read.

    Raises ObjectExists where the run was ended, SinkError, IntegrityError.
    """
    final = segment_name(run.id, run.segments)
    removed = Removed(packs=frozenset(without))
    if names and merge(objects, config.id, names, final, sealing=config.sealing, removed=removed):
        run.segments += 1
    segments = [*(stem(name) for name in names), *more_segments]
    publish_removal(objects, config, run, origin, packs=packs, segments=segments)


def finish_merges(objects: Objects, config: Config, run: Run, removals: Sequence[Removal]) -> None:
    """Delete segments that were merged, and that nobody uses any more. What keeps it from being done is logged."""
    try:
        for removal in removals:
            if removal.packs:
                continue
            if removal.waiting is None:
                list_waiting(objects, config, removal.id, run)
            elif is_ready(objects, removal):
                objects.backend.delete([f"{INDEX}{segment}.idx" for segment in sorted(removal.segments)])
                drop(objects, removal.id)
    except SinkError as exc:
        log.info("merged index segments stay: %s", exc)


def _is_ended(size: int) -> bool:
    """Whether an object of this size took the name of a segment; a segment is larger."""
    return size == len(ENDED) + 8


def _read(objects: Objects, config: Config, name: str) -> dict[str, object] | None:
    try:
        return config.decode(name, objects.read_whole(name, LARGEST_LIST))
    except Missing:
        return None
    except Damage as damage:
        raise IntegrityError(
            f"{objects.place(name)} is damaged: {damage}.",
            remedy="Put it back from a copy of the repository. Until then nothing is written or removed, "
            "as nobody knows what is going to be removed.",
            path=objects.place(name),
        ) from damage


def _texts(fields: dict[str, object], name: str) -> frozenset[str]:
    return frozenset(map(str, cast("list[object]", fields.get(name, []))))
