"""Bytes of a disk for libraries that read synchronously: a disk of a point, parts of it, and parts put together."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, Protocol

import trio

from pipeline.errors import MoverError, SinkError
from pipeline.units import KiB, MiB
from vadpipe.nbd.export import Export

_BLOCK: Final = 64 * KiB
_BLOCKS: Final = 256  # kept, so that a small read costs no trip to the event loop: 16 MiB
_LARGEST: Final = MiB  # what an export gives at once


class Source(Protocol):
    """Bytes at offsets. `failure`: the last error of reading, which a library may have swallowed."""

    @property
    def size(self) -> int: ...
    @property
    def failure(self) -> MoverError | None: ...
    def read_at(self, offset: int, length: int) -> bytes:
        """The range; shorter at the end. Raises MoverError."""
        ...


class ExportSource:
    """An export for a worker thread of trio (`trio.to_thread`); each read is a trip to the event loop.

    When the thread's task is cancelled, a read raises `trio.Cancelled`.
    """

    def __init__(self, export: Export) -> None:
        self._export = export
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.failure: MoverError | None = None

    @property
    def size(self) -> int:
        return self._export.size

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        if length > _BLOCK:
            return b"".join(
                self._read(place, min(_LARGEST, offset + length - place))
                for place in range(offset, offset + length, _LARGEST)
            )
        parts = []
        end = offset + length
        while offset < end:
            number, skip = divmod(offset, _BLOCK)
            part = self._block(number)[skip : skip + end - offset]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, number: int) -> bytes:
        found = self._blocks.get(number)
        if found is None:
            start = number * _BLOCK
            found = self._blocks[number] = self._read(start, min(_BLOCK, self.size - start))
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return found

    def _read(self, offset: int, length: int) -> bytes:
        try:
            parts = trio.from_thread.run(self._export.read, offset, length)
        except MoverError as exc:
            self.failure = exc
            raise
        except OSError as exc:
            self.failure = SinkError(f"The repository cannot be read: {exc.strerror or exc}.")
            raise self.failure from exc
        return b"".join(bytes(part) if isinstance(part, int) else part for part in parts)


class Part:
    """A range of a source: a partition."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self._source, self._offset = source, offset
        self.size = max(0, min(size, source.size - offset))

    @property
    def failure(self) -> MoverError | None:
        return self._source.failure

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        return self._source.read_at(self._offset + offset, length) if length else b""


class Joined:
    """Parts of sources one after the other: a logical volume.

    Args:
        parts: Source, offset in it, and length, each in bytes.
    """

    def __init__(self, parts: Sequence[tuple[Source, int, int]]) -> None:
        self._parts = parts
        self._starts = []
        self.size = 0
        for _, _, length in parts:
            self._starts.append(self.size)
            self.size += length

    @property
    def failure(self) -> MoverError | None:
        return next((source.failure for source, _, _ in self._parts if source.failure), None)

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        found = []
        while offset < end:
            at = bisect_right(self._starts, offset) - 1
            source, start, size = self._parts[at]
            skip = offset - self._starts[at]
            wanted = min(size - skip, end - offset)
            part = source.read_at(start + skip, wanted)
            found.append(part)
            if len(part) < wanted:
                break
            offset += wanted
        return b"".join(found)


class SourceFile(io.RawIOBase):
    """A source as a file object."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source, self._place = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._source.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._source.size - self._place)
        content = self._source.read_at(self._place, left if size is None or size < 0 else min(size, left))
        self._place += len(content)
        return content

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - anything with memory
        view = memoryview(buffer).cast("B")
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)


def file_of(source: Source) -> Any:  # noqa: ANN401 - what the libraries call BinaryIO, which it is in part
    """A source as a file object of a library."""
    return SourceFile(source)


class Runs:
    """The content of a file by its runs.

    Args:
        source: The volume.
        runs: Offset on the volume, None where nothing is stored, and length, both in bytes.
        size: Of the file. Runs may be longer together, or shorter: then zeros follow.
        valid: Up to where something was written; what is stored behind it reads as zero.

    Raises:
        ValueError: A run has no sensible length.
    """

    def __init__(
        self, source: Source, runs: Sequence[tuple[int | None, int]], size: int, valid: int | None = None
    ) -> None:
        self._source = source
        self.size = size
        limit = size if valid is None else min(valid, size)
        self._starts: list[int] = []
        self._runs: list[tuple[int, int]] = []  # place on the volume, length
        start = 0
        for place, length in runs:
            if length < 0 or (place is not None and (place < 0 or place + length > source.size + MiB)):
                raise ValueError(f"a run of {length} bytes at {place} does not lie on the volume")
            used = min(length, limit - start)
            if place is not None and used > 0:
                if self._runs and self._runs[-1][0] + self._runs[-1][1] == place and self._ends_at(start):
                    self._runs[-1] = (self._runs[-1][0], self._runs[-1][1] + used)
                else:
                    self._starts.append(start)
                    self._runs.append((place, used))
            start += length

    def _ends_at(self, start: int) -> bool:
        return self._starts[-1] + self._runs[-1][1] == start

    def extents(self) -> Sequence[tuple[int, int]]:
        return [(start, length) for start, (_, length) in zip(self._starts, self._runs, strict=True)]

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        found = []
        at = max(0, bisect_right(self._starts, offset) - 1)
        while offset < end:
            start = self._starts[at] if at < len(self._starts) else end
            if offset < start:
                gap = min(start, end) - offset
                found.append(bytes(gap))
                offset += gap
                continue
            place, run = self._runs[at] if at < len(self._runs) else (0, 0)
            wanted = min(start + run, end) - offset
            if wanted > 0:
                part = self._source.read_at(place + offset - start, wanted)
                if len(part) < wanted:
                    raise EOFError(f"the volume ends inside a file, at {place + offset - start + len(part)}")
                found.append(part)
                offset += wanted
            at += 1
        return b"".join(found)


class FileContent:
    """The content of a file by a file object of a library."""

    def __init__(
        self, file: io.RawIOBase, size: int, extents: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self._file, self.size = file, size
        self._extents = [(0, size)] if extents is None else extents

    def extents(self) -> Sequence[tuple[int, int]]:
        return self._extents

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        content = self._file.read(min(length, self.size - offset))
        if content is None or len(content) < min(length, self.size - offset):
            raise EOFError(f"the content ends before {offset + length}")
        return content
