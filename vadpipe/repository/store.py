"""The repository as a target of jobs."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from pipeline import IntegrityError, MachineId, SinkError, emit

from .config import (
    Config,
    Origin,
    create_repository,
    read_config,
)
from .files import RUN_ID_SIZE, Layout
from .index import RunIndex
from .merging import merge_segments
from .packs import PackWriter
from .point import OpenRun, Point
from .restore_point import PointsOf
from .runs import RunLock, local_locks, sweep

log = logging.getLogger(__name__)

# Removing a few files; what a dead file system does not let us remove, the next run sweeps.
CLEANUP_S: Final = 60.0


@dataclass(frozen=True, init=False, repr=False)
class Repository:
    """A repository in a local directory. Settings only: nothing is read before `open`."""

    path: Path
    origin: Origin = field(compare=False)

    def __init__(self, path: str | Path, *, origin: Origin | None = None) -> None:
        object.__setattr__(self, "path", Path(path))
        object.__setattr__(self, "origin", origin or Origin())

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def init(self) -> None:
        """Make it, with a new key, in a directory that is empty or missing. Raises SinkError."""
        create_repository(Layout(self.path), self.origin)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RepositoryStore]:
        """For writing. Raises SinkError for what is no repository or cannot be written."""
        layout = Layout(self.path)
        config = await trio.to_thread.run_sync(_open, layout)
        yield RepositoryStore(layout, config, self.origin)

    def planned(self) -> Point:
        return Point(str(self.path))

    def missing(self) -> Sequence[str]:
        """What a run would fail for now, a sentence each; for `plan`. Nothing is changed."""
        try:
            _open(Layout(self.path))
        except (SinkError, IntegrityError) as error:
            return [str(error)]
        return []

    def effects(self) -> Sequence[str]:
        return [
            f"Adds packs, index segments and a restore point to the repository {self.path}.",
            f"Removes from {self.path} what killed runs left there unpublished.",
        ]


class RepositoryStore:
    """An open repository."""

    def __init__(self, layout: Layout, config: Config, origin: Origin) -> None:
        self._layout = layout
        self._config = config
        self._origin = origin

    @asynccontextmanager
    async def begin(self, machine: MachineId) -> AsyncIterator[Point]:
        """Start a point of a VM. Left without `publish`, everything that it wrote is removed.

        Raises SinkError, IntegrityError for a damaged index.
        """
        lock = await trio.to_thread.run_sync(self._lock)
        run: OpenRun | None = None
        try:
            swept = await trio.to_thread.run_sync(self._sweep, lock)
            if swept:
                emit("swept", repository=str(self._layout.root), runs=swept)
            run = await trio.to_thread.run_sync(self._start, lock, machine)
            yield Point(str(self._layout.root), run)
        except BaseException as error:
            try:
                await self._end(lock, run)
            except SinkError as failure:
                raise BaseExceptionGroup(
                    "The run failed, and so did its clean-up.", [error, failure]
                ) from None
            raise
        await self._end(lock, run)

    def _lock(self) -> RunLock:
        return RunLock(self._layout, self._origin.random(RUN_ID_SIZE).hex())

    def _sweep(self, lock: RunLock) -> list[str]:
        return sweep(self._layout, self._config.id, lock.time())

    def _start(self, lock: RunLock, machine: MachineId) -> OpenRun:
        layout, config = self._layout, self._config
        merge_segments(layout, config.id, lock.run_id, lock.time())
        points = PointsOf(layout, machine, config.keys)
        parent = points.newest()  # before the index, so that the index has all of it
        return OpenRun(
            layout=layout,
            config=config,
            origin=self._origin,
            id=lock.run_id,
            lock=lock,
            index=RunIndex(layout, config.id, lock.run_id, config.keys),
            packs=PackWriter(layout, config.id, lock.run_id),
            points=points,
            parent=parent,
        )

    async def _end(self, lock: RunLock, run: OpenRun | None) -> None:
        with trio.move_on_after(CLEANUP_S, shield=True):
            await trio.to_thread.run_sync(self._clean_up, lock, run, abandon_on_cancel=True)

    def _clean_up(self, lock: RunLock, run: OpenRun | None) -> None:
        try:
            if run is not None and run.published:
                with suppress(SinkError):  # the point exists, and the next run sweeps the lock file
                    lock.release()
            else:
                if run is not None:
                    run.packs.close()
                lock.roll_back(self._config.id)
        finally:
            if run is not None:
                run.index.cells.close()
            lock.abandon()


def _open(layout: Layout) -> Config:
    config = read_config(layout)
    for directory in (layout.root, *layout.directories):
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise SinkError(
                f"{directory} is missing or cannot be written.",
                remedy="Give this user the right to write the repository.",
                path=str(directory),
            )
    option = local_locks(layout.root)
    if option is not None:
        log.warning(
            "%s is mounted with %s: locks are not shared between hosts, so write to it from this host only",
            layout.root,
            option,
        )
    return config
