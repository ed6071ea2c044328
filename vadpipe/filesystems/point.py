"""The volumes of a restore point, and what reads them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from vadpipe.background import in_background
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.wrappers import Forwarding
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.repository.reader import RepositoryReader
from vadpipe.serve.disk import PointDisk
from vadpipe.serve.frames import CACHE, decoded_frames

from .sources import ExportSource, Source
from .volumes import Volume, volumes_of

T = TypeVar("T")


class CountedReads(Forwarding):
    """A backend that counts the bytes that are read through it."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._turn = threading.Lock()
        self.count = 0

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = self.inner.read(name, offset, length)
        with self._turn:
            self.count += len(content)
        return content


class PointVolumes:
    """The volumes of a point; see `open_volumes`."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run what reads files on a worker thread. Where it is cancelled, its next read ends it."""
        return await trio.to_thread.run_sync(work, *args)


@asynccontextmanager
async def open_volumes(
    reader: RepositoryReader, point: RestorePoint, disks: Sequence[StoredDisk], *, cache: int = CACHE
) -> AsyncIterator[PointVolumes]:
    """Find the volumes of some disks of a point.

    Args:
        reader: The repository.
        point: The point.
        disks: Disks of it. A volume of LVM can be read when all its disks are among them.
        cache: Bytes of decoded data that are kept.

    Raises:
        IntegrityError: What describes the volumes is damaged in the repository.
        SinkError: The repository cannot be read.
    """
    async with decoded_frames(reader, cache) as frames, in_background() as nursery:
        sources: dict[str, Source] = {}
        for disk in disks:
            sources[disk.key] = ExportSource(await PointDisk.open(reader, point, disk, frames, nursery))
        found = await trio.to_thread.run_sync(volumes_of, sources)
        yield PointVolumes(found)
