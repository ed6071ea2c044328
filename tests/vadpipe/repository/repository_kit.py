"""What the tests of the repository share: a disk in memory, and backing it up and restoring it with real stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import trio
from blake3 import blake3

from pipeline import (
    DIGEST_SIZE,
    BufferPool,
    ChangedAreas,
    Disk,
    DiskReceipt,
    EncodedFrame,
    Extents,
    Flow,
    FramedSpan,
    Gap,
    Job,
    KiB,
    MachineId,
    MiB,
    Pipeline,
    Source,
    Span,
    Window,
)
from pipeline.testing.fakes import FakeMachine
from stages import (
    AllocatedExtents,
    ChangedExtents,
    Codec,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MarkZeros,
    ReadSpans,
    Refine,
    Uncompressed,
    Zstd,
)
from vadpipe.repository.backends.contract import Backend, Parts, Stored, Upload
from vadpipe.repository.format.config import Config, Origin, read_config
from vadpipe.repository.format.objects import Objects
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.into_repository import IntoRepository
from vadpipe.repository.point import Point
from vadpipe.repository.reader import ReadPoint, RepositoryReader
from vadpipe.repository.store import Repository

MACHINE = MachineId("00000000-0000-0000-0000-000000000001", "fake")
POOL = BufferPool()


@dataclass
class MemoryDisk:
    """A disk whose content is an array, with change tracking over `write`."""

    content: np.ndarray
    key: str = "scsi0:0"
    label: str = "Hard disk 1"
    pool: BufferPool = POOL
    holes: Extents = field(default_factory=Extents.empty)
    written: list[tuple[int, int]] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        return len(self.content)

    @property
    def change_id(self) -> str:
        return f"{len(self.written)}"

    def write(self, offset: int, data: np.ndarray) -> None:
        self.content[offset : offset + len(data)] = data
        self.written.append((offset, len(data)))

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        return Extents.whole(length, offset) - self.holes

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        await trio.lowlevel.checkpoint()
        length = self.capacity - offset
        return ChangedAreas(offset, length, Extents.of(self.written[int(since) :]).within(offset, length))

    async def read(self, buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        for start, length in wanted:
            buffer.array[start - offset : start - offset + length] = self.content[start : start + length]


def fixed_origin() -> Origin:
    """Ids, keys and times that are the same in every run."""
    drawn, hour = count(), count()
    return Origin(
        random=lambda size: blake3(b"%d" % next(drawn)).digest(size),
        now=lambda: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=next(hour)),
    )


def full_path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return _into(AllocatedExtents(disk), disk, point, Zstd())


def incremental_path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return _into(ChangedExtents(disk, point.previous(disk)), disk, point, Zstd())


def stored_path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    """Uncompressed: what is stored does not hang on the version of zstd."""
    return _into(ChangedExtents(disk, point.previous(disk)), disk, point, Uncompressed())


def framed_path(extents: Source[Window], disk: Disk, identity, index, codec: Codec) -> Flow[FramedSpan | Gap]:
    """All but the sink."""
    return (
        extents
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(identity)
        | Refine(index, disk)
        | Dedupe(index)
        | Compress(codec)
    )


def _into(extents: Source[Window], disk: Disk, point: Point, codec: Codec) -> Pipeline[DiskReceipt]:
    return framed_path(extents, disk, point, point, codec) | IntoRepository(point, disk)


async def backup(repository: Repository, disks: Sequence[Disk], path=full_path, **machine) -> str:
    receipt = await Job(FakeMachine(disks, **machine), path, repository).run()
    return receipt.point


def two_points(repository: Repository) -> Repository:
    """Make a repository with two points: a disk of 2 MiB, and its first MiB written anew."""
    repository.init()
    disk = MemoryDisk(random_bytes(1, 2 * MiB))
    trio.run(backup, repository, [disk], incremental_path)
    disk.write(0, random_bytes(2, MiB))
    trio.run(backup, repository, [disk], incremental_path)
    return repository


async def restore(reader: RepositoryReader, point: RestorePoint, key: str = "scsi0:0") -> np.ndarray:
    """The whole disk; asserts that the items cover it."""
    disk = point.disk(key)
    assert disk is not None
    content = np.zeros(disk.capacity, dtype=np.uint8)
    reached = 0
    async with Flow(ReadPoint(reader, point, key, pool=POOL)).open() as items:
        async for item in items:
            assert item.offset == reached
            reached += item.length
            if isinstance(item, Span):
                assert (item.data | item.zeros) == Extents.whole(item.length, item.offset)
                for offset, length in item.data:
                    content[offset : offset + length] = item.bytes_of(offset, length)
                item.release()
    assert reached == disk.capacity
    return content


def framed(point, offset, content):
    """A span of `content` as one new frame of one chunk per 64 KiB, promised to the point."""
    size = 64 * KiB
    length = np.array([min(size, len(content) - low) for low in range(0, len(content), size)], dtype=np.int64)
    place = np.cumsum(length) - length
    names = [point.identity.digest(content[low : low + size]) for low in place.tolist()]
    digest = np.frombuffer(b"".join(names), np.uint8).reshape(-1, 32)
    placed = point.assign(digest, place + offset, length)
    (number,) = [frame.number for frame in placed.frames]
    frame = EncodedFrame(number, "raw", len(content), content.tobytes(), length, digest)
    return FramedSpan(
        offset=offset,
        length=len(content),
        identity=point.identity,
        data=Extents.whole(len(content), offset),
        zeros=Extents.empty(),
        chunk_offset=place + offset,
        chunk_length=length,
        chunk_frame=np.full(len(length), number, np.uint64),
        chunk_place=place,
        known=np.zeros(len(length), np.bool_),
        frames=[frame],
    )


def disk_of(capacity):
    return MemoryDisk(np.zeros(capacity, np.uint8))


def random_bytes(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def digests(names):
    """One digest per name. Names that agree modulo 8 agree in their first eight bytes, too."""
    table = np.zeros((len(names), DIGEST_SIZE), dtype=np.uint8)
    for row, name in enumerate(names):
        table[row, 0] = name % 8
        table[row, 20:24] = np.frombuffer(np.uint32(name).tobytes(), np.uint8)
    return table


def opened(repository: Repository) -> tuple[Objects, Config]:
    """The objects and the config of a repository; of any version."""
    backend = repository.backend()
    config = read_config(backend, repository.unlock, repository.origin)
    return Objects(backend, config.version), config


def content_of(repository: Repository) -> dict[str, bytes]:
    """All objects of a repository, and the files of a directory that have no name yet."""
    if isinstance(repository.place, str):
        return files_of(repository.path)
    return {found.name: repository.place.read(found.name) for found in repository.place.list("")}


def overwrite(repository: Repository, name: str, content: bytes) -> None:
    """What damages a repository, or forges."""
    repository.backend().replace(name, [content])


def names(repository: Repository, prefix: str = "") -> list[str]:
    """The objects of a repository whose names begin with `prefix`."""
    return [found.name for found in repository.backend().list(prefix)]


class Watched:
    """A backend that tells a function of each call before it is made: what is done, and to which name."""

    def __init__(self, backend: Backend, watch: Callable[[str, str], None]) -> None:
        self._backend = backend
        self._watch = watch

    def put(self, name: str, parts: Parts) -> None:
        self._watch("put", name)
        self._backend.put(name, parts)

    def begin(self, name: str) -> WatchedUpload:
        self._watch("begin", name)
        return WatchedUpload(self._backend.begin(name), name, self._watch)

    def replace(self, name: str, parts: Parts) -> None:
        self._watch("replace", name)
        self._backend.replace(name, parts)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._watch("read", name)
        return self._backend.read(name, offset, length)

    def size(self, name: str) -> int:
        self._watch("size", name)
        return self._backend.size(name)

    def list(self, prefix: str) -> Iterator[Stored]:
        self._watch("list", prefix)
        return self._backend.list(prefix)

    def names(self, prefix: str) -> Iterator[str]:
        self._watch("list", prefix)
        return self._backend.names(prefix)

    def delete(self, names: Iterable[str]) -> None:
        """One by one, as a process can die between any two."""
        for name in names:
            self._watch("delete", name)
            self._backend.delete([name])

    def place(self, name: str = "") -> str:
        return self._backend.place(name)

    def close(self) -> None:
        self._backend.close()


@dataclass
class WatchedUpload:
    """An object of a Watched in the making."""

    upload: Upload
    name: str
    watch: Callable[[str, str], None]

    def write(self, parts: Parts) -> None:
        self.upload.write(parts)

    def finish(self) -> None:
        self.watch("finish", self.name)
        self.upload.finish()

    def abort(self) -> None:
        self.upload.abort()


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def mixed_content(capacity, seed=1):
    """Random, repeated, zero and sparse regions."""
    content = random_bytes(seed, capacity)
    content[: 256 * KiB] = content[512 * KiB : 768 * KiB]
    content[MiB : 2 * MiB] = 0
    content[capacity // 2 : capacity // 2 + 100 * KiB] = 0
    return content
