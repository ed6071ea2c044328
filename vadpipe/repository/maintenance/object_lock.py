"""Object lock for a repository in a bucket: what is kept until when, a record of its versions, and the way back.

Who may write a bucket can put other versions over objects, or delete markers. What is locked stays below these.
The first version of a name is the one that the repository wrote: it writes each name once, and nobody can make an
older version. A record says which names there were, and which versions they had.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import NO_FRAME, ConfigError, IntegrityError, MiB, SinkError
from pipeline.units import format_size
from vadpipe.words import counted

from ..backends.administration import History, Marker, S3Administration, Version
from ..backends.contract import Backend, ObjectMissing
from ..format.config import VERSION, Config, Origin
from ..format.objects import (
    CONFIG,
    ENDED,
    FORGOTTEN,
    HOLDS,
    INDEX,
    PACKS,
    POINTS,
    REMOVALS,
    RUN_ID_SIZE,
    Damage,
    Objects,
    stem,
)
from ..format.restore_point import RestorePoint, StoredDisk, name_of
from ..index.frame_columns import PIECE
from ..index.segments import heads
from ..reader import RepositoryReader
from .forgetting import forgotten

log = logging.getLogger(__name__)

KEYS: Final = "keys/"
RECORDS: Final = "versions/"
LARGEST_RECORD: Final = 512 * MiB  # 80 bytes per object: 6 million objects, some 400 TiB of packs

# The kinds of objects that are locked; the others are the hint `newest` and signs of life, which are replaced.
KINDS: Final = {
    "config": CONFIG,
    "keys": KEYS,
    "packs": PACKS,
    "index": INDEX,
    "points": POINTS,
    "holds": HOLDS,
    "forgotten": FORGOTTEN,
    "removals": REMOVALS,
    "records": RECORDS,
}

_ENDED_SIZE: Final = len(ENDED) + RUN_ID_SIZE
# Names that are given back and written again.
_WRITTEN_AGAIN: Final = ("holds", "points")

Seconds = NDArray[np.int64]
Histories = Mapping[str, History]


def kind_of(name: str) -> str | None:
    """The kind of an object, as in `KINDS`; None for what is replaced, and what is not of a repository."""
    for kind, prefix in KINDS.items():
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
            return None if kind == "points" and not name.endswith(".json") else kind
    return None


def histories(administration: S3Administration) -> Histories:
    """All that lies under the names of a repository."""
    return {each.name: each for each in administration.histories() if each.versions and kind_of(each.name)}


def belonging(history: History) -> Version:
    """The version that the repository wrote: the first one.

    A hold can be released and made anew, so of a hold it is the last one. The name of a point may have been taken
    for a while to end the run of a copy.
    """
    if kind_of(history.name) == "holds":
        return history.versions[0]
    if kind_of(history.name) == "points":
        points = [version for version in history.versions if version.size != _ENDED_SIZE]
        return (points or history.versions)[-1]
    return history.versions[-1]


def is_current(history: History, version: Version) -> bool:
    """Whether a reader gets this version, or a copy of it."""
    current = history.current
    if current is None:
        return False
    same = bool(version.etag) and (current.etag, current.size) == (version.etag, version.size)
    return same or current.version_id == version.version_id


# --- what is kept until when ---


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
            for low in range(0, segment.frames, PIECE):
                rows = segment.column(segment.frame_section, low, low + PIECE)
                at, pack = _matching(head, heads(rows["id"])), rows["pack"]
                if int(pack.max()) >= len(names):
                    raise segment.damaged("a frame of it is in a pack that it does not name")
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
        for frames in _frames_of(reader, point, known):
            columns.append(frames)
            whens.append(np.full(len(frames), when))
    head, first = np.unique(np.concatenate(columns), return_index=True)  # the first one is kept for longest
    return head, np.concatenate(whens)[first]


def _frames_of(
    reader: RepositoryReader, point: RestorePoint, known: set[bytes]
) -> Iterator[NDArray[np.uint64]]:
    """The frames of a point, but for those of pages, page lists and documents in `known`; these are added."""
    fresh = {
        digest: None
        for document in point.documents.values()
        for part in document.parts
        if (digest := bytes.fromhex(part)) not in known
    }
    pages: dict[bytes, tuple[StoredDisk, int]] = {}
    reader.read_ahead([bytes.fromhex(disk.pages) for disk in point.disks])
    for disk in point.disks:
        listed = bytes.fromhex(disk.pages)
        if listed in known or listed in fresh:
            continue
        fresh[listed] = None
        digests = reader.page_digests(point, disk)
        for number in np.flatnonzero(digests.any(axis=1)).tolist():
            key = digests[number].tobytes()
            if key not in known and key not in fresh:
                fresh[key] = None
                pages[key] = disk, number
    reader.read_ahead(list(pages))
    for key, (disk, number) in pages.items():
        yield heads(reader.page(point, disk, number, key).frame_ids)
    if fresh:
        found, _ = reader.index.lookup(np.frombuffer(b"".join(fresh), np.uint8).reshape(len(fresh), -1))
        if (found == NO_FRAME).any():
            raise IntegrityError(
                f"A map page or a document of point {point.id} is not in the index.",
                remedy="Run `vadpipe verify`; it says what is hit.",
            )
        yield heads(reader.index.frame_ids(found))
    known.update(fresh)


# --- records ---


@dataclass(frozen=True)
class Record:
    """What the bucket held when a retention was extended.

    Args:
        id: Part of its name.
        created: By the clock of who wrote it.
        modified: When it was written, by the clock of the server, in seconds since 1970.
        versions: Per name the id of the version.
    """

    id: str
    created: str
    modified: float
    versions: Mapping[str, str] = field(repr=False)


def record_name(record_id: str) -> str:
    return f"{RECORDS}{record_id}.json"


def write_record(objects: Objects, config: Config, origin: Origin, versions: Mapping[str, str]) -> str:
    """Write down which versions there are. Returns the id of the record. Raises SinkError."""
    record_id = origin.random(RUN_ID_SIZE).hex()
    name = record_name(record_id)
    fields = {
        "version": VERSION,
        "id": record_id,
        "created": origin.timestamp(),
        "versions": dict(versions),
    }
    content = config.encode(name, fields)
    if len(content) > LARGEST_RECORD:
        raise SinkError(
            f"The record of {len(versions)} versions would have more than {LARGEST_RECORD // MiB} MiB.",
            remedy="Divide the repository: one per group of VMs.",
        )
    objects.backend.put(name, [content])
    return record_id


def read_records(
    backend: Backend,
    config: Config,
    found: Histories,
    *,
    before: float | None = None,
    only: str | None = None,
) -> Iterator[Record | IntegrityError]:
    """The records, the newest first by the clock of the server; an error for each that cannot be believed.

    Args:
        backend: Shows the first version of each.
        before: Only records that were written before this time.
        only: Only the record with this id.
    """
    for name in sorted(
        (name for name in found if kind_of(name) == "records"),
        key=lambda name: belonging(found[name]).modified,
        reverse=True,
    ):
        modified = belonging(found[name]).modified
        if (before is not None and modified >= before) or only not in (None, stem(name)):
            continue
        try:
            yield _read_record(backend, config, found, name, modified)
        except Damage as damage:
            yield IntegrityError(
                f"The record {backend.place(name)} cannot be believed: {damage}.",
                remedy="Somebody forged it, or it has rotted; another one is taken.",
            )


def _read_record(backend: Backend, config: Config, found: Histories, name: str, modified: float) -> Record:
    try:
        content = backend.read(name, 0, LARGEST_RECORD)
    except ObjectMissing as missing:
        raise Damage("it is missing") from missing
    fields = config.decode(name, content)
    versions = fields.get("versions")
    if not isinstance(versions, dict) or fields.get("id") != stem(name):
        raise Damage("it is the record of another name, or none")
    for each, version_id in versions.items():
        if not isinstance(version_id, str) or kind_of(each) is None:
            raise Damage(f"it names {each!r}, which is no object that is locked")
        if each in found and kind_of(each) not in _WRITTEN_AGAIN:
            version = found[each].version(version_id)
            if version is not None and version != belonging(found[each]):
                raise Damage(f"it names a version of {each} that is not the first one")
    return Record(stem(name), str(fields.get("created")), modified, versions)


# --- the way back ---

Action = Literal["undelete", "copy", "hide", "lost", "added"]

_DONE: Final = {
    "undelete": "put back: delete marker removed",
    "copy": "put back: copied over what lay above it",
    "hide": "hidden by a delete marker: it is newer than the time given",
    "lost": "LOST: the version is gone",
    "added": "left: it is newer than the time given, or came back after it was deleted",
}


@dataclass(frozen=True)
class Step:
    """What is done about one object.

    Args:
        action: `undelete`: remove the markers; `copy`: copy the version over others; `hide`: put a delete marker
            over it; `lost`: nothing can be done; `added`: nothing is done.
        happened: What happened to it, a phrase.
    """

    name: str
    action: Action
    happened: str
    version_id: str = ""
    size: int = 0
    markers: tuple[Marker, ...] = ()

    def line(self, *, dry_run: bool = False) -> str:
        """For people."""
        done = _DONE[self.action]
        if dry_run:
            done = done.replace("put back", "would be put back").replace("hidden", "would be hidden")
        return f"{self.name}: {self.happened}; {done}."


def plan_return(
    found: Histories, record: Record | None, *, before: float | None = None, hide_added: bool = False
) -> list[Step]:
    """What makes the bucket show what belongs to the repository: a step for each object that it does not show.

    What the record names gets the version that it names. What was written after the record gets its first version;
    unless it was deleted before the time `before`, as only `forget`, `prune` and the like delete until then.

    Args:
        before: When the intruder began, in seconds since 1970, by the clock of the server; None: not known.
        hide_added: Put delete markers over what was first written after that time.

    Raises:
        ConfigError: There is neither a record nor a time, so it cannot be told what was deleted on purpose.
    """
    if record is None and before is None:
        raise ConfigError(
            "There is no record of versions, so it cannot be told what was deleted on purpose.",
            remedy="Say when the intruder began: --before 2026-11-27T20:00. What was deleted later is put back.",
        )
    steps = []
    for name in sorted({*found, *(record.versions if record else ())}):
        step = _step(name, found.get(name), record, before, hide_added=hide_added)
        if step is not None:
            steps.append(step)
    return steps


def _step(
    name: str, history: History | None, record: Record | None, before: float | None, *, hide_added: bool
) -> Step | None:
    if history is None:
        return Step(name, "lost", "every version was removed")
    if kind_of(name) == "records":  # they are read by their versions
        return None
    wanted = belonging(history)
    deleted = history.markers[0].modified if history.current is None and history.markers else None
    if deleted is not None and before is not None and deleted < before:
        return None
    named = record.versions.get(name) if record is not None else None
    if named is not None:
        version = history.version(named)
        if version is None and kind_of(name) != "holds":
            return Step(name, "lost", "the recorded version was removed")
        if version is not None and version.size != _ENDED_SIZE:
            wanted = version
    elif before is not None and wanted.modified >= before:
        if history.current is None:
            return None
        added = f"first written at {told(wanted.modified)}"
        return Step(name, "hide" if hide_added else "added", added, wanted.version_id, wanted.size)
    elif record is not None and wanted.modified < record.modified:
        if history.current is None:
            return None
        return Step(name, "added", "it was deleted when the record was written", wanted.version_id)
    if is_current(history, wanted):
        return None
    if history.current is None:
        happened = f"deleted at {told(history.markers[0].modified)}" if history.markers else "deleted"
    else:
        happened = f"overwritten at {told(history.versions[0].modified)}"
    above = tuple(marker for marker in history.markers if marker.modified >= wanted.modified)
    action: Action = "undelete" if history.versions[0] == wanted and above else "copy"
    return Step(name, action, happened, wanted.version_id, wanted.size, above if action == "undelete" else ())


def take(administration: S3Administration, step: Step) -> None:
    """Do what a step says. Raises SinkError."""
    if step.action == "undelete":
        administration.undelete(step.name, step.markers)
    elif step.action == "copy":
        administration.put_back(step.name, step.version_id)
    elif step.action == "hide":
        administration.delete(step.name)


# --- the state ---


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
        days: dict[str, int] = {}
        for end in ends:
            day = end.astimezone(UTC).date().isoformat()
            days[day] = days.get(day, 0) + 1
        state = KindState(
            kind,
            len(names),
            sum(belonging(found[name]).size for name in names),
            len(ends),
            _iso(ends[0]) if ends else "",
            _iso(ends[-1]) if ends else "",
            days,
            tuple(sorted(name for name in names if (when := kept[name]) is None or when <= now)),
        )
        if names:
            states.append(state)
    return states


def summary_of(steps: Sequence[Step], *, dry_run: bool = False) -> str:
    """What was done, in one phrase."""
    back = sum(step.action in ("undelete", "copy") for step in steps)
    copied = sum(step.size for step in steps if step.action == "copy")
    would = "would be " if dry_run else ""
    return (
        f"{counted(back, 'object')} {would}put back, {format_size(copied)} of it {would}copied in the server"
    )


def told(seconds: float) -> str:
    """A time of the server for people and programs: ISO 8601 in UTC."""
    return _iso(datetime.fromtimestamp(seconds, UTC))


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")
