"""Removing points on purpose, holding them, and noticing that somebody else removed some.

They agree without a lock. `forget` writes down what it is going to remove, then looks for holds, then removes.
`hold` writes the hold, then looks whether a removal names its point. So of the two at least one knows of the other.
What was removed on purpose stands in `forgotten/` for ever; a point that is neither there nor in `points/` was
removed by somebody else, and whoever remembers the head of its VM can tell.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from pipeline import ConfigError, IntegrityError, SinkError
from vadpipe.words import counted

from ..backends.contract import ObjectExists
from ..format.config import READ_ONLY, VERSION, Config, Origin
from ..format.objects import (
    FORGOTTEN,
    HOLDS,
    LARGEST_LIST,
    LARGEST_SMALL,
    POINTS,
    RUN_ID_SIZE,
    Damage,
    Missing,
    Objects,
    hold_name,
    stem,
)
from ..format.restore_point import RestorePoint, name_of, newest_of
from .retention import DatedPoint

log = logging.getLogger(__name__)

HEADS_FORMAT: Final = "vadpipe heads"
_NAMED: Final = 5  # points that a message names
_LARGEST_HEADS: Final = LARGEST_LIST
_UNREADABLE_HOLD: Final = "its hold is damaged"


@dataclass(frozen=True)
class ForgottenPoint:
    """A point that was removed on purpose. `machine`: the directory of its VM; `record`: the id of what says so."""

    machine: str
    id: str
    number: int
    seal: str
    record: str
    removed: str


def dated(points: Iterable[RestorePoint]) -> list[DatedPoint]:
    """The points as retention sees them.

    Raises:
        IntegrityError: The time of a point cannot be read.
    """
    found = []
    for point in points:
        try:
            created = datetime.fromisoformat(point.created)
            if created.tzinfo is None:
                raise ValueError
        except ValueError as exc:
            raise IntegrityError(
                f"Point {point.id} of VM {point.machine.name} has no valid time: {point.created!r}.",
                remedy="What wrote it is at fault. Remove it by its id: vadpipe forget REPOSITORY POINT",
                points=[point.id],
            ) from exc
        found.append(
            DatedPoint(point.id, point.machine.uuid, point.machine.name, created, point.number, point.tags)
        )
    return found


# --- holds ---


def holds(objects: Objects, config: Config, points: Iterable[RestorePoint]) -> dict[str, str]:
    """Why points are held, by the ids of those that are. A hold that cannot be read holds its point, too.

    Raises:
        SinkError
    """
    by_name = {hold_name(config.directory(point.machine.uuid), point.id): point.id for point in points}
    found: dict[str, str] = {}
    for stored in objects.backend.list(HOLDS):
        if stored.name in by_name:
            reason = _reason(objects, config, stored.name)
            if reason is not None:
                found[by_name[stored.name]] = reason
    return found


def hold(objects: Objects, config: Config, origin: Origin, point: RestorePoint, reason: str) -> str | None:
    """Keep a point from being removed, until it is released.

    Args:
        reason: Why; shown wherever the point would have gone.

    Returns:
        None; or, where a removal that names the point began before, what to do about that.

    Raises:
        ConfigError: The reason is empty, or the point is held already.
        SinkError: It cannot be written.
    """
    _check_writable(objects, config)
    if not reason.strip():
        raise ConfigError("A hold needs a reason.", remedy="Say who needs the point, and why: --reason TEXT")
    name = hold_name(config.directory(point.machine.uuid), point.id)
    fields = {"version": VERSION, "point": point.id, "reason": reason.strip(), "created": origin.timestamp()}
    try:
        objects.backend.put(name, [config.encode(name, fields)])
    except ObjectExists as exc:
        raise ConfigError(
            f"Point {point.id} is held already: {_reason(objects, config, name) or _UNREADABLE_HOLD}.",
            remedy=f"To give another reason, release it first: vadpipe release {objects.place()} {point.id}",
        ) from exc
    if not objects.exists(name_of(point, config)):
        objects.backend.delete([name])
        raise ConfigError(
            f"Point {point.id} was removed meanwhile.",
            remedy=f"`vadpipe points {objects.place()}` lists what is there.",
        )
    began = forgotten(objects, config).get((config.directory(point.machine.uuid), point.id))
    if began is None:
        return None
    return (
        f"Point {point.id} is held now, but a removal that began at {began.removed} names it. Look in a minute "
        f"whether it is still there: vadpipe points {objects.place()}"
    )


def release(objects: Objects, config: Config, point: RestorePoint) -> str:
    """End the hold of a point.

    Returns:
        Why it was held.

    Raises:
        ConfigError: It is not held.
        SinkError: The hold cannot be deleted.
    """
    _check_writable(objects, config)
    name = hold_name(config.directory(point.machine.uuid), point.id)
    reason = _reason(objects, config, name)
    if reason is None:
        raise ConfigError(f"Point {point.id} is not held.", remedy="There is nothing to release.")
    objects.backend.delete([name])
    return reason


def _reason(objects: Objects, config: Config, name: str) -> str | None:
    """The reason of a hold; None where there is none."""
    try:
        return str(config.decode(name, objects.read_whole(name, LARGEST_SMALL))["reason"])
    except Missing:
        return None
    except (Damage, KeyError) as problem:
        log.warning("the hold %s cannot be read: %s", objects.place(name), problem)
        return _UNREADABLE_HOLD


# --- removing points ---


def forget(objects: Objects, config: Config, origin: Origin, points: Sequence[RestorePoint]) -> str | None:
    """Remove points. What only they need stays in the packs until `prune` runs.

    Returns:
        The id of the record in `forgotten/`; None without points.

    Raises:
        ConfigError: A point is held. Nothing was removed.
        SinkError: The store refuses it. Points that are still there may be removed again.
    """
    _check_writable(objects, config)
    if not points:
        return None
    _refuse_held(points, holds(objects, config, points), objects)
    record = origin.random(RUN_ID_SIZE).hex()
    name = f"{FORGOTTEN}{record}.json"
    directories = {point.id: config.directory(point.machine.uuid) for point in points}
    fields = {
        "version": VERSION,
        "created": origin.timestamp(),
        "points": [
            {"machine": directories[point.id], "id": point.id, "number": point.number, "seal": point.seal}
            for point in points
        ],
    }
    objects.backend.put(name, [config.encode(name, fields)])
    if held := holds(objects, config, points):
        objects.backend.delete([name])
        _refuse_held(points, held, objects)
    # A hint that is there without the points that it was made of counts for nothing, so the order does not matter.
    objects.backend.delete([f"{POINTS}{directory}/newest" for directory in sorted(set(directories.values()))])
    objects.backend.delete([name_of(point, config) for point in points])
    log.info(
        "%s removed from %s; forgotten/%s.json names them", counted(len(points), "point"), objects, record
    )
    return record


def forgotten(objects: Objects, config: Config) -> dict[tuple[str, str], ForgottenPoint]:
    """The points that were removed on purpose, by the directory of their VM and their id.

    Raises:
        IntegrityError: A record is damaged.
        SinkError
    """
    found: dict[tuple[str, str], ForgottenPoint] = {}
    for stored in objects.backend.list(FORGOTTEN):
        try:
            fields = config.decode(stored.name, objects.read_whole(stored.name, LARGEST_LIST))
            for entry in cast("Sequence[Mapping[str, object]]", fields["points"]):
                point = ForgottenPoint(
                    str(entry["machine"]),
                    str(entry["id"]),
                    int(cast("int", entry["number"])),
                    str(entry["seal"]),
                    stem(stored.name),
                    str(fields["created"]),
                )
                found[point.machine, point.id] = point
        except Missing:
            continue  # a `forget` that met a hold took it back
        except (Damage, KeyError, TypeError, ValueError) as problem:
            raise IntegrityError(
                f"The list of forgotten points {objects.place(stored.name)} is damaged: {problem}.",
                remedy="Put this file back from a copy of the repository; no point is hit.",
                file=objects.place(stored.name),
            ) from problem
    return found


def _refuse_held(points: Sequence[RestorePoint], held: Mapping[str, str], objects: Objects) -> None:
    if not held:
        return
    named = [f"{point.id} ({held[point.id]})" for point in points if point.id in held]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    raise ConfigError(
        f"Held, so not removed: {', '.join(named[:_NAMED])}{more}. Nothing was removed.",
        remedy=f"Release a point when nobody needs it any more: vadpipe release {objects.place()} POINT",
        points=sorted(held),
    )


def _check_writable(objects: Objects, config: Config) -> None:
    if config.version == READ_ONLY:
        raise SinkError(
            f"The repository {objects.place()} has format version {READ_ONLY}, which is only read.",
            remedy=f"Make a new one of it: vadpipe copy {objects.place()} NEW",
            path=objects.place(),
        )


# --- heads ---


@dataclass(frozen=True)
class Head:
    """The newest point of a VM. Whoever remembers it notices that points were deleted or rolled back."""

    vm: str
    uuid: str
    number: int
    point: str
    seal: str
    created: str


@dataclass(frozen=True)
class Heads:
    """The heads of all VMs of a repository, by name. As JSON it is what `read_heads` reads."""

    repository: str
    heads: tuple[Head, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "format": HEADS_FORMAT,
            "version": 1,
            "repository": self.repository,
            "heads": [vars(head) for head in self.heads],
        }


def heads(config: Config, points: Iterable[RestorePoint]) -> Heads:
    """The heads of the VMs that have points."""
    by_vm: dict[str, list[RestorePoint]] = {}
    for point in points:
        by_vm.setdefault(point.machine.uuid, []).append(point)
    newest = [cast("RestorePoint", newest_of(group)) for group in by_vm.values()]
    found = [
        Head(point.machine.name, point.machine.uuid, point.number, point.id, point.seal, point.created)
        for point in newest
    ]
    return Heads(config.id.hex(), tuple(sorted(found, key=lambda head: (head.vm, head.uuid))))


def read_heads(path: Path) -> Heads:
    """Heads that `vadpipe head --json` wrote into a file.

    Raises:
        ConfigError: The file cannot be read, or is something else.
    """
    remedy = "Make one with: vadpipe head REPOSITORY --json > FILE"
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_HEADS + 1)
    except OSError as exc:
        raise ConfigError(f"Could not read the heads in {path}: {exc.strerror}.", remedy=remedy) from exc
    try:
        fields = json.loads(content)
        if fields["format"] != HEADS_FORMAT or fields["version"] != 1:
            raise ValueError
        listed = tuple(
            Head(
                str(head["vm"]),
                str(head["uuid"]),
                int(head["number"]),
                str(head["point"]),
                str(head["seal"]),
                str(head["created"]),
            )
            for head in fields["heads"]
        )
        return Heads(str(fields["repository"]), listed)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ConfigError(f"{path} holds no heads of a repository.", remedy=remedy) from exc


def compare_heads(
    objects: Objects, config: Config, points: Sequence[RestorePoint], remembered: Heads
) -> list[str]:
    """What the heads that somebody remembered prove of deleted or rolled-back points, a sentence or two each.

    A remembered point has to be there with its seal, or in `forgotten/`. The newest point of its VM has to have at
    least its number: points are numbered in a chain, and retention never removes the newest one.

    Args:
        points: All points that are there.
        remembered: Heads of this repository, from an earlier time.

    Returns:
        The problems; empty where everything fits.

    Raises:
        ConfigError: They are heads of another repository.
        IntegrityError: A list of forgotten points is damaged.
        SinkError
    """
    if remembered.repository != config.id.hex():
        raise ConfigError(
            f"These heads are of the repository with the id {remembered.repository}; {objects.place()} has the id "
            f"{config.id.hex()}.",
            remedy="Name the file that was made of this repository, unless somebody replaced the repository.",
        )
    removed = forgotten(objects, config)
    there = {(point.machine.uuid, point.id): point for point in points}
    newest: dict[str, int] = {}
    for point in points:
        newest[point.machine.uuid] = max(point.number, newest.get(point.machine.uuid, 0))
    problems = []
    for head in remembered.heads:
        subject = f"VM {head.vm}: point {head.point} (number {head.number}, {head.created})"
        found = there.get((head.uuid, head.point))
        gone = removed.get((config.directory(head.uuid), head.point))
        if found is not None and found.seal != head.seal:
            problems.append(f"{subject} is there with another seal: somebody replaced it.")
        elif found is None and (gone is None or gone.seal != head.seal):
            problems.append(
                f"{subject} is gone, and `vadpipe forget` did not remove it: somebody deleted it."
            )
        elif (reached := newest.get(head.uuid)) is None or reached < head.number:
            now = "no point is left" if reached is None else f"the newest point has number {reached} now"
            by = f" `vadpipe forget` removed it at {gone.removed}." if gone else ""
            problems.append(
                f"{subject} was the newest, and {now}.{by} If you removed the newest points by their ids, write "
                "the heads anew; otherwise somebody deleted them."
            )
    return problems
