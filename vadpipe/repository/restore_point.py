"""Restore points as values, and their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Final, cast

from pipeline import DIGEST_SIZE, DiskReceipt, IntegrityError, KiB, MachineId, MiB
from vadpipe.files import write_durably

from .config import Keys, seal, unseal
from .files import Damage, Layout, machine_directory, read_whole

VERSION: Final = 1

# A point with the full verdict of a guest with hundreds of databases has some 100 KiB.
LARGEST: Final = 64 * MiB


@dataclass(frozen=True)
class StoredDisk:
    """A disk of a point. `pages` is the hex digest of its page list, `receipt.root` the root of its hash tree."""

    receipt: DiskReceipt
    change_id: str | None
    pages: str

    @property
    def key(self) -> str:
        return self.receipt.key

    @property
    def capacity(self) -> int:
        return self.receipt.capacity


@dataclass(frozen=True)
class Document:
    """A document of a point. `parts` are the hex digests of its pieces, in order."""

    length: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Quiescing:
    """The consistency asked for, the one reached (None: nobody looked) and why."""

    asked: str
    reached: str | None
    satisfied: bool
    reasons: tuple[str, ...]
    verdict: Mapping[str, object]


@dataclass(frozen=True)
class RestorePoint:
    """One VM at one time. `created` is ISO 8601 in UTC; `previous` is the point it was made from, if any.

    `preflight`: what was found out of the VM before its snapshot; None: nobody looked.
    """

    id: str
    machine: MachineId
    created: str
    previous: str | None
    disks: tuple[StoredDisk, ...]
    quiescing: Quiescing
    configuration: Mapping[str, object] = field(repr=False)
    documents: Mapping[str, Document]
    preflight: Mapping[str, object] | None = field(default=None, repr=False)

    def disk(self, key: str) -> StoredDisk | None:
        return next((disk for disk in self.disks if disk.key == key), None)

    def as_dict(self) -> dict[str, object]:
        """The point as it is stored, without its seal."""
        return {
            "version": VERSION,
            "id": self.id,
            "machine": {"uuid": self.machine.uuid, "name": self.machine.name},
            "created": self.created,
            "previous": self.previous,
            "disks": [
                {**asdict(disk.receipt), "change_id": disk.change_id, "pages": disk.pages}
                for disk in self.disks
            ],
            "quiescing": {
                "asked": self.quiescing.asked,
                "reached": self.quiescing.reached,
                "satisfied": self.quiescing.satisfied,
                "reasons": list(self.quiescing.reasons),
                "verdict": dict(self.quiescing.verdict),
            },
            "configuration": dict(self.configuration),
            "documents": {
                name: {"length": document.length, "parts": list(document.parts)}
                for name, document in self.documents.items()
            },
            **({} if self.preflight is None else {"preflight": dict(self.preflight)}),
        }


# Reading a point takes 0.2 ms and more.
NOTED_FROM: Final = 32
_LARGEST_NOTE: Final = 4 * KiB

_MOST_BYTES: Final = 1 << 63


def encode(point: RestorePoint, keys: Keys) -> bytes:
    return seal(point.as_dict(), keys.seal)


def read_point(path: Path, keys: Keys) -> RestorePoint:
    """Raises IntegrityError."""
    try:
        point = _decode(unseal(read_whole(path, LARGEST), keys.seal))
        if (path.stem, path.parent.name) != (point.id, machine_directory(point.machine.uuid)):
            raise Damage(f"it is point {point.id} of VM {point.machine.name}, under another's name")
        return point
    except Damage as problem:
        raise IntegrityError(
            f"Restore point {path} is damaged: {problem}.",
            remedy="Put this file back from a copy of the repository; other points are not hit.",
            point=str(path),
        ) from problem


def read_points(paths: Iterator[Path], keys: Keys) -> tuple[list[RestorePoint], list[IntegrityError]]:
    """The points of the files, oldest first, and what is wrong with the others."""
    points: list[RestorePoint] = []
    damaged: list[IntegrityError] = []
    for path in sorted(paths):
        try:
            points.append(read_point(path, keys))
        except IntegrityError as error:
            damaged.append(error)
    return in_order(points), damaged


def in_order(points: Sequence[RestorePoint]) -> list[RestorePoint]:
    """Oldest first. A point comes after the one that it was made from, whatever the clock said."""
    known = {point.id: point for point in points}
    place: dict[str, tuple[str, int]] = {}
    for point in points:
        chain: list[RestorePoint] = []
        now: RestorePoint | None = point
        while now is not None and now.id not in place:
            chain.append(now)
            place[now.id] = (now.created, 0)  # so that a circle ends
            now = known.get(now.previous or "")
        for each in reversed(chain):
            created, depth = place.get(each.previous or "", ("", -1))
            place[each.id] = (max(each.created, created), depth + 1 if created >= each.created else 0)
    return sorted(points, key=lambda point: (*place[point.id], point.id))


class PointsOf:
    """The points of one VM. Which one is the newest is noted where reading all of them would take long.

    The note names a point and proves which files it was chosen from; with other files there it counts for nothing.
    """

    def __init__(self, layout: Layout, machine: MachineId, keys: Keys) -> None:
        self._directory = layout.points / machine_directory(machine.uuid)
        self._keys = keys
        self._before = self._names()

    def newest(self) -> RestorePoint | None:
        """The newest readable point."""
        if len(self._before) >= NOTED_FROM:
            try:
                note = unseal(read_whole(self._note, _LARGEST_NOTE), self._keys.seal)
                if note.get("of") == _together(self._before):
                    return read_point(self._directory / f"{note['newest']}.json", self._keys)
            except (Damage, IntegrityError, KeyError):
                pass
        points, _ = read_points(self._directory.glob("*.json"), self._keys)
        return points[-1] if points else None

    def note_newest(self, point: RestorePoint, temporary: Path) -> None:
        """After `point` was published. Raises OSError."""
        now = self._names()
        if len(now) < NOTED_FROM:
            return
        if now == sorted([*self._before, point.id]):
            fields = {"newest": point.id, "of": _together(now)}
            write_durably(self._note, seal(fields, self._keys.seal), temporary=temporary, replace=True)
        else:  # another run published meanwhile, or one was removed: the next run reads all
            self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self._directory / "newest"

    def _names(self) -> list[str]:
        if not self._directory.is_dir():
            return []
        return sorted(name[:-5] for name in os.listdir(self._directory) if name.endswith(".json"))


def _together(names: Sequence[str]) -> str:
    return blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def _decode(document: dict[str, object]) -> RestorePoint:
    """From the fields of a proved file. Raises Damage."""
    if document.get("version") != VERSION:
        raise Damage(f"it has format version {document.get('version')}, known is {VERSION}")
    try:
        machine = cast("Mapping[str, str]", document["machine"])
        quiescing = cast("Mapping[str, object]", document["quiescing"])
        documents = cast("Mapping[str, Mapping[str, object]]", document["documents"])
        return RestorePoint(
            id=str(document["id"]),
            machine=MachineId(machine["uuid"], machine["name"]),
            created=str(document["created"]),
            previous=cast("str | None", document["previous"]),
            disks=tuple(map(_disk, cast("Sequence[Mapping[str, object]]", document["disks"]))),
            quiescing=Quiescing(
                asked=str(quiescing["asked"]),
                reached=cast("str | None", quiescing["reached"]),
                satisfied=bool(quiescing["satisfied"]),
                reasons=tuple(cast("Sequence[str]", quiescing["reasons"])),
                verdict=cast("Mapping[str, object]", quiescing["verdict"]),
            ),
            configuration=cast("Mapping[str, object]", document["configuration"]),
            documents={
                name: Document(
                    _number(entry["length"]), tuple(map(_digest, cast("Sequence[str]", entry["parts"])))
                )
                for name, entry in documents.items()
            },
            preflight=cast("Mapping[str, object] | None", document.get("preflight")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise Damage("a field is missing or of another type") from exc


def _disk(entry: Mapping[str, object]) -> StoredDisk:
    receipt = {
        column.name: (
            str if column.name in ("key", "label") else _digest if column.name == "root" else _number
        )(entry[column.name])
        for column in fields(DiskReceipt)
    }
    return StoredDisk(
        receipt=DiskReceipt(**receipt),  # type: ignore[arg-type]  # of the right types by now
        change_id=cast("str | None", entry["change_id"]),
        pages=_digest(entry["pages"]),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MOST_BYTES:
        raise ValueError
    return value


def _digest(value: object) -> str:
    if len(bytes.fromhex(str(value))) != DIGEST_SIZE:
        raise ValueError
    return str(value)
