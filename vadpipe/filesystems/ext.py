"""ext2, ext3 and ext4 by dissect.extfs.

The library reads superblock, inodes, extent trees and attributes. Directories are read here: version 3.15 of it
leaves out an entry of 12 bytes at the end of one, and does not know those inside an inode. Runs are made here, so
that holes are known and overlaps are refused.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Any, Final

from dissect.extfs import extfs

from .contract import Content, Entry, Kind
from .sources import FileContent, Runs, Source, file_of
from .translation import RecordFileSystem, reading

_ROOT: Final = 2
_EXTENTS, _INLINE, _ENCRYPTED = 0x80000, 0x10000000, 0x800  # flags of an inode
_RECOVER: Final = 0x4  # incompat: the journal is to be replayed
_BLOCK_SIZE: Final = 1024 + 24  # where the superblock has it, as a logarithm, less 10
_LARGEST_BLOCK: Final = 6  # 64 KiB (EXT4_MAX_BLOCK_LOG_SIZE)
_IN_INODE: Final = 60  # bytes of i_block
_DIRECT: Final = 12
_INITIALIZED: Final = 0x8000  # extents that are longer are allocated, but not written: they read as zero

KINDS: Final = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}


class Ext(RecordFileSystem):
    """An ext file system. Raises Unreadable, MoverError."""

    reader = "dissect.extfs"

    def __init__(self, source: Source, title: str) -> None:
        self._source, self._title = source, title
        with reading(source, f"The ext file system of {title}"):
            (block,) = struct.unpack("<I", source.read_at(_BLOCK_SIZE, 4))
            if block > _LARGEST_BLOCK:  # the library would shift by any number
                raise ValueError(f"its blocks have 2^{10 + block} bytes")
            self._fs = extfs.ExtFS(file_of(source))
            self.label = str(self._fs.volume_name)
            dirty = self._fs.sb.s_feature_incompat & _RECOVER
            self.notes = ["Its journal was not replayed: what changed last may be missing."] if dirty else []

    def link(self, entry: Entry) -> str:
        with reading(self._source, f"Link {entry.name!r} of {self._title}"):
            inode: Any = entry.node
            if inode.size > 4096:
                raise ValueError(f"it is {inode.size} bytes long")
            if not inode.inode.i_flags & _INLINE and inode.size < _IN_INODE:
                target = bytes(inode.inode.i_block)[: inode.size]
            else:
                target = self._content(inode).read(0, inode.size)
            return target.decode("utf-8", "surrogateescape")

    def _root(self) -> int:
        return _ROOT

    def _entry(self, name: str, number: int) -> Entry:
        inode = self._fs.get_inode(number, name)
        raw = inode.inode
        kind = KINDS.get(stat.S_IFMT(raw.i_mode), Kind.SPECIAL)
        why = "it is encrypted by the guest (fscrypt)" if raw.i_flags & _ENCRYPTED else ""
        return Entry(
            name,
            kind,
            inode.size,
            inode.mtime_ns,
            stat.S_IMODE(raw.i_mode),
            number,
            unreadable=why,
            node=inode,
        )

    def _names(self, directory: Entry) -> Iterator[tuple[str, int]]:
        inode: Any = directory.node
        content = self._content(inode)
        if inode.inode.i_flags & _INLINE:
            whole = content.read(0, content.size)
            yield from self._rows(whole[4:_IN_INODE])
            yield from self._rows(whole[_IN_INODE:])
            return
        size = self._fs.block_size
        for start, length in content.extents():
            for offset in range(start, min(start + length, content.size), size):
                yield from self._rows(content.read(offset, min(size, content.size - offset)))

    def _rows(self, block: bytes) -> Iterator[tuple[str, int]]:
        at = 0
        has_types = self._fs._dirtype is extfs.c_ext.ext2_dir_entry_2
        while at + 8 <= len(block):
            number, step, length = struct.unpack_from("<IHH", block, at)
            if has_types:
                length &= 0xFF
            if step < 8 or at + step > len(block) or 8 + length > step:
                raise ValueError(f"an entry of {step} bytes with a name of {length}")
            name = block[at + 8 : at + 8 + length]
            if number and name not in (b".", b"..", b""):
                yield name.decode("utf-8", "surrogateescape"), number
            at += step

    def _content(self, node: Any, stream: str = "") -> Content:  # noqa: ANN401 - of a library without types
        raw, size = node.inode, node.size
        block = self._fs.block_size
        if raw.i_flags & _INLINE:
            whole = bytes(raw.i_block)
            if size > _IN_INODE:
                whole += next(each.value for each in node.xattr if each.name == "system.data")
            return FileContent(file_of(_Held(whole[:size])), size)
        if raw.i_flags & _EXTENTS:
            runs: list[tuple[int | None, int]] = []
            end = 0
            for extent in extfs._parse_extents(node, file_of(_Held(bytes(raw.i_block)))):
                count = extent.ee_len
                written = count <= _INITIALIZED
                count -= 0 if written else _INITIALIZED
                if extent.ee_block < end:
                    raise ValueError(f"its extents overlap at block {extent.ee_block}")
                place = ((extent.ee_start_hi << 32) | extent.ee_start_lo) * block
                runs.append((None, (extent.ee_block - end) * block))
                runs.append((place if written else None, count * block))
                end = extent.ee_block + count
            return Runs(self._source, runs, size)
        return Runs(self._source, list(self._mapped(bytes(raw.i_block), -(-size // block))), size)

    def _mapped(self, pointers: bytes, left: int) -> Iterator[tuple[int | None, int]]:
        """The runs of a block map, of `left` blocks; neighbours are put together by `Runs`."""
        block = self._fs.block_size
        numbers = struct.unpack("<15I", pointers)
        for number in numbers[: min(_DIRECT, left)]:
            yield (number * block if number else None), block
        left -= _DIRECT
        for level, number in enumerate(numbers[_DIRECT:], 1):
            if left <= 0:
                return
            yield from self._indirect(number, level, left)
            left -= (block // 4) ** level

    def _indirect(self, number: int, level: int, left: int) -> Iterator[tuple[int | None, int]]:
        block = self._fs.block_size
        covered = (block // 4) ** level
        if not number:
            yield None, min(left, covered) * block
            return
        content = self._source.read_at(number * block, block)
        each = covered // (block // 4)
        for (child,) in struct.iter_unpack("<I", content):
            if left <= 0:
                return
            if level == 1:
                yield (child * block if child else None), block
            else:
                yield from self._indirect(child, level - 1, left)
            left -= each


class _Held:
    """Bytes as a source."""

    failure = None

    def __init__(self, content: bytes) -> None:
        self._content, self.size = content, len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]
