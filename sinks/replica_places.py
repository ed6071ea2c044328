"""Where the disks of a replica lie: qcow2 and raw images, block devices, exports of NBD servers.

Images and devices are written and read through a qemu-nbd of our own, so that there is one way for all.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import trio

from pipeline import BufferPool, ConfigError, SinkError
from vadpipe.files import create, flush_directory
from vadpipe.nbd import Nbd, NbdDisk
from vadpipe.nbd.client import NbdError
from vadpipe.nbd.writer import NbdWriter, open_for_writing

from .blocks import NbdTarget, exclusive_device
from .images import image_name
from .qemu import read_back, run_tool, served, tool
from .targets import parse_target

T = TypeVar("T")

# A qemu-nbd of a killed run holds the lock of its image until it has written its tables.
_LOCKED_FOR_S: Final = 20.0
_PAUSE_S: Final = 0.2
_LOCKED: Final = ("another process using the image", '" lock')  # QEMU's block/file-posix.c and block.c


class ReplicaPlace(Protocol):
    """Where one disk of a replica lies. Making one does no I/O. `made_by_us`: it reads as zero when it is made."""

    @property
    def name(self) -> str: ...

    @property
    def made_by_us(self) -> bool: ...

    async def exists(self) -> bool:
        """Whether there is something of that name."""
        ...

    async def seen(self) -> str:
        """What it looks like while it is closed, to find that somebody wrote to it; empty where nobody knows."""
        ...

    async def make(self, capacity: int) -> None:
        """Make it, in place of one that a killed run left half made. Raises SinkError."""
        ...

    def writing(self, pool: BufferPool, key: str) -> AbstractAsyncContextManager[NbdWriter]:
        """Open it for writing. Raises SinkError."""
        ...

    def reading(self, pool: BufferPool, key: str) -> AbstractAsyncContextManager[NbdDisk]:
        """Open it for reading, through a new connection. Raises SinkError."""
        ...


@dataclass(frozen=True)
class ImagePlace:
    """An image in a file, of the form 'qcow2' or 'raw'."""

    path: Path
    form: str
    made_by_us: bool = True

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def _image(self) -> str:
        return f"file:{self.path}"  # whatever its name, it is a file

    async def exists(self) -> bool:
        return await trio.to_thread.run_sync(os.path.lexists, self.path)

    async def seen(self) -> str:
        try:
            found = await trio.to_thread.run_sync(self.path.stat)
        except OSError:
            return ""
        return f"{found.st_dev}:{found.st_ino} {found.st_size} {found.st_mtime_ns}"

    async def make(self, capacity: int) -> None:
        try:
            await trio.to_thread.run_sync(self._prepare)
        except OSError as exc:
            raise SinkError(
                f"{self.path} cannot be made: {exc.strerror}.",
                remedy="Name a directory that this user may write.",
            ) from exc
        await run_tool("qemu-img", "create", "-q", "-f", self.form, self._image, str(capacity))
        await trio.to_thread.run_sync(flush_directory, self.path.parent)

    def _prepare(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        os.close(create(self.path))  # qemu-img keeps its mode: only its owner may read a VM's data

    @asynccontextmanager
    async def writing(self, pool: BufferPool, key: str) -> AsyncIterator[NbdWriter]:
        async with _when_unlocked(lambda: served(self._image, self.form, pool, name=self.name)) as writer:
            yield writer

    @asynccontextmanager
    async def reading(self, pool: BufferPool, key: str) -> AsyncIterator[NbdDisk]:
        await trio.to_thread.run_sync(_drop_cached, self.path)
        async with _when_unlocked(lambda: read_back(self._image, self.form, pool, name=key)) as disk:
            yield disk


class _Given:
    """A place that somebody else made."""

    made_by_us = False

    async def exists(self) -> bool:
        return False

    async def seen(self) -> str:
        return ""

    async def make(self, capacity: int) -> None:
        """It is there already, or the first write says so."""


@dataclass(frozen=True)
class DevicePlace(_Given):
    """A block device: an LVM volume, a mapped RBD image, a LUN."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @asynccontextmanager
    async def writing(self, pool: BufferPool, key: str) -> AsyncIterator[NbdWriter]:
        async with (
            exclusive_device(self.path),  # what is mounted is refused, and nobody mounts it meanwhile
            served(str(self.path), "raw", pool, name=self.name) as writer,
        ):
            yield writer

    @asynccontextmanager
    async def reading(self, pool: BufferPool, key: str) -> AsyncIterator[NbdDisk]:
        await trio.to_thread.run_sync(_drop_cached, self.path)
        async with read_back(str(self.path), "raw", pool, name=key) as disk:
            yield disk


def _drop_cached(path: Path) -> None:
    """Let what follows be read from the storage, not from this machine's memory, where the system does that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # whoever opens it next says why
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class NbdPlace(_Given):
    """An export of an NBD server."""

    server: Nbd

    @property
    def name(self) -> str:
        return f"{self.server.export or 'the export'} of {self.server.server}"

    @asynccontextmanager
    async def writing(self, pool: BufferPool, key: str) -> AsyncIterator[NbdWriter]:
        try:
            async with open_for_writing(self.server, pool) as writer:
                yield writer
        except NbdError as exc:
            raise SinkError(exc.problem, remedy=exc.remedy, **exc.facts) from exc

    @asynccontextmanager
    async def reading(self, pool: BufferPool, key: str) -> AsyncIterator[NbdDisk]:
        async with self.server.open(pool=pool, key=key) as disk:
            yield disk


@asynccontextmanager
async def _when_unlocked(open_image: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
    """Open an image; while a server of a killed run ends, wait for it."""
    deadline = trio.current_time() + _LOCKED_FOR_S
    async with AsyncExitStack() as stack:
        while True:
            try:
                found = await stack.enter_async_context(open_image())
            except SinkError as exc:
                if not any(said in exc.problem for said in _LOCKED) or trio.current_time() > deadline:
                    raise
                await trio.sleep(_PAUSE_S)
            else:
                break
        yield found


PlaceText: TypeAlias = "str | Nbd"
"""A place in a configuration: `qcow2:DIR`, `raw:DIR`, `device:/dev/...`, `nbd://...`, or settings `Nbd`."""

_USAGE: Final = (
    "Write qcow2:DIR, raw:DIR, device:/dev/..., nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH."
)


def check_place(place: PlaceText, *, overwrite: bool) -> None:
    """Raises ConfigError for what names no place, and for what is there already and may not be overwritten."""
    found = place_of(place, "vm", "disk")
    if not found.made_by_us and not overwrite:
        raise ConfigError(
            f"A migration overwrites what {found.name} holds.",
            remedy="Say Replica(..., overwrite=True) if that is what you want.",
        )


def place_of(place: PlaceText, machine: str, key: str) -> ReplicaPlace:
    """The place of a disk. Images lie in DIR/MACHINE/DISK.FORM. Raises ConfigError."""
    if isinstance(place, Nbd):
        return NbdPlace(place)
    kind, _, rest = place.partition(":")
    if kind in ("qcow2", "raw") and rest not in ("", "-"):
        return ImagePlace(Path(rest) / image_name(machine) / f"{image_name(key)}.{kind}", kind)
    if kind == "device" and rest:
        return DevicePlace(Path(rest))
    target = parse_target(place) if kind in ("nbd", "nbds", "nbd+unix") else None
    if isinstance(target, NbdTarget):
        return NbdPlace(target.server)
    raise ConfigError(f"{place!r} is no place for a replica.", remedy=_USAGE)


def places_of(places: PlaceText | Mapping[str, PlaceText], machine: str, key: str) -> ReplicaPlace:
    """The place of a disk among those of all disks. Raises ConfigError where it has none."""
    if not isinstance(places, Mapping):
        return place_of(places, machine, key)
    if key not in places:
        raise ConfigError(
            f"The replica has no place for the disk {key}.",
            remedy=f"Name one for it, beside those of {', '.join(places) or 'no other'}; or exclude the disk.",
        )
    return place_of(places[key], machine, key)


def need_tools(places: PlaceText | Mapping[str, PlaceText]) -> None:
    """Raises ConfigError where a tool is missing that a place needs."""
    every = places.values() if isinstance(places, Mapping) else [places]
    if any(
        isinstance(place, str) and place.partition(":")[0] in ("qcow2", "raw", "device") for place in every
    ):
        for name in ("qemu-img", "qemu-nbd"):
            tool(name)
