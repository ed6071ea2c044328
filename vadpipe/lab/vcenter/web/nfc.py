"""`/nfc`: the data of disks that a lease waits for, as streamOptimized VMDK, taken in one pass as a host does.

The reader is strict: grains come in order, the tables and the directory at the end say where they were, and the
last marker ends the stream.

Source: VMware's "Virtual Disk Format 5.0" note, "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from email.message import Message
from http import HTTPStatus
from io import BufferedIOBase
from typing import TYPE_CHECKING

from pyVmomi import vmodl

from ..faults.injection import ConnectionDroppedError
from ..faults.on_demand import FolderError

if TYPE_CHECKING:
    from ...disks import LabDisk
    from ..service import Service

PREFIX = "/nfc/"
METHOD = "/nfc"  # what `LabVcenter.inject` calls a request
CONTENT_TYPE = "application/x-vnd.vmware-streamVmdk"
_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QI")
_COMPRESSED = 3 << 16  # with markers
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_TABLE, _DIRECTORY, _FOOTER = range(1, 4)  # 0 is the end
_BATCH = 4 << 20

Read = Callable[[int], bytes]


class StreamError(Exception):
    """The stream is no whole streamOptimized VMDK of this disk."""


def take(service: Service, path: str, headers: Message, body: BufferedIOBase) -> HTTPStatus:
    """Fill the disk that `path` is the address of. Raises FolderError; a bad stream ends the lease too."""
    content = _body(headers, body)
    try:
        later = service.injections.before_call(METHOD)
        _take(service, path, headers, content)
        service.injections.happen(later)
    except ConnectionDroppedError:
        raise
    except Exception:
        while content(_BATCH):  # a client that is still sending would not see the answer
            pass
        raise
    return HTTPStatus.CREATED


def _take(service: Service, path: str, headers: Message, content: Read) -> None:
    target = service.leases.target(path.partition("?")[0])
    if target is None:
        raise FolderError(HTTPStatus.NOT_FOUND, "No lease waits for data here.")
    if headers.get("Content-Type") != CONTENT_TYPE:
        raise FolderError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Disks are sent as {CONTENT_TYPE}.")
    read = _Counted(content)
    try:
        _fill(target.fresh_disk(), read)
        if content(1):
            raise StreamError("there is more behind the end of the stream")
    except StreamError as error:
        fault = vmodl.fault.SystemError(reason=f"{target.name}: {error}")
        if not read.broken:  # who was cut off may send the disk again
            target.lease.fail(fault)
        raise FolderError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from None
    target.received, target.sha1 = read.count, read.digest.hexdigest()


class _Counted:
    """Reads exactly what is asked for. broken: the connection ended within the body."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.count = 0
        self.digest = hashlib.sha1()
        self.broken = False

    def __call__(self, size: int) -> bytes:
        data = self._read(size)
        self.count += len(data)
        self.digest.update(data)
        if len(data) < size:
            self.broken = True
            raise StreamError(f"the stream ends after {self.count} bytes")
        return data


def _body(headers: Message, body: BufferedIOBase) -> Read:
    """The body of a request, whichever of the two ways its length is told."""
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        return _Chunks(body).read
    left = int(headers.get("Content-Length", 0))

    def read(size: int) -> bytes:
        nonlocal left
        data = body.read(min(size, left))
        left -= len(data)
        return data

    return read


class _Chunks:
    """A body in chunks, RFC 9112 section 7.1."""

    def __init__(self, body: BufferedIOBase) -> None:
        self._body = body
        self._left = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        parts = []
        while size and not self._ended:
            if not self._left:
                self._left = int(self._body.readline().partition(b";")[0].strip() or b"0", 16)
                self._ended = not self._left
                if self._ended:
                    self._body.readline()
                    break
            part = self._body.read(min(size, self._left))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self._left -= len(part)
            if not self._left:
                self._body.readline()
        return b"".join(parts)


def _fill(disk: LabDisk, read: _Counted) -> None:
    """Write the grains that are not all zero."""
    pending, at = bytearray(), 0
    for offset, data in _Stream(disk.capacity, read).grains():
        if not any(data):
            continue
        if offset != at + len(pending) or len(pending) >= _BATCH:
            disk.write(at, pending)
            pending, at = bytearray(), offset
        pending += data
    disk.write(at, pending)


class _Stream:
    """A streamOptimized VMDK of a disk with `capacity` bytes. Raises StreamError."""

    def __init__(self, capacity: int, read: _Counted) -> None:
        self._read = read
        header = _HEADER.unpack_from(read(_SECTOR))
        if (
            header[0] != b"KDMV"
            or header[1] != 3
            or header[2] & _COMPRESSED != _COMPRESSED
            or header[13] != 1
        ):
            raise StreamError("this is no streamOptimized VMDK")
        self._sectors, self._grain, self._per_table, overhead = header[3], header[4], header[7], header[10]
        if self._sectors * _SECTOR != capacity or not self._grain or not self._per_table:
            raise StreamError(f"the disk has {capacity} bytes, the stream {self._sectors * _SECTOR}")
        if header[9] != _AT_END:
            raise StreamError("the header has a grain directory, which belongs at the end of a stream")
        read((max(overhead, 1) - 1) * _SECTOR)
        self._places: dict[int, int] = {}  # sectors of the grains in the stream, by their number
        self._metadata: dict[int, dict[int, bytes]] = {_TABLE: {}, _DIRECTORY: {}, _FOOTER: {}}

    def grains(self) -> Iterator[tuple[int, bytes]]:
        """(offset, data), in order. When they end, the tables agree with where they were."""
        last = -1
        while True:
            place = self._read.count // _SECTOR
            sector, size = _MARKER.unpack(self._read(_MARKER.size))
            if size == 0:
                rest = self._read(_SECTOR - _MARKER.size)
                kind = int.from_bytes(rest[:4], "little")
                if not any(rest):
                    self._check()
                    return
                if kind not in self._metadata or any(rest[4:]):
                    raise StreamError(f"a marker of type {kind} is not one of the format")
                self._metadata[kind][place + 1] = self._read(sector * _SECTOR)
                continue
            if sector % self._grain or not last < sector < self._sectors:
                raise StreamError(f"the grain at sector {sector} is out of order, or not of the disk")
            last = sector
            self._places[sector // self._grain] = place
            yield sector * _SECTOR, self._unpacked(sector, size)

    def _unpacked(self, sector: int, size: int) -> bytes:
        packed = self._read(size)
        self._read(-(_MARKER.size + size) % _SECTOR)
        try:
            data = zlib.decompress(packed)
        except zlib.error as error:
            raise StreamError(f"the grain at sector {sector} is damaged: {error}") from None
        whole = min(self._grain, self._sectors - sector) * _SECTOR
        if not whole <= len(data) <= self._grain * _SECTOR:
            raise StreamError(f"the grain at sector {sector} has {len(data)} bytes")
        return data[:whole]

    def _check(self) -> None:
        footers, directories = (list(self._metadata[kind].items()) for kind in (_FOOTER, _DIRECTORY))
        if len(footers) != 1 or len(directories) != 1:
            raise StreamError("the stream ends without its directory and its footer")
        place, directory = directories[0]
        if _HEADER.unpack_from(footers[0][1])[9] != place:
            raise StreamError("the footer does not name the grain directory")
        tables = -(-self._sectors // (self._grain * self._per_table))
        if len(directory) < tables * 4:
            raise StreamError("the grain directory is too short")
        named: dict[int, int] = {}
        for number, at in enumerate(struct.unpack_from(f"<{tables}I", directory)):
            table = self._metadata[_TABLE].get(at, b"")
            if at and len(table) < self._per_table * 4:
                raise StreamError(f"the grain directory names a table at sector {at}, where none is")
            entries = struct.unpack_from(f"<{self._per_table}I", table) if at else ()
            first = number * self._per_table
            named.update({first + index: entry for index, entry in enumerate(entries) if entry})
        if named != self._places:
            raise StreamError("the grain tables do not say where the grains are")
