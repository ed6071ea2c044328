"""Restoring a point: every disk of it, each proved while it is written.

The disks are independent: one whose data is damaged is named, and the others are restored all the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import trio

from pipeline import (
    BufferPool,
    ConfigError,
    Pipeline,
    SinkError,
    TransferFailed,
    Zeros,
)
from pipeline.contracts import Flow
from pipeline.job import DiskWatch
from pipeline.values import Span
from vadpipe.repository.reader import ReadPoint, RepositoryReader
from vadpipe.repository.restore_point import RestorePoint, StoredDisk

from .null import NullSink
from .raw import RawFile

log = logging.getLogger("vadpipe." + __name__)

DISKS_AT_ONCE = 2

_SIMPLE = re.compile(r"[a-z]+[0-9]+:[0-9]+")
_LONGEST = 200  # bytes of a file name; file systems take 255, and the suffix needs some


class RestoreTarget(Protocol):
    """Where the disks of a point go. Making one does no I/O."""

    def place(self, disk: StoredDisk) -> Path | None:
        """The file that the disk becomes; None when nothing is written."""
        ...

    def prepared(self, disks: Sequence[StoredDisk], *, force: bool) -> AbstractContextManager[None]:
        """Around the restore of all `disks`. Raises SinkError when one of them cannot be placed, or is there."""
        ...

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk, *, force: bool) -> Pipeline[object]: ...


@dataclass(frozen=True)
class RawDirectory:
    """One sparse raw image per disk: DIRECTORY/scsi0-0.raw. One restore at a time."""

    directory: Path

    def place(self, disk: StoredDisk) -> Path:
        return self.directory / f"{image_name(disk.key)}.raw"

    @contextmanager
    def prepared(self, disks: Sequence[StoredDisk], *, force: bool) -> Iterator[None]:
        places = [self.place(disk) for disk in disks]
        if len({place.name.casefold() for place in places}) < len(places):
            raise SinkError(
                f"The disks of this point have names that differ in case only: {', '.join(d.key for d in disks)}.",
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

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk, *, force: bool) -> Pipeline[object]:
        return flow | RawFile(self.place(disk), disk.capacity, force)


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


@dataclass(frozen=True)
class Proof:
    """Reads and proves everything and writes nothing: a scheduled proof that a point can be restored."""

    def place(self, disk: StoredDisk) -> None:
        return None

    def prepared(self, disks: Sequence[StoredDisk], *, force: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def pipeline(self, flow: Flow[Span | Zeros], disk: StoredDisk, *, force: bool) -> Pipeline[object]:
        return flow | NullSink()


@dataclass(frozen=True)
class RestoredDisk:
    """A disk whose hash tree was proved up to `root` while it was read and written. Bytes, seconds."""

    key: str
    path: Path | None
    capacity: int
    data: int
    root: str
    wall_s: float


@dataclass(frozen=True)
class RestoreReceipt:
    """What became of the disks of a point; `failures` holds what kept the others from being restored."""

    point: RestorePoint
    disks: Sequence[RestoredDisk]
    failures: Sequence[TransferFailed]


def parse_target(text: str) -> RestoreTarget:
    """`raw:DIRECTORY` or `null:`. Raises ConfigError."""
    kind, _, place = text.partition(":")
    if kind == "raw" and place:
        return RawDirectory(Path(place))
    if text == "null:":
        return Proof()
    raise ConfigError(
        f"{text!r} is no target of a restore.", remedy="Write raw:DIRECTORY, or null: for a proof alone."
    )


async def restore(
    reader: RepositoryReader,
    point: RestorePoint,
    target: RestoreTarget,
    *,
    keys: Sequence[str] = (),
    force: bool = False,
    watch: DiskWatch | None = None,
) -> RestoreReceipt:
    """Restore the disks of a point, or those named by `keys`.

    Args:
        force: replace what is there already.

    Raises:
        ConfigError: the point has no such disk.
        SinkError: a target is there already or cannot be written; then nothing was written.
    """
    for key in keys:
        if point.disk(key) is None:
            known = ", ".join(disk.key for disk in point.disks)
            raise ConfigError(f"Point {point.id} has no disk {key!r}.", remedy=f"It has: {known}.")
    wanted = [disk for disk in point.disks if not keys or disk.key in keys]
    pool = BufferPool()
    limiter = trio.CapacityLimiter(DISKS_AT_ONCE)
    restored: dict[str, RestoredDisk] = {}
    failures: list[TransferFailed] = []

    async def restore_disk(disk: StoredDisk) -> None:
        observe = None if watch is None else partial(watch, disk)
        flow: Flow[Span | Zeros] = Flow(ReadPoint(reader, point, disk.key, pool=pool))
        async with limiter:
            try:
                report = await target.pipeline(flow, disk, force=force).measure(observe)
            except TransferFailed as failed:
                failures.append(failed)
                return
        restored[disk.key] = RestoredDisk(
            key=disk.key,
            path=target.place(disk),
            capacity=disk.capacity,
            data=report.stages[0].bytes,
            root=disk.receipt.root,
            wall_s=report.wall_s,
        )

    with target.prepared(wanted, force=force):
        async with trio.open_nursery() as nursery:
            for disk in wanted:
                nursery.start_soon(restore_disk, disk)
    return RestoreReceipt(point, [restored[disk.key] for disk in wanted if disk.key in restored], failures)
