"""Which reader serves a volume: the libraries of the extra `files`, or libguestfs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from pipeline.errors import ConfigError, MoverError
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import RepositoryReader

from .contract import FileSystem, Unreadable
from .guestfish import Guestfish, guestfish
from .volumes import Volume, open_volume, unreadable

AUTO, LIBRARIES, LIBGUESTFS = "auto", "libraries", "libguestfs"


class Readers:
    """Opens volumes, each once. For one thread at a time; see `volume_readers`."""

    def __init__(self, wanted: str, start: Callable[[], Guestfish]) -> None:
        self._wanted, self._start = wanted, start
        self._opened: dict[str, FileSystem] = {}

    def open(self, volume: Volume) -> FileSystem:
        """The file system of a volume. Raises ConfigError where no reader is there, Unreadable, MoverError."""
        if volume.name not in self._opened:
            self._opened[volume.name] = self._open(volume)
        return self._opened[volume.name]

    def _open(self, volume: Volume) -> FileSystem:
        if volume.why_not:
            raise unreadable(volume)
        problem: MoverError | None = None
        if self._wanted != LIBGUESTFS:
            try:
                return open_volume(volume)
            except (ConfigError, Unreadable) as exc:
                if self._wanted == LIBRARIES or not Guestfish.is_installed():
                    raise
                problem = exc
        try:
            return self._start().open(volume)
        except MoverError as exc:
            if problem is not None:
                exc.add_note(str(problem))
            raise


@asynccontextmanager
async def volume_readers(
    reader: RepositoryReader, point: RestorePoint, disks: Sequence[StoredDisk], wanted: str = AUTO
) -> AsyncIterator[Readers]:
    """What reads the volumes of some disks.

    Args:
        reader: The repository.
        point: The point.
        disks: Disks of it.
        wanted: 'libraries', 'libguestfs', or 'auto': the libraries, and libguestfs for what they do not read.
            libguestfs is started when it is needed, and takes seconds for that.
    """
    async with guestfish(reader, point, disks) as start:
        yield Readers(wanted, start)
