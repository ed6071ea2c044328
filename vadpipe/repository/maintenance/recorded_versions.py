"""The versions of objects that belong to a repository in a bucket: which they are, a record of them, the way back.

Who may write a bucket can put other versions over objects, or delete markers. What is locked stays below these.
The first version of a name is the one that the repository wrote: it writes each name once, and nobody can make an
older version. A record says which names there were, and which versions they had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from pipeline import ConfigError, IntegrityError, MiB, SinkError
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
    "hide": "hidden by a delete marker",
    "lost": "LOST: the version is gone",
    "added": "left as it is",
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


def _belonging_before(history: History, before: float | None) -> Version:
    """As `belonging`; of a hold, which is written again, the last version before the time."""
    if before is not None and kind_of(history.name) == "holds":
        earlier = [version for version in history.versions if version.modified < before]
        return next(iter(earlier), history.versions[-1])
    return belonging(history)


def _step(
    name: str, history: History | None, record: Record | None, before: float | None, *, hide_added: bool
) -> Step | None:
    if history is None:
        return Step(name, "lost", "every version was removed")
    if kind_of(name) == "records":  # they are read by their versions
        return None
    wanted = _belonging_before(history, before)
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


def summary_of(steps: Sequence[Step], *, dry_run: bool = False) -> str:
    """What was done, in one phrase."""
    back = sum(step.action in ("undelete", "copy") for step in steps)
    copied = sum(step.size for step in steps if step.action == "copy")
    would = "would be " if dry_run else ""
    return f"{counted(back, 'object')} {would}put back; {format_size(copied)} {would}copied in the server for that"


def written_later(found: Histories, record: Record) -> list[str]:
    """The names that are there and were first written after a record: by runs, or by an intruder."""
    return [
        name
        for name, history in sorted(found.items())
        if history.current is not None
        and name not in record.versions
        and kind_of(name) != "records"
        and belonging(history).modified >= record.modified
    ]


def told(seconds: float) -> str:
    """A time of the server for people and programs: ISO 8601 in UTC."""
    return iso_time(datetime.fromtimestamp(seconds, UTC))


def iso_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")
