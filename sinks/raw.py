"""Raw images: sparse files, one per disk."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import trio
from trio.abc import ReceiveChannel

from pipeline import (
    BufferPool,
    ContractError,
    Pipeline,
    Sink,
    SinkError,
    Span,
    Unchanged,
    Zeros,
)
from vadpipe.files import create, publish, temporary_beside
from vadpipe.repository.restore_point import StoredDisk

from .restoring import Contents, OpenTarget

log = logging.getLogger("vadpipe." + __name__)

_SIMPLE = re.compile(r"[a-z]+[0-9]+:[0-9]+")
_LONGEST = 200  # bytes of a file name; file systems take 255, and the suffix needs some


@dataclass(frozen=True)
class RawReceipt:
    """A finished image. `written` is bytes of data; the rest of `capacity` is holes."""

    path: Path
    capacity: int
    written: int


@dataclass(frozen=True)
class RawFile(Sink[Span | Zeros, RawReceipt]):
    """Spans of a whole disk in, a sparse raw image out.

    In: spans and zeros, ascending, covering [0, capacity).
    The image appears under its name only when it is complete and durable; until then its name is a random one.
    Memory: one span. Cancel: nothing remains.
    Raises: SinkError when the target cannot be written, or exists and `force` is false; ContractError when the
    input does not cover the disk.
    """

    path: Path
    capacity: int
    force: bool = False

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> RawReceipt:
        unfinished = temporary_beside(self.path)
        reached = written = 0
        with _translated(self.path), _removed_unless_renamed(unfinished):
            final = None if self.force else self.path
            descriptor = await trio.to_thread.run_sync(_create, unfinished, self.capacity, final)
            try:
                async for item in inbox:
                    if isinstance(item, Unchanged) or item.offset != reached:
                        raise ContractError(f"A raw image needs the whole disk in order; got {item!r}.")
                    reached += item.length
                    if isinstance(item, Span):
                        written += await trio.to_thread.run_sync(_write, descriptor, item)
                        item.release()
                    del item
                if reached != self.capacity:
                    raise ContractError(f"The disk has {self.capacity} bytes; {reached} arrived.")
                await trio.to_thread.run_sync(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await trio.to_thread.run_sync(partial(publish, replace=self.force), unfinished, self.path)
        return RawReceipt(self.path, self.capacity, written)


def _create(path: Path, capacity: int, unless: Path | None) -> int:
    """The file that will become the image; nothing is made while there is a file `unless`."""
    if unless is not None and os.path.lexists(unless):
        raise FileExistsError
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = create(path)
    try:
        os.truncate(descriptor, capacity)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, span: Span) -> int:
    memory = span.buffer.memory
    for offset, length in span.data:
        part = memory[offset - span.offset : offset - span.offset + length]
        while part:
            count = os.pwrite(descriptor, part, offset)
            part, offset = part[count:], offset + count
    return span.data.total


@contextmanager
def _removed_unless_renamed(unfinished: Path) -> Iterator[None]:
    try:
        yield
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as exc:
        raise SinkError(
            f"{path} exists already.", remedy="Choose another directory, or add --force.", path=str(path)
        ) from exc
    except OSError as exc:
        remedy = "Free space there or choose another directory." if exc.errno == errno.ENOSPC else ""
        raise SinkError(f"{path} cannot be written: {exc.strerror}.", remedy=remedy, path=str(path)) from exc


@dataclass(frozen=True)
class RawDirectory:
    """One sparse raw image per disk: DIRECTORY/scsi0-0.raw. One restore at a time."""

    directory: Path

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises SinkError."""
        opened = _OpenDirectory(self.directory, contents)
        with opened.prepared():
            yield opened


@dataclass(frozen=True)
class _OpenDirectory:
    directory: Path
    contents: Contents

    def path(self, disk: StoredDisk) -> Path:
        return self.directory / f"{image_name(disk.key)}.raw"

    def place(self, disk: StoredDisk) -> str:
        return str(self.path(disk))

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        yield self.contents.read(disk, pool) | RawFile(self.path(disk), disk.capacity, self.contents.force)

    async def finish(self) -> Sequence[str]:
        return ()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        force = self.contents.force
        places = [self.path(disk) for disk in self.contents.disks]
        if len({place.name.casefold() for place in places}) < len(places):
            keys = ", ".join(disk.key for disk in self.contents.disks)
            raise SinkError(
                f"The disks of this point have names that differ in case only: {keys}.",
                remedy="Restore them one by one into different directories, with --disk.",
            )
        descriptor = -1
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise SinkError(
                    f"Another restore is writing into {self.directory}.",
                    remedy="Choose another directory, or wait until it has ended.",
                ) from exc
            except OSError as exc:  # NFS: the images still replace nothing, and are whole
                log.info("%s cannot be locked: %s", self.directory, exc.strerror)
            there = [
                place
                for place in places
                if os.path.lexists(place) and not (force and (place.is_file() or place.is_symlink()))
            ]
            if there:
                raise SinkError(
                    f"{', '.join(map(str, there))} {'exists' if len(there) == 1 else 'exist'} already.",
                    remedy="Choose another directory, or replace images with --force; nothing was written.",
                )
            yield
        except OSError as exc:
            raise SinkError(
                f"{self.directory} cannot be used: {exc.strerror}.",
                remedy="Name a directory that this user may write.",
                path=str(self.directory),
            ) from exc
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def image_name(key: str) -> str:
    """A disk's key as a file name, another one for each key.

    A simple key like 'scsi0:0' becomes 'scsi0-0'; of others, every byte that is no ASCII letter, digit, '_', '.' or
    '-' is percent-encoded, as is the hyphen of what looks like the name of a simple key. What is too long for a
    file name ends in its digest.
    """
    if _SIMPLE.fullmatch(key):
        return key.replace(":", "-")
    name = quote(key, safe="", errors="surrogatepass").replace("~", "%7E")
    if _SIMPLE.fullmatch(name.replace("-", ":")):
        name = name.replace("-", "%2D")
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 33]}~{blake2b(name.encode(), digest_size=16).hexdigest()}"
    return name
