"""An OVA: one tar of a VM's OVF descriptor, its manifest and its disks as streamOptimized VMDKs.

    name.ovf | name.mf | name-disk1.vmdk | name-disk2.vmdk | name.nvram

The sizes and digests of the disks are known at the end. The descriptor and the manifest have their room in front
from the beginning, and are written last; no disk is written twice.
"""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio
from trio.abc import ReceiveChannel

from pipeline import BufferPool, ConfigError, Pipeline, Sink, SinkError
from vadpipe.files import write_at
from vadpipe.ovf import DiskImage, Hardware, PackedFile, descriptor, hardware
from vadpipe.repository.format.restore_point import StoredDisk
from vadpipe.vmdk.stream import LEVEL, DeflateGrains, StreamPiece, stream_optimized
from vadpipe.vmdk.vmx import NVRAM_DOCUMENT

from .images import image_name
from .raw import NewFile, new_file, translated
from .restoring import Contents, OpenTarget
from .vmdk import STREAM, check_format, disk_facts

_BLOCK: Final = tarfile.BLOCKSIZE
_LARGEST: Final = 1 << 60  # a size that has as many digits as any other
_LONGEST_NAME: Final = 60


@dataclass(frozen=True)
class Ova:
    """All disks of the restore and the VM's description in one file.

    Args:
        path: The file.
        level: zlib's level, 1 to 9.

    Raises:
        ConfigError: The level is out of range.
    """

    path: Path
    level: int = LEVEL

    def __post_init__(self) -> None:
        DeflateGrains(self.level)

    @asynccontextmanager
    async def open(self, contents: Contents) -> AsyncIterator[OpenTarget]:
        """Raises ConfigError for a disk that no VMDK can hold, SinkError, IntegrityError."""
        if not self.path.name:
            raise ConfigError("ova: needs the name of a file.", remedy="Write ova:/restore/web01.ova.")
        for disk in contents.disks:
            check_format(STREAM, disk.capacity)
        nvram = await contents.document(NVRAM_DOCUMENT)
        if self.path.is_dir():
            raise SinkError(f"{self.path} is a directory.", remedy="Give the name of a file in it.")
        async with new_file(self.path, force=contents.force) as file:
            yield _OpenOva(self, contents, _Package(file.descriptor, contents, nvram), file)


class _Package:
    """The tar in the making. `members` have their name, size and digest, in the order of the file."""

    def __init__(self, file: int, contents: Contents, nvram: bytes | None) -> None:
        self.file = file
        self.machine: Hardware = hardware(contents.point.machine.name, contents.point.configuration)
        base = image_name(contents.point.machine.name)
        self.base = base if len(base) <= _LONGEST_NAME else "vm"
        self.nvram = nvram
        self.disks = [
            DiskImage(disk.key, f"{self.base}-disk{number}.vmdk", disk.capacity)
            for number, disk in enumerate(contents.disks, 1)
        ]
        self.members: list[tuple[PackedFile, str]] = []
        names = [disk.file for disk in self.disks] + ([f"{self.base}.nvram"] if nvram is not None else [])
        largest = [PackedFile(name, _LARGEST) for name in names]
        self._descriptor_room = len(self._descriptor(largest))
        self._manifest_room = len(self._manifest([(file.name, "0" * 64) for file in largest], b""))
        # Behind the headers and contents of both.
        self.end = 2 * _BLOCK + _up(self._descriptor_room) + _up(self._manifest_room)

    def write(self, content: bytes | memoryview, place: int) -> None:
        write_at(self.file, content, place)

    def add(self, name: str, size: int, digest: str) -> None:
        """The header of a member whose content is there already, behind the room for the header."""
        self.write(_header(name, size), self.end)
        self.members.append((PackedFile(name, size), digest))
        self.end += _BLOCK + _up(size)

    def complete(self) -> None:
        """The NVRAM, the end of the tar, then the descriptor and the manifest. Raises OSError."""
        if self.nvram is not None:
            self.write(self.nvram, self.end + _BLOCK)
            self.add(f"{self.base}.nvram", len(self.nvram), sha256(self.nvram).hexdigest())
        text = self._descriptor([file for file, _ in self.members])
        text += b"\n" * (self._descriptor_room - len(text))
        manifest = self._manifest([(file.name, digest) for file, digest in self.members], text)
        self.write(_header(f"{self.base}.ovf", len(text)) + text, 0)
        place = _BLOCK + _up(len(text))
        self.write(_header(f"{self.base}.mf", len(manifest)) + manifest, place)
        os.truncate(self.file, -(-(self.end + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)

    def _descriptor(self, files: Sequence[PackedFile]) -> bytes:
        nvram = f"{self.base}.nvram" if self.nvram is not None else ""
        return descriptor(self.machine, self.disks, files, nvram)

    def _manifest(self, digests: Sequence[tuple[str, str]], text: bytes) -> bytes:
        own = (f"{self.base}.ovf", sha256(text).hexdigest())
        return "".join(f"SHA256({name})= {digest}\n" for name, digest in [own, *digests]).encode()


def _header(name: str, size: int) -> bytes:
    """The header of a member; a size of 8 GiB and more is written as GNU tar does."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, int(time.time())
    return member.tobuf(tarfile.GNU_FORMAT)


def _up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@dataclass(frozen=True, eq=False)
class _IntoPackage(Sink[StreamPiece, int]):
    """The bytes of a VMDK in, appended to the package; returns how many."""

    package: _Package
    name: str
    path: Path

    async def run(self, inbox: ReceiveChannel[StreamPiece]) -> int:
        size, digest = 0, sha256()
        with translated(self.path):
            async for piece in inbox:
                place = self.package.end + _BLOCK + size
                await trio.to_thread.run_sync(self._take, piece.content, place, digest.update)
                size += len(piece.content)
            self.package.add(self.name, size, digest.hexdigest())
        return size

    def _take(self, content: bytes, place: int, update: Callable[[bytes], None]) -> None:
        update(content)
        self.package.write(content, place)


@dataclass(frozen=True)
class _OpenOva:
    settings: Ova
    contents: Contents
    package: _Package
    file: NewFile
    turn: trio.Lock = field(default_factory=trio.Lock)  # a tar has one disk behind the other

    def place(self, disk: StoredDisk) -> str:
        return str(self.settings.path)

    @asynccontextmanager
    async def pipeline(self, disk: StoredDisk, pool: BufferPool) -> AsyncIterator[Pipeline[object]]:
        name = next(each.file for each in self.package.disks if each.key == disk.key)
        stream = stream_optimized(
            self.contents.read(disk, pool),
            disk.capacity,
            name=name,
            facts=disk_facts(self.contents.point, disk.key),
            level=self.settings.level,
        )
        async with self.turn:
            yield stream | _IntoPackage(self.package, name, self.settings.path)

    async def finish(self) -> Sequence[str]:
        with translated(self.settings.path):
            await trio.to_thread.run_sync(self.package.complete)
        await self.file.publish()
        remarks = list(self.package.machine.assumed)
        if self.package.machine.nics:
            remarks.append("An OVA holds no MAC addresses: the import makes new ones.")
        return remarks
