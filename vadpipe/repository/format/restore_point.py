"""Restore points as values, and their files."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Final, cast

from pipeline import DIGEST_SIZE, DiskReceipt, IntegrityError, MachineId

from .config import READ_ONLY, VERSION, Config
from .objects import (
    ENDED,
    LARGEST_POINT,
    LARGEST_SMALL,
    POINTS,
    Damage,
    Missing,
    Objects,
    hold_name,
    point_name,
)


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
    `number`: one more than that of `previous`; 0 in format 1, which has none. `seal` proves the point, and
    `previous_seal` is that of `previous`; empty where it is not known.
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
    number: int = 0
    previous_seal: str | None = None
    tags: tuple[str, ...] = ()
    seal: str = field(default="", repr=False)

    def disk(self, key: str) -> StoredDisk | None:
        return next((disk for disk in self.disks if disk.key == key), None)

    def as_dict(self) -> dict[str, object]:
        """The point as it is stored, without its seal."""
        return {
            "version": VERSION if self.number else READ_ONLY,
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
            **(
                {"number": self.number, "previous_seal": self.previous_seal, "tags": list(self.tags)}
                if self.number
                else {}
            ),
        }


# Reading a point takes 0.2 ms and more.
NOTED_FROM: Final = 32

_MOST_BYTES: Final = 1 << 63
_NEWEST: Final = "newest"
_ENDING: Final = ".json"


def name_of(point: RestorePoint, config: Config) -> str:
    """What the object of a point is called."""
    return point_name(config.directory(point.machine.uuid), point.id)


def read_point(objects: Objects, config: Config, name: str) -> RestorePoint | None:
    """A point; None where a run was ended before it had one, or the point was removed. Raises IntegrityError."""
    try:
        content = objects.read_whole(name, LARGEST_POINT)
        if content.startswith(ENDED):
            return None
        point = _decode(config.decode(name, content))
        if name != name_of(point, config):
            raise Damage(f"it is point {point.id} of VM {point.machine.name}, under another's name")
        return point
    except Missing:
        return None
    except Damage as problem:
        path = objects.place(name)
        raise IntegrityError(
            f"Restore point {path} is damaged: {problem}.",
            remedy="Put this file back from a copy of the repository; other points are not hit.",
            point=path,
        ) from problem


def read_points(
    objects: Objects, config: Config, directory: str = ""
) -> tuple[list[RestorePoint], list[IntegrityError]]:
    """The points, oldest first, and what is wrong with others; of all machines, or of that with the directory."""
    points: list[RestorePoint] = []
    damaged: list[IntegrityError] = []
    for name in point_names(objects, directory):
        try:
            if (point := read_point(objects, config, name)) is not None:
                points.append(point)
        except IntegrityError as error:
            damaged.append(error)
    return in_order(points), damaged


def point_names(objects: Objects, directory: str = "") -> Iterator[str]:
    """The names of points, those of ended runs among them."""
    prefix = f"{POINTS}{directory}/" if directory else POINTS
    return (name for name in objects.backend.names(prefix) if name.endswith(_ENDING))


def read_wanted(objects: Objects, config: Config, wanted: str) -> RestorePoint | None:
    """A point by its id or the begin of one, or `latest`, without reading the others; None where that needs them.

    The latest point of several VMs is told by their clocks, and so is that of a repository of format 1.
    """
    names = list(point_names(objects))
    if wanted == "latest":
        directories = {name.split("/")[1] for name in names}
        if len(directories) != 1 or config.version == READ_ONLY:
            return None
        return PointsOf(objects, config, directories.pop()).newest()
    found = [name for name in names if wanted and name.rpartition("/")[2].startswith(wanted)]
    try:
        return read_point(objects, config, found[0]) if len(found) == 1 else None
    except IntegrityError:
        return None


def read_hold(objects: Objects, config: Config, point: RestorePoint) -> str | None:
    """Why retention must not remove a point; None where nothing holds it. Raises Damage."""
    name = hold_name(config.directory(point.machine.uuid), point.id)
    try:
        return str(config.decode(name, objects.read_whole(name, LARGEST_SMALL)).get("reason", ""))
    except Missing:
        return None


def in_order(points: Sequence[RestorePoint]) -> list[RestorePoint]:
    """Oldest first. A point comes after the one that it was made from, whatever the clock said."""
    if all(point.number for point in points):
        return _by_number(points)
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


def newest_of(points: Sequence[RestorePoint]) -> RestorePoint | None:
    """The newest of the points of one VM."""
    return max(points, key=lambda point: (point.number, point.created, point.id), default=None)


def _by_number(points: Sequence[RestorePoint]) -> list[RestorePoint]:
    """Those of one VM by number, and no point of it before an earlier one; so much of the order as clocks say."""
    reached: dict[str, str] = {}
    placed: list[tuple[str, int, str, RestorePoint]] = []
    for point in sorted(points, key=lambda point: (point.number, point.created, point.id)):
        now = max(point.created, reached.get(point.machine.uuid, ""))
        reached[point.machine.uuid] = now
        placed.append((now, point.number, point.id, point))
    return [point for *_, point in sorted(placed, key=lambda each: each[:2])]  # otherwise as they are


class PointsOf:
    """The points of one VM. Which one is the newest is noted where reading all of them would take long.

    The note names a point and proves which objects it was chosen from; with other objects there it counts for
    nothing.
    """

    def __init__(self, objects: Objects, config: Config, machine: MachineId | str) -> None:
        """
        Args:
            machine: The VM, or the directory of its points.
        """
        self._objects = objects
        self._config = config
        self._directory = machine if isinstance(machine, str) else config.directory(machine.uuid)
        self._note = f"{POINTS}{self._directory}/{_NEWEST}"
        self._before: list[str] | None = None  # the ids that `newest` chose from, ascending

    def newest(self) -> RestorePoint | None:
        """The newest readable point."""
        begin = f"{POINTS}{self._directory}/"
        cut = slice(len(begin), -len(_ENDING))
        # One step over the names of all points: there may be thousands.
        ids = [name[cut] for name in self._objects.backend.names(begin) if name.endswith(_ENDING)]
        self._before = ids
        if len(ids) >= NOTED_FROM:
            try:
                note = self._config.decode(self._note, self._objects.read_whole(self._note, LARGEST_SMALL))
                if note.get("of") == _together(ids):
                    return self.of_id(str(note["newest"]))
            except (Damage, IntegrityError, KeyError):
                pass
        found = map(self._readable, ids)
        return newest_of([point for point in found if point is not None])

    def of_id(self, point_id: str | None) -> RestorePoint | None:
        """The point with this id, where there is one."""
        if point_id is None:
            return None
        return read_point(self._objects, self._config, point_name(self._directory, point_id))

    def _readable(self, point_id: str) -> RestorePoint | None:
        try:
            return self.of_id(point_id)
        except IntegrityError:
            return None

    def note_newest(self, point: RestorePoint) -> None:
        """After `point` was published, which comes after the one that `newest` gave. Raises SinkError.

        Where another run published or removed one meanwhile, the note does not fit, and the next run reads all. So
        no second listing is needed. A copy of an old point is not the newest: whoever did not ask for that notes
        nothing.
        """
        if self._before is None or len(self._before) + 1 < NOTED_FROM:
            return
        now = self._before.copy()
        insort(now, point.id)
        fields = {"newest": point.id, "of": _together(now)}
        self._objects.backend.replace(self._note, [self._config.encode(self._note, fields)])


def _together(ids: Sequence[str]) -> str:
    """Proves a set of points by their ids, which ascend."""
    return blake2b("\n".join(ids).encode(), digest_size=16).hexdigest()


def _decode(document: dict[str, object]) -> RestorePoint:
    """From the fields of a proved object. Raises Damage."""
    version = document.get("version")
    if version not in (READ_ONLY, VERSION):
        raise Damage(f"it has format version {version}, known are {READ_ONLY} and {VERSION}")
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
            number=_number(document["number"]) if version == VERSION else 0,
            previous_seal=cast("str | None", document.get("previous_seal")),
            tags=tuple(map(str, cast("Sequence[str]", document.get("tags", ())))),
            seal=str(document["seal"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise Damage("a field is missing or of another type") from exc


def _disk(entry: Mapping[str, object]) -> StoredDisk:
    receipt = {name: read(entry[name]) for name, read in _RECEIPT.items()}
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


_READS: Final[Mapping[str, Callable[[object], object]]] = {"key": str, "label": str, "root": _digest}
_RECEIPT: Final = {column.name: _READS.get(column.name, _number) for column in fields(DiskReceipt)}
