"""XFS by dissect.xfs.

The library reads inodes, extent trees and short directories. Other directories, and which extents were written, are
read here: version 3.13 of it knows one size of directory blocks, and takes what was only allocated for data.

Source: XFS Algorithms & Data Structures, chapters "Data Extents" and "Directories".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from dissect.xfs import xfs

from .contract import Content, Entry, Kind
from .ext import KINDS
from .sources import FileContent, Runs, Source, file_of
from .translation import RecordFileSystem, reading

_LOCAL: Final = 1  # a format of an inode's data: inside the inode
_REALTIME: Final = 1  # a flag of an inode
_FREE: Final = 0xFFFF
_HEADERS: Final = {b"XDB3": 64, b"XDD3": 64, b"XD2B": 16, b"XD2D": 16}
_WITH_TAIL: Final = (b"XDB3", b"XD2B")
_LARGEST_BLOCK: Final = 65536
_LARGEST_DIRECTORY: Final = 32 << 30  # what lies behind is the index of the names (XFS_DIR2_LEAF_OFFSET)


class Xfs(RecordFileSystem):
    """An XFS file system. Raises Unreadable, MoverError."""

    reader = "dissect.xfs"
    notes: Sequence[str] = ("Its log was not replayed: what changed last may be missing.",)

    def __init__(self, source: Source, title: str) -> None:
        self._source, self._title = source, title
        with reading(source, f"The XFS of {title}"):
            _check_sizes(source.read_at(0, 512))
            self._fs = xfs.XFS(file_of(source))
            self.label = str(self._fs.name)
            self._directory_block = self._fs.block_size << self._fs.sb.sb_dirblklog

    def link(self, entry: Entry) -> str:
        with reading(self._source, f"Link {entry.name!r} of {self._title}"):
            inode: Any = entry.node
            if inode.size > 4096:
                raise ValueError(f"it is {inode.size} bytes long")
            return str(inode.link)

    def _root(self) -> int:
        return int(self._fs.sb.sb_rootino)

    def _entry(self, name: str, number: int) -> Entry:
        inode: Any = self._fs.get_inode(number, name)
        raw = inode.inode
        kind = KINDS.get(stat.S_IFMT(raw.di_mode), Kind.SPECIAL)
        why = "it lies on a realtime device" if raw.di_flags & _REALTIME and kind is Kind.FILE else ""
        return Entry(
            name,
            kind,
            inode.size,
            inode.mtime_ns,
            stat.S_IMODE(raw.di_mode),
            number,
            unreadable=why,
            node=inode,
        )

    def _content(self, node: Any, stream: str = "") -> Content:  # noqa: ANN401 - of a library without types
        if int(node.inode.di_format) == _LOCAL:
            return FileContent(node.datafork(), node.size)
        block = self._fs.block_size
        runs: list[tuple[int | None, int]] = []
        end = 0
        for offset, place, count, unwritten in node._iter_blocks():
            if offset < end:
                raise ValueError(f"its extents overlap at block {offset}")
            group, number = xfs.fsb_to_bb(place, self._fs.sb.sb_agblklog)
            start = (group * self._fs.sb.sb_agblocks + number) * block
            runs.append((None, (offset - end) * block))
            runs.append((None if unwritten else start, count * block))
            end = offset + count
        return Runs(self._source, runs, node.size)

    def _names(self, directory: Entry) -> Iterator[tuple[str, int]]:
        inode: Any = directory.node
        if int(inode.inode.di_format) == _LOCAL:
            for each in inode.iterdir():
                if each.filename not in (".", ".."):
                    yield each.filename, each.inum
            return
        content = self._content(inode)
        size = self._directory_block
        for start, length in content.extents():
            for offset in range(start, min(start + length, _LARGEST_DIRECTORY), size):
                yield from self._rows(content.read(offset, size))

    def _rows(self, block: bytes) -> Iterator[tuple[str, int]]:
        at = _HEADERS.get(block[:4], 0)
        if not at:
            raise ValueError(f"a block of it begins with {block[:4]!r}")
        end = len(block)
        if block[:4] in _WITH_TAIL:
            (leaves,) = struct.unpack_from(">I", block, end - 8)
            end -= 8 + 8 * leaves
        has_types = bool(self._fs._has_ftype)
        while at + 11 < end:
            tag, free = struct.unpack_from(">HH", block, at)
            if tag == _FREE:
                if free < 8:
                    raise ValueError(f"a gap of {free} bytes")
                at += free
                continue
            number, length = struct.unpack_from(">QB", block, at)
            name = block[at + 9 : at + 9 + length]
            at += -(-(8 + 1 + length + has_types + 2) // 8) * 8
            if name not in (b".", b"..", b""):
                yield name.decode("utf-8", "surrogateescape"), number


def _check_sizes(superblock: bytes) -> None:
    """Raises ValueError for sizes that no XFS has (xfs_sb in xfs_format.h)."""
    (block,) = struct.unpack_from(">I", superblock, 4)
    sector, inode = struct.unpack_from(">HH", superblock, 102)
    shift = superblock[192]
    if not 512 <= block <= _LARGEST_BLOCK or not 256 <= inode <= 2048 or not 512 <= sector <= 32768:
        raise ValueError(f"it has blocks of {block}, sectors of {sector} and inodes of {inode} bytes")
    if block << min(shift, 32) > _LARGEST_BLOCK:
        raise ValueError(f"its directories have blocks of {block << min(shift, 32)} bytes")
