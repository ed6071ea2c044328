"""VMDK images: sparse, flat, split and stream-optimized, written by our own kernels.

The descriptor names the other files of an image and gets its name last: what cannot be opened is not there. The
other files are never replaced while an older descriptor still names them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, cast

import trio
from trio.abc import ReceiveChannel

from pipeline import BufferPool, ConfigError, MiB, Pipeline, Sink, Span, Zeros
from vadpipe.files import (
    create,
    flush_directory,
    publish,
    temporary_beside,
    write_all,
    write_at,
    write_durably,
)
from vadpipe.repository.format.restore_point import RestorePoint, StoredDisk
from vadpipe.vmdk.build import GRAIN, LAST_PLACE, Bytes, GrainCutter, SparseExtent, Write, held_grains
from vadpipe.vmdk.describe import ADAPTERS, DiskFacts, WrittenExtent, adapter_of, describe, disk_uuid
from vadpipe.vmdk.descriptor import SECTOR
from vadpipe.vmdk.stream import LEVEL, DeflateGrains, StreamPiece, stream_optimized

from .images import image_name, open_images
from .raw import check_end, new_file, released, translated, whole_disk, write_span
from .restoring import Contents, OpenTarget

SPARSE: Final = "monolithicSparse"
FLAT: Final = "monolithicFlat"
SPLIT: Final = "twoGbMaxExtentSparse"
STREAM: Final = "streamOptimized"
FORMATS: Final = (SPARSE, FLAT, SPLIT, STREAM)

SPLIT_EXTENT: Final = 2047 * MiB  # 4192256 sectors: what VMware's products write


@dataclass(frozen=True)
class VmdkReceipt:
    """A finished image. `written` is bytes of data in it; of a streamOptimized one, bytes of the file."""

    path: Path
    capacity: int
    written: int


def image_files(stem: str, capacity: int, form: str) -> Sequence[str]:
    """The names of the files of an image; the first one is the descriptor, or the only file."""
    first = f"{stem}.vmdk"
    if form == FLAT:
        return [first, f"{stem}-flat.vmdk"]
    if form == SPLIT:
        count = -(-capacity // SPLIT_EXTENT)
        return [first, *(f"{stem}-s{number:03}.vmdk" for number in range(1, count + 1))]
    return [first]


def check_format(form: str, capacity: int) -> None:
    """Raises ConfigError for what is no format, and for a disk that it cannot hold."""
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is no format of a VMDK.", remedy=f"Write one of {', '.join(FORMATS)}.")
    if capacity <= 0 or capacity % SECTOR:
        raise ConfigError(
            f"A VMDK has whole sectors of {SECTOR} bytes; the disk has {capacity} bytes.",
            remedy="Take raw: or qcow2:.",
        )
    if form == SPARSE and SparseExtent(capacity, b"").overhead + capacity > LAST_PLACE:
        raise ConfigError(
            f"A {SPARSE} VMDK has at most 2 TiB with its tables; the disk has {capacity} bytes.",
            remedy=f"Write format={SPLIT}, {FLAT} or {STREAM}, or take raw: or qcow2:.",
        )


@dataclass(frozen=True)
class VmdkFile(Sink[Span | Zeros, VmdkReceipt]):
    """Spans of a whole disk in, a VMDK out: monolithicSparse, monolithicFlat or twoGbMaxExtentSparse.

    In: spans and zeros, ascending, covering [0, capacity).
    Grains of zeros are not written. The image can be opened only when it is complete and durable.
    Memory: one span. Cancel: nothing remains.
    Raises: SinkError when the target cannot be written, or exists and `force` is false; ConfigError when the format
    cannot hold the disk; ContractError when the input does not cover the disk.

    A streamOptimized image has a path of its own: `stream_optimized(...) | StreamFile(path, capacity)`.
    """

    path: Path
    capacity: int
    form: str = SPARSE
    facts: DiskFacts = field(default_factory=DiskFacts)
    force: bool = False

    def __post_init__(self) -> None:
        check_format(self.form, self.capacity)
        if self.form == STREAM:
            raise ConfigError(
                f"VmdkFile does not write {STREAM}.",
                remedy="Write stream_optimized(...) | StreamFile(path, capacity).",
            )

    async def run(self, inbox: ReceiveChannel[Span | Zeros]) -> VmdkReceipt:
        reached = written = 0
        with translated(self.path):
            stack = ExitStack()
            try:
                image = await trio.to_thread.run_sync(_Image, self, stack)
                async for item in inbox:
                    with released(item):
                        reached = whole_disk(item, reached)
                        if isinstance(item, Span):
                            written += await trio.to_thread.run_sync(image.write, item)
                check_end(reached, self.capacity)
                written += await trio.to_thread.run_sync(image.finish)
                await trio.to_thread.run_sync(image.publish)
            finally:
                with trio.CancelScope(
                    shield=True
                ):  # short, or as long as the disk takes to close a large file
                    await trio.to_thread.run_sync(stack.close)
        return VmdkReceipt(self.path, self.capacity, written)


class _Part:
    """A data file in the making, for [start, start + length) of the disk; `extent` unless it is flat."""

    def __init__(self, start: int, length: int, extent: SparseExtent | None) -> None:
        self.start, self.length, self.extent = start, length, extent
        self._descriptor = -1

    def open(self, unfinished: Path) -> None:
        self._descriptor = create(unfinished)
        os.truncate(self._descriptor, self.length if self.extent is None else self.extent.overhead)
        if self.extent is not None:
            self._put(self.extent.front())

    def span(self, span: Span) -> int:
        return write_span(self._descriptor, span)

    def grains(self, first: int, content: Bytes) -> None:
        assert self.extent is not None
        self._put(self.extent.grains(first - self.start // GRAIN, content))

    def finish(self) -> None:
        if self.extent is not None:
            self._put(self.extent.end())
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _put(self, writes: Iterable[Write]) -> None:
        for each in writes:
            write_at(self._descriptor, each.content, each.place)


class _Image:
    """The files of an image in the making, under names of their own. Part after part is opened and finished."""

    def __init__(self, settings: VmdkFile, stack: ExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._final = settings.path
        names = image_files(self._final.stem, settings.capacity, settings.form)
        self._finals = [self._final.with_name(name) for name in names[1:]] or [self._final]
        if not settings.force:
            for path in (self._final, *self._finals):
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._final.parent.mkdir(parents=True, exist_ok=True)
        size = SPLIT_EXTENT if settings.form == SPLIT else settings.capacity
        self._lengths = [min(size, settings.capacity - start) for start in range(0, settings.capacity, size)]
        kind = "FLAT" if settings.form == FLAT else "SPARSE"
        extents = [
            WrittenExtent(length, kind, path.name)
            for length, path in zip(self._lengths, self._finals, strict=True)
        ]
        self._text = describe(settings.form, settings.capacity, extents, settings.facts)
        self._cutter = GrainCutter(settings.capacity)
        self._unfinished: list[Path] = []
        self._part = self._opened()

    def write(self, span: Span) -> int:
        """Returns bytes of data that were written."""
        if self._part.extent is None:
            return self._part.span(span)
        return self._grains(self._cutter.cut(span))

    def finish(self) -> int:
        """Write what is left and make everything durable. Returns bytes of data that were written."""
        written = self._grains(self._cutter.end())
        self._part.finish()
        while len(self._unfinished) < len(self._finals):
            self._next()
            self._part.finish()
        return written

    def publish(self) -> None:
        """Give the files their names, the descriptor last."""
        force = self._settings.force
        if self._finals == [self._final]:
            publish(self._unfinished[0], self._final, replace=force)
            return
        descriptor = self._temporary()
        write_durably(descriptor, self._text)
        if force:  # it names files that are replaced now
            self._final.unlink(missing_ok=True)
            flush_directory(self._final.parent)
        named: list[Path] = []
        try:
            for unfinished, final in zip(self._unfinished, self._finals, strict=True):
                publish(unfinished, final, replace=force)
                named.append(final)
            publish(descriptor, self._final, replace=force)
        except BaseException:
            for final in named:
                final.unlink(missing_ok=True)
            raise

    def _grains(self, pieces: Iterable[tuple[int, Bytes]]) -> int:
        written = 0
        for number, piece in pieces:
            for first, content in held_grains(number, piece):
                written += len(content)
                while len(content):
                    while first * GRAIN >= self._part.start + self._part.length:
                        self._part.finish()
                        self._next()
                    size = min(
                        len(content),
                        -(-(self._part.start + self._part.length) // GRAIN) * GRAIN - first * GRAIN,
                    )
                    self._part.grains(first, content[:size])
                    content, first = content[size:], first + size // GRAIN
        return written

    def _next(self) -> None:
        self._part = self._opened()

    def _opened(self) -> _Part:
        number = len(self._unfinished)
        settings, start = self._settings, number * SPLIT_EXTENT
        length = self._lengths[number]
        extent = None
        if settings.form != FLAT:
            extent = SparseExtent(length, self._text if settings.form == SPARSE else None)
        part = _Part(start, length, extent)
        self._unfinished.append(self._temporary())
        self._stack.callback(part.close)
        part.open(self._unfinished[-1])
        return part

    def _temporary(self) -> Path:
        unfinished = temporary_beside(self._final)
        self._stack.callback(partial(unfinished.unlink, missing_ok=True))
        return unfinished


@dataclass(frozen=True)
class StreamFile(Sink[StreamPiece, VmdkReceipt]):
    """The bytes of a streamOptimized VMDK in, a file out, which gets its name when it is complete and durable.

    Memory: one piece. Cancel: nothing remains.
    Raises: SinkError when the target cannot be written, or exists and `force` is false.
    """

    path: Path
    capacity: int
    force: bool = False

    async def run(self, inbox: ReceiveChannel[StreamPiece]) -> VmdkReceipt:
        written = 0
        async with new_file(self.path, force=self.force) as file:
            async for piece in inbox:
                await trio.to_thread.run_sync(write_all, file.descriptor, [piece.content])
                written += len(piece.content)
            await file.publish()
        return VmdkReceipt(self.path, self.capacity, written)


@dataclass(frozen=True)
class VmdkDirectory:
    """One VMDK per disk: DIRECTORY/VM/POINT/scsi0-0.vmdk, and its data files beside it.

    Args:
        directory: Where the directories of VMs are made.
        form: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse or streamOptimized.
        level: zlib's level for streamOptimized, 1 to 9.

    Raises:
        ConfigError: A setting is out of range.
    """

    directory: Path
    form: str = SPARSE
    level: int = LEVEL

    def __post_init__(self) -> None:
        check_format(self.form, SPLIT_EXTENT)
        DeflateGrains(self.level)

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises ConfigError for a disk that the format cannot hold, SinkError."""
        for disk in contents.disks:
            check_format(self.form, disk.capacity)

        def files(disk: StoredDisk) -> Sequence[str]:
            return image_files(image_name(disk.key), disk.capacity, self.form)

        @asynccontextmanager
        async def write(disk: StoredDisk, path: Path, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
            facts = disk_facts(contents.point, disk.key)
            spans = contents.read(disk, pool)
            if self.form == STREAM:
                stream = stream_optimized(spans, disk.capacity, name=path.name, facts=facts, level=self.level)
                yield stream | StreamFile(path, disk.capacity, contents.force)
            else:
                yield spans | VmdkFile(path, disk.capacity, self.form, facts, contents.force)

        async with open_images(self.directory, contents, files, write) as opened:
            yield opened


def disk_facts(point: RestorePoint, key: str) -> DiskFacts:
    """What a point says of a disk, for its descriptor."""
    configuration = point.configuration
    disks = configuration.get("disks")
    adapter, uuid, controller = "", "", ""
    if isinstance(disks, Mapping):  # of a local VM: the facts of each link, the leaf first
        links = disks.get(key) or [{}]
        database = links[-1].get("database", {})
        adapter, uuid = str(database.get("ddb.adapterType", "")), str(database.get("ddb.uuid", ""))
    elif isinstance(disks, Sequence):
        uuid = next((str(disk.get("uuid") or "") for disk in disks if disk.get("key") == key), "")
        bus = key.partition(":")[0]
        controllers = cast("Sequence[Mapping[str, object]]", configuration.get("controllers") or ())
        controller = next((str(one.get("type")) for one in controllers if one.get("key") == bus), "")
    version = re.fullmatch(r"vmx-(\d{1,4})", str(configuration.get("hardware_version", "")))
    return DiskFacts(
        adapter=adapter if adapter in ADAPTERS else adapter_of(key, controller),
        hardware_version=int(version[1]) if version else DiskFacts.hardware_version,
        uuid=disk_uuid(uuid),
    )
