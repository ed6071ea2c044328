"""Points that are documents alone: for tests of what reads no data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

from blake3 import blake3

from pipeline import MachineId
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.config import Config, Origin, create_repository
from vadpipe.repository.format.objects import Objects
from vadpipe.repository.format.restore_point import Quiescing, RestorePoint, name_of, read_points
from vadpipe.repository.format.ways import NewWay

WEB = MachineId("00000000-0000-0000-0000-000000000001", "web01")
DB = MachineId("00000000-0000-0000-0000-000000000002", "db01")
BEGIN = datetime(2026, 11, 1, 20, tzinfo=UTC)


class PointsAlone:
    """A repository of points without disks, in memory or in `backend`, with ids that are the same in every run.

    `objects` and `config` are what the functions take.
    """

    def __init__(self, backend: Backend | None = None, seal_for: NewWay | None = None) -> None:
        drawn = count()
        self.origin = Origin(random=lambda size: blake3(b"%d" % next(drawn)).digest(size))
        self.objects = Objects(backend or MemoryBackend())
        self.config: Config = create_repository(self.objects.backend, self.origin, seal_for)
        self._last: dict[str, RestorePoint] = {}

    @property
    def points(self) -> list[RestorePoint]:
        """What is there, as a reader sees it."""
        found, damaged = read_points(self.objects, self.config)
        assert not damaged
        return found

    @property
    def ids(self) -> list[str]:
        return [point.id for point in self.points]

    def add(self, machine: MachineId = WEB, created: datetime | str | None = None, tags=()) -> RestorePoint:
        """Publish the next point of a VM; one day after the previous one, if no time is given."""
        last = self._last.get(machine.uuid)
        number = last.number + 1 if last else 1
        if not isinstance(created, str):
            created = (created or BEGIN + timedelta(days=number - 1)).isoformat(timespec="microseconds")
        point = RestorePoint(
            id=self.origin.random(8).hex(),
            machine=machine,
            created=created,
            previous=last.id if last else None,
            disks=(),
            quiescing=Quiescing("crash", None, True, (), {}),
            configuration={},
            documents={},
            number=number,
            previous_seal=last.seal if last else None,
            tags=tuple(tags),
        )
        self.put(point)
        (self._last[machine.uuid],) = [each for each in self.points if each.id == point.id]
        return self._last[machine.uuid]

    def put(self, point: RestorePoint) -> None:
        name = name_of(point, self.config)
        self.objects.backend.replace(name, [self.config.encode(name, point.as_dict())])

    def names(self, prefix: str) -> list[str]:
        return [found.name for found in self.objects.backend.list(prefix)]
