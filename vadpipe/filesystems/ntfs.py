"""NTFS by dissect.ntfs.

The library reads records, attributes and compressed streams. Directories are walked here along their tree:
version 3.16 of it also lists what unused parts of an index still hold. What lies behind the valid length of a
stream reads as zero here, as Windows has it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from dissect.ntfs import NTFS
from dissect.ntfs.c_ntfs import ATTRIBUTE_TYPE_CODE
from dissect.ntfs.index import Index

from .contract import Content, Entry, Kind, Stream
from .sources import FileContent, Runs, Source, file_of
from .translation import RecordFileSystem, reading

_ROOT: Final = 5
_FIRST_OF_USERS: Final = 24  # records before it are the volume's own files
_DOS_NAME: Final = 2  # name space of a FILE_NAME: the 8.3 name beside a long one
_IN_USE: Final = 1
_COMPRESSED, _ENCRYPTED = 0x00FF, 0x4000  # flags of an attribute
_SYMLINK, _JUNCTION, _LINUX_LINK = 0xA000000C, 0xA0000003, 0xA000001D
_LARGEST_CLUSTER: Final = 2 << 20  # of Windows Server 2019 and later
_LARGEST_RECORD: Final = 2 << 20  # index buffers have a cluster where that is larger than 4 KiB
_MOST_DEPTH: Final = 32  # of the tree of a directory
_EPOCH: Final = 116444736000000000  # 1970 in units of 100 ns since 1601
# Attributes of files whose content is elsewhere (winnt.h): OFFLINE, RECALL_ON_OPEN, RECALL_ON_DATA_ACCESS.
_ELSEWHERE: Final = 0x1000 | 0x40000 | 0x400000

_NOT_HERE: Final = {
    0x80000013: "its data is deduplicated by Windows; read it in a restored VM",
    0x80000017: "it is compressed by Windows (CompactOS, WOF); read it in a restored VM",
    0xC0000004: "its data was moved to other storage (HSM)",
    0x80000006: "its data was moved to other storage (HSM)",
}


class Ntfs(RecordFileSystem):
    """An NTFS volume. Raises Unreadable, MoverError."""

    reader = "dissect.ntfs"
    notes: Sequence[str] = ()

    def __init__(self, source: Source, title: str) -> None:
        self._source, self._title = source, title
        with reading(source, f"The NTFS of {title}"):
            _check_sizes(source.read_at(0, 512))
            self._fs: Any = NTFS(file_of(source))
            self.label = str(self._fs.volume_name or "")

    def find(self, directory: Entry, name: str) -> Entry | None:
        with self._reading_directory(directory):
            like = [found for found in self._names(directory) if found[0].upper() == name.upper()]
            exact = [found for found in like if found[0] == name]
            return self._entry(*(exact or like)[0]) if like else None

    def _root(self) -> int:
        return _ROOT

    def _content(self, node: Any, stream: str = "") -> Content:  # noqa: ANN401 - of a library without types
        attributes = self._data(node, stream)
        if not attributes:
            if stream:
                raise ValueError(f"it has no stream {stream!r}")
            return Runs(self._source, [], 0)
        if attributes[0].header.resident:
            size = attributes[0].header.size
            return FileContent(attributes[0].header.open(), size)
        first = attributes[0].header
        valid = min(first.header.Form.Nonresident.ValidDataLength, first.size)
        if first.flags & _COMPRESSED:
            file = node.attributes.find(stream, ATTRIBUTE_TYPE_CODE.DATA).open()
            return FileContent(file, first.size, [(0, valid)] if valid else [])
        cluster = self._fs.cluster_size
        runs = [
            (None if place is None else place * cluster, count * cluster)
            for attribute in attributes
            for place, count in attribute.header.dataruns()
        ]
        return Runs(self._source, runs, first.size, valid)

    def link(self, entry: Entry) -> str:
        with reading(self._source, f"Link {entry.name!r} of {self._title}"):
            record: Any = entry.node
            point = record.attributes[ATTRIBUTE_TYPE_CODE.REPARSE_POINT]
            if int(point.tag) == _LINUX_LINK:
                return bytes(point.buffer[4:]).decode("utf-8", "surrogateescape")
            target = point.print_name or point.substitute_name.removeprefix("\\??\\")
            return str(target).replace("\\", "/")

    def _names(self, directory: Entry) -> Iterator[tuple[str, int]]:
        record: Any = directory.node
        index = Index(record, "$I30")
        is_root = directory.identity == _ROOT
        seen: set[int] = set()
        for row in self._rows(index, index.root.entries(), seen, 0):
            key = row.buf
            if key[65] == _DOS_NAME:
                continue
            name = bytes(key[66 : 66 + 2 * key[64]]).decode("utf-16-le", "surrogatepass")
            reference = row.header.FileReference
            segment = reference.SegmentNumberLowPart | (reference.SegmentNumberHighPart << 32)
            if not (is_root and segment < _FIRST_OF_USERS):
                yield name, segment

    def _rows(self, index: Any, rows: Any, seen: set[int], depth: int) -> Iterator[Any]:  # noqa: ANN401
        """The rows of a node of the tree and of what is below it."""
        if depth > _MOST_DEPTH:
            raise ValueError("the tree of its index is too deep")
        for row in rows:
            if row.is_node:
                below = row.node_vcn
                if below in seen:
                    raise ValueError("the tree of its index runs in a circle")
                seen.add(below)
                yield from self._rows(index, index.index_buffer(below).entries(), seen, depth + 1)
            if row.is_end:
                return
            yield row

    def _data(self, record: Any, stream: str) -> list[Any]:  # noqa: ANN401 - of a library without types
        """The attributes of a stream in the order of what they describe."""
        found = [each for each in record.attributes[ATTRIBUTE_TYPE_CODE.DATA] if each.header.name == stream]
        return sorted(found, key=lambda each: each.header.lowest_vcn or 0)

    def _entry(self, name: str, number: int) -> Entry:
        record: Any = self._fs.mft.get(number)
        if not record.header.Flags & _IN_USE:
            raise ValueError(f"{name!r} names record {number}, which is not in use")
        types = ATTRIBUTE_TYPE_CODE
        standard = record.attributes[types.STANDARD_INFORMATION]
        modified = (int(standard.attr.LastModificationTime) - _EPOCH) * 100 if standard else None
        kind = Kind.DIRECTORY if record.is_dir() else Kind.FILE
        why = ""
        points = record.attributes[types.REPARSE_POINT]
        tag = int(points.tag) if points else 0
        if tag in (_SYMLINK, _JUNCTION, _LINUX_LINK):
            kind = Kind.LINK
        elif standard and standard.attr.FileAttributes & _ELSEWHERE and kind is Kind.FILE and points:
            why = "its data is elsewhere (a placeholder of cloud or archive storage)"
        else:
            why = _NOT_HERE.get(tag, "")
        size, streams = 0, {}
        for each in record.attributes[types.DATA]:
            if each.header.resident or not each.header.lowest_vcn:
                if each.header.flags & _ENCRYPTED:
                    why = why or "it is encrypted by Windows (EFS)"
                if each.header.name:
                    streams[each.header.name] = each.header.size
                else:
                    size = each.header.size
        if why:
            streams = {}
        return Entry(
            name,
            kind,
            size,
            modified,
            None,
            number,
            tuple(Stream(*each) for each in streams.items()),
            why,
            record,
        )


def _check_sizes(sector: bytes) -> None:
    """The library reads records of any size that a boot sector names. Raises ValueError for what none has."""
    (size,) = struct.unpack_from("<H", sector, 11)
    per_cluster = sector[13]  # above 128 it is a negative power of two
    cluster = size * (per_cluster if per_cluster <= 128 else 1 << (256 - per_cluster))
    if size not in (512, 1024, 2048, 4096) or not size <= cluster <= _LARGEST_CLUSTER:
        raise ValueError(f"its sectors have {size} bytes, its clusters {cluster}")
    for what, at in (("records", 64), ("index buffers", 68)):
        (count,) = struct.unpack_from("<b", sector, at)
        length = 1 << -count if count < 0 else count * cluster
        if not 256 <= length <= _LARGEST_RECORD:
            raise ValueError(f"its {what} have {length} bytes")
