"""The repository as a target of jobs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from pipeline import SPAN, ConfigError, IntegrityError, KiB, MachineId, SinkError, emit

from .backends.contract import Backend, ObjectExists
from .backends.location import backend_at, bytes_per_second, is_remote
from .backends.wrappers import Throttled
from .format.config import READ_ONLY, Config, Origin, create_repository, read_config
from .format.objects import Objects, ReadAhead, run_name
from .format.packs import PACK_SIZE, PackWriter
from .format.restore_point import PointsOf, RestorePoint, name_of, read_points
from .index import merging
from .index.lookup import RunIndex
from .point import OpenRun, Point
from .reader import RepositoryReader, open_repository
from .removal import finish_merges, merge_segments, named_by, read_removals
from .runs import Run, end_dead_runs, free_point, unended_runs

if TYPE_CHECKING:
    from .format.ways import NewWay, Way

log = logging.getLogger(__name__)

# Removing a few objects; what a dead store does not let us remove, the next run does.
CLEANUP_S: Final = 60.0

# A segment of so many bytes is read by one request. Those of small runs have 2 KiB and more; merged ones 64 bytes
# for each chunk.
SMALL_SEGMENT: Final = 64 * KiB


@dataclass(frozen=True, init=False, repr=False)
class Repository:
    """A repository in a directory or a bucket. Settings only: nothing is read before `open`.

    Args:
        place: A path, `s3://bucket/prefix`, or a backend.
        unlock: What may open it, if it is sealed: `[KeyFile(path)]`; by default what the environment names.
        tags: Texts that each new point gets; retention can keep points by them.
        throttle: Bytes per second, written and read together: `"50MiB"` or a number; None: no limit.
    """

    place: str | Backend
    origin: Origin = field(compare=False)
    unlock: Sequence[Way] = field(compare=False)
    tags: tuple[str, ...]
    throttle: str | float | None

    def __init__(
        self,
        place: str | Path | Backend,
        *,
        unlock: Sequence[Way] = (),
        tags: Sequence[str] = (),
        throttle: str | float | None = None,
        origin: Origin | None = None,
    ) -> None:
        object.__setattr__(self, "place", str(place) if isinstance(place, Path) else place)
        object.__setattr__(self, "origin", origin or Origin())
        object.__setattr__(self, "unlock", tuple(unlock))
        object.__setattr__(self, "tags", _checked(tags))
        if throttle is not None:
            bytes_per_second(throttle)
        object.__setattr__(self, "throttle", throttle)

    def __repr__(self) -> str:
        return f"Repository({self.name!r})"

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.place if isinstance(self.place, str) else self.place.place()

    def backend(self) -> Backend:
        """Where it is. Raises ConfigError for a place that no backend knows."""
        if isinstance(self.place, str):
            return backend_at(self.place, self.throttle)
        return self.place if self.throttle is None else Throttled(self.place, bytes_per_second(self.throttle))

    def init(self, seal_for: NewWay | None = None, label: str = "first") -> None:
        """Make it, with a new key, where there is nothing yet. Raises SinkError, ConfigError.

        Args:
            seal_for: What opens it: it is sealed then.
            label: What that key slot is called.
        """
        create_repository(self.backend(), self.origin, seal_for, label)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RepositoryStore]:
        """For writing. Raises SinkError for what is no repository or cannot be written, ConfigError where it is
        sealed and nothing opens it."""
        backend = self.backend()
        config = await trio.to_thread.run_sync(_open, backend, self.unlock, self.origin)
        try:
            yield RepositoryStore(Objects(backend, config.version), config, self.origin, self.tags)
        finally:
            backend.close()

    @contextmanager
    def open_for_maintenance(self) -> Iterator[tuple[Objects, Config]]:
        """For `prune` and the like, which work on its objects. For a worker thread. Raises as `open`."""
        backend = self.backend()
        config = _open(backend, self.unlock, self.origin)
        try:
            yield Objects(backend, config.version), config
        finally:
            backend.close()

    def read(self) -> AbstractAsyncContextManager[RepositoryReader]:
        """For reading; see `open_repository`."""
        return open_repository(self.backend(), unlock=self.unlock)

    @property
    def path(self) -> Path:
        """Of a repository in a directory."""
        return Path(self.name)

    def unreadable(self) -> Sequence[str]:
        """What a restore would fail for now, a sentence each; for `plan`."""
        try:
            read_config(self.backend(), self.unlock)
        except (ConfigError, SinkError, IntegrityError) as error:
            return [str(error)]
        return []

    def planned(self) -> Point:
        return Point(self.name)

    def missing(self) -> Sequence[str]:
        """What a run would fail for now, a sentence each; for `plan`. Nothing is changed."""
        try:
            _open(self.backend(), self.unlock, self.origin)
        except (ConfigError, SinkError, IntegrityError) as error:
            return [str(error)]
        return []

    @property
    def memory(self) -> int:
        """Bytes of packs that a run holds until they are sent: one that is sent, and one that is filled."""
        return 2 * (PACK_SIZE + SPAN) if isinstance(self.place, str) and is_remote(self.place) else 0

    def effects(self) -> Sequence[str]:
        return [
            f"Adds packs, index segments and a restore point to the repository {self.name}.",
            f"Removes from {self.name} what killed runs left there unpublished.",
        ]


class RepositoryStore:
    """An open repository."""

    def __init__(self, objects: Objects, config: Config, origin: Origin, tags: tuple[str, ...] = ()) -> None:
        self._objects = objects
        self._config = config
        self._origin = origin
        self._tags = tags

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[Point]:
        """Start a point of a VM. Left without `publish`, everything that it wrote is removed.

        Raises SinkError, IntegrityError for a damaged index.
        """
        async with self._begun(machine, None) as point:
            yield point

    @asynccontextmanager
    async def copy_of(self, original: RestorePoint) -> AsyncIterator[Point]:
        """Start a copy of a point of another repository, with its id. Otherwise as `begin`.

        Raises SinkError also where another run copies it.
        """
        async with self._begun(original.machine, original) as point:
            yield point

    @asynccontextmanager
    async def _begun(self, machine: MachineId, original: RestorePoint | None) -> AsyncIterator[Point]:
        run = await trio.to_thread.run_sync(self._begin, machine, original)
        opened: OpenRun | None = None
        try:
            ended = await trio.to_thread.run_sync(self._end_dead_runs, run)
            if ended:
                emit("swept", repository=self._objects.place(), runs=ended)
            opened = await trio.to_thread.run_sync(self._start, run, machine, original)
            yield Point(self._objects.place(), opened)
        except BaseException as error:
            try:
                await self._end(run, opened)
            except SinkError as failure:
                raise BaseExceptionGroup(
                    "The run failed, and so did its clean-up.", [error, failure]
                ) from None
            # What a run that was given up misses, others removed.
            if isinstance(error, IntegrityError) and await trio.to_thread.run_sync(run.was_given_up):
                raise run.was_ended() from error
            raise
        await self._end(run, opened)

    def point_ids(self) -> set[str]:
        """The ids of the points that are there. For a worker thread."""
        points, _ = read_points(self._objects, self._config)
        return {point.id for point in points}

    def _begin(self, machine: MachineId, original: RestorePoint | None) -> Run:
        directory, run_id = self._config.directory(machine.uuid), original.id if original else None
        if run_id is not None and self._objects.exists(run_name(run_id)):
            self._end_dead_copy(directory)
        try:
            run = Run(self._objects, self._config, self._origin, directory, run_id)
        except ObjectExists as exc:
            raise SinkError(
                f"The point {run_id} is being copied to {self._objects.place()} already, or a copy was killed.",
                remedy="Wait for the other copy; that of a killed process is ended by the next copy from its "
                "host, and by any other after seven days of silence.",
                path=self._objects.place(),
            ) from exc
        if run_id is not None:
            free_point(self._objects, directory, run_id)
        if not self._config.conditional and (others := set(unended_runs(self._objects)) - {run.id}):
            run.end()
            raise SinkError(
                f"The store of {self._objects.place()} does not keep two writers apart, and the run "
                f"{min(others)} has not ended.",
                remedy="Wait until it ends. A store with conditional writes takes any number of writers.",
                path=self._objects.place(),
            )
        return run

    def _end_dead_copy(self, directory: str) -> None:
        """A run with the name that this one needs is there. End it, if it is dead."""
        run = Run(self._objects, self._config, self._origin, directory)
        try:
            end_dead_runs(self._objects, self._config, run)
            run.end()
        finally:
            run.abandon()

    def _end_dead_runs(self, run: Run) -> list[str]:
        """What dead runs left takes space only: whoever may not delete leaves it to a `prune`."""
        try:
            return end_dead_runs(self._objects, self._config, run)
        except SinkError as exc:
            if exc.transient:
                raise
            log.info("what dead runs left in %s stays: %s", self._objects.place(), exc)
            return []

    def _start(self, run: Run, machine: MachineId, original: RestorePoint | None) -> OpenRun:
        objects, config = self._objects, self._config
        tidied = False
        while True:
            points = PointsOf(objects, config, machine)
            # The point first, then the removals, then the index, so that the index has all that the point needs.
            parent = points.newest() if original is None else points.of_id(original.previous)
            removals = read_removals(objects, config)
            if not tidied:
                finish_merges(objects, config, run, removals)
            index = RunIndex(
                ReadAhead(objects, SMALL_SEGMENT),
                config.id,
                run.id,
                config.keys,
                sealing=config.sealing,
                removed=named_by(removals),
                first=run.segments,
            )
            # A point that was removed meanwhile may have needed packs that are gone; one that is there has all it
            # needs.
            gone = parent is not None and not objects.exists(name_of(parent, config))
            crowded = not tidied and len(index.segments) > merging.MOST
            tidied = True
            if not gone and not (crowded and merge_segments(objects, config, run, self._origin)):
                break
            index.close()
        return OpenRun(
            objects=objects,
            config=config,
            origin=self._origin,
            run=run,
            index=index,
            packs=PackWriter(objects, config, run.id, run.packs),
            points=points,
            parent=parent,
            tags=self._tags,
        )

    async def _end(self, run: Run, opened: OpenRun | None) -> None:
        with trio.move_on_after(CLEANUP_S, shield=True):
            await trio.to_thread.run_sync(self._clean_up, run, opened, abandon_on_cancel=True)

    def _clean_up(self, run: Run, opened: OpenRun | None) -> None:
        try:
            if opened is not None and opened.published:
                try:
                    run.end()
                except SinkError as exc:  # the point exists; whoever runs next removes the rest
                    log.info("the run %s ended, and its sign of life stays: %s", run.id, exc)
            else:
                if opened is not None:
                    opened.packs.close()
                run.roll_back()
        finally:
            if opened is not None:
                opened.index.close()
            run.abandon()


def _open(backend: Backend, unlock: Sequence[Way], origin: Origin) -> Config:
    config = read_config(backend, unlock, origin)
    if config.version == READ_ONLY:
        raise SinkError(
            f"The repository {backend.place()} has format version {READ_ONLY}, which is only read.",
            remedy=f"Make a new one of it: vadpipe copy {backend.place()} NEW",
            path=backend.place(),
        )
    if not config.conditional:
        getattr(backend, "write_unconditionally", lambda: None)()
    getattr(backend, "check_writable", lambda: None)()
    return config


def _checked(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise ConfigError(
            f"Tags are texts that are not empty, not {tags!r}.", remedy='Write tags=["monthly"].'
        )
    return tuple(sorted({tag.strip() for tag in tags}))
