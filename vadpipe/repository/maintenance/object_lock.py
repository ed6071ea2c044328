"""What of a repository in a bucket is locked until when: packs until the last point that needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pipeline import ConfigError

from ..format.objects import (
    POINTS,
    stem,
)
from ..format.restore_point import RestorePoint, name_of
from ..index.segments import heads
from ..reader import RepositoryReader
from .forgetting import forgotten
from .needs import frames_needed
from .recorded_versions import KINDS, Histories, Record, belonging, is_current, iso_time, kind_of, told

Seconds = NDArray[np.int64]


@dataclass(frozen=True)
class Extension:
    """What has to be kept, and what is wrong with it.

    Args:
        until: Per name.
        versions: Per name the id of the version that is kept.
        recorded: Per name of everything that is there the id of its version.
        problems: A sentence for each object that somebody overwrote or removed.
    """

    until: Mapping[str, datetime]
    versions: Mapping[str, str]
    recorded: Mapping[str, str]
    problems: tuple[str, ...]

    @property
    def latest(self) -> datetime:
        return max(self.until.values())


def plan_extension(
    reader: RepositoryReader, found: Histories, until: Mapping[str, datetime], last: Record | None = None
) -> Extension:
    """What points need: packs until the last of them, and the config, the keys, the index and so on, too.

    For a worker thread. Memory: 16 bytes per frame that the points use, and the names of all objects.

    Args:
        found: As of `histories`, listed before the reader was opened or after.
        until: Per id of a point until when it is kept.
        last: The record before; points that it names and nobody forgot are missed.

    Raises:
        IntegrityError: A map or the index cannot be read, so it is not known what the points need.
        SinkError
    """
    points = [point for point in reader.points if point.id in until]
    if not points:
        raise ConfigError(
            "There is no point to keep.", remedy="Name points that are there: `vadpipe points`."
        )
    for error in reader.damaged:
        raise error
    latest = max(until[point.id] for point in points)
    wanted = _packs_until(reader, points, until)
    wanted.update({name_of(point, reader.config): until[point.id] for point in points})
    for name in found:
        kind = kind_of(name)
        gone = kind == "index" and stem(name) in reader.index.removed.segments
        if kind not in ("packs", "points", "records") and not gone and found[name].current is not None:
            wanted[name] = latest
    problems = []
    for name in sorted(wanted):
        if name not in found:
            problems.append(f"{reader.objects.place(name)} is needed and has no version.")
        elif found[name].current is None:
            problems.append(f"{reader.objects.place(name)} is needed and was deleted.")
    there = {
        name: belonging(each)
        for name, each in found.items()
        if name in wanted or (each.current is not None and kind_of(name) != "records")
    }
    problems += [
        f"{reader.objects.place(name)} was overwritten at {told(found[name].versions[0].modified)}."
        for name in sorted(there)
        if found[name].current is not None and not is_current(found[name], there[name])
    ]
    problems += _missed(reader, found, last)
    return Extension(
        {name: when for name, when in sorted(wanted.items()) if name in found},
        {name: there[name].version_id for name in sorted(wanted) if name in found},
        {name: version.version_id for name, version in sorted(there.items())},
        tuple(problems),
    )


def _missed(reader: RepositoryReader, found: Histories, last: Record | None) -> Iterator[str]:
    """Points of the record before that are gone, and not by `forget`."""
    if last is None:
        return
    known = {f"{POINTS}{machine}/{point}.json" for machine, point in forgotten(reader.objects, reader.config)}
    for name in last.versions:
        each = found.get(name)
        if kind_of(name) == "points" and name not in known and (each is None or each.current is None):
            place = reader.objects.place(name)
            yield f"{place} stands in the record of {last.created}, and was deleted without `forget`."


def _packs_until(
    reader: RepositoryReader, points: Sequence[RestorePoint], until: Mapping[str, datetime]
) -> dict[str, datetime]:
    """Every pack that holds a frame which a point needs, until the last point that needs it.

    Packs that a removal names count only where a frame lies nowhere else, as for a reader.
    """
    head, seconds = _frames_until(reader, points, until)
    elsewhere = np.zeros(len(head), np.bool_)
    found: dict[str, int] = {}
    removed = reader.index.removed.packs
    for going in (False, True) if removed else (False,):
        for segment in reader.index.segments:
            names = segment.packs()
            counts = np.array([(name in removed) == going for name in names], np.bool_)
            best = np.zeros(len(names), np.int64)
            for rows in segment.frame_rows():
                at, pack = _matching(head, heads(rows["id"])), rows["pack"]
                hit = np.flatnonzero(at >= 0)
                hit = hit[counts[pack[hit]]]
                if going:
                    hit = hit[~elsewhere[at[hit]]]
                else:
                    elsewhere[at[hit]] = True
                np.maximum.at(best, pack[hit], seconds[at[hit]])
            for name, when in zip(names, best.tolist(), strict=True):
                if when:
                    found[name] = max(when, found.get(name, 0))
    return {reader.objects.pack(name): datetime.fromtimestamp(when, UTC) for name, when in found.items()}


def _matching(head: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """For each of `wanted` its place in `head`, which is ascending; -1 where it is not there."""
    if not len(head):
        return np.full(len(wanted), -1, np.intp)
    at = np.minimum(np.searchsorted(head, wanted), len(head) - 1)
    return np.where(head[at] == wanted, at, -1)


def _frames_until(
    reader: RepositoryReader, points: Sequence[RestorePoint], until: Mapping[str, datetime]
) -> tuple[NDArray[np.uint64], Seconds]:
    """The frames that points need, as the first eight bytes of their ids, ascending; and until when.

    A false agreement of eight bytes keeps a pack for longer, and does no harm.
    """
    known: set[bytes] = set()
    columns: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
    whens: list[Seconds] = [np.zeros(0, np.int64)]
    for point in sorted(points, key=lambda point: until[point.id], reverse=True):
        when = int(np.ceil(until[point.id].timestamp()))
        frames = frames_needed(reader, [point], known)
        columns.append(frames)
        whens.append(np.full(len(frames), when))
    head, first = np.unique(np.concatenate(columns), return_index=True)  # the first one is kept for longest
    return head, np.concatenate(whens)[first]


@dataclass(frozen=True)
class KindState:
    """The objects of one kind that are there.

    Args:
        locked: How many are kept for a time that has not passed.
        first, last: When the first and the last lock ends, ISO 8601 in UTC; "": nothing is locked.
        until: Per day (UTC) how many locks end.
        not_locked: The names of the others.
    """

    kind: str
    objects: int
    bytes: int
    locked: int
    first: str
    last: str
    until: Mapping[str, int]
    not_locked: tuple[str, ...]


def lock_state(found: Histories, kept: Mapping[str, datetime | None], now: datetime) -> list[KindState]:
    """How many objects of each kind are locked until when.

    Args:
        found: As of `histories`.
        kept: Per name that is there until when the version is kept that the repository wrote.
    """
    states = []
    for kind in KINDS:
        names = [name for name in kept if kind_of(name) == kind]
        ends = sorted(when for name in names if (when := kept[name]) is not None and when > now)
        days = Counter(end.astimezone(UTC).date().isoformat() for end in ends)
        state = KindState(
            kind,
            len(names),
            sum(belonging(found[name]).size for name in names),
            len(ends),
            iso_time(ends[0]) if ends else "",
            iso_time(ends[-1]) if ends else "",
            days,
            tuple(sorted(name for name in names if (when := kept[name]) is None or when <= now)),
        )
        if names:
            states.append(state)
    return states
