"""What clients change of a read-only export: clusters of 64 KiB in a local file, which can become a qcow2 image.

The file is laid out as a qcow2 image from the start: clusters of data follow each other behind the first one, and
the tables are those of the format, held in memory. Thrown away, it never had a name or a header. Kept, the tables
and the header are written behind the data at the end; the image names the served disk as its backing file.

Source: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SinkError
from vadpipe.files import create, publish, temporary_beside, write_at
from vadpipe.nbd.export import Export, Parts, States
from vadpipe.nbd.protocol import State

log = logging.getLogger(__name__)

CLUSTER: Final = 1 << 16  # the default of qcow2
PER_TABLE: Final = CLUSTER // 8
TABLE: Final = PER_TABLE * CLUSTER  # bytes of a disk that one table describes: 512 MiB

_ZERO: Final = 1  # an entry: reads as zero
_OWN: Final = 1 << 63  # an entry: its cluster is used once
_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_PER_REFCOUNTS: Final = CLUSTER // 2  # counts of 16 bits

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT: Final = 0xE2792ACA
_HOLE: Final = int(State.HOLE | State.ZERO)
_MOST_RUNS: Final = 8192

Table = NDArray[np.uint64]
_ALL_ZERO: Final[Table] = np.full(PER_TABLE, _ZERO, np.uint64)  # shared: a guest may discard a whole disk


class Overlay:
    """An export that keeps what is written to it beside another one.

    A write to a part of a cluster that was not written before reads the rest of it from the base.
    """

    def __init__(self, base: Export, descriptor: int) -> None:
        self._base = base
        self._descriptor = descriptor
        self._tables: dict[int, Table] = {}
        self._end = CLUSTER  # behind the header
        self._changing = trio.Lock()

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def description(self) -> str:
        return f"{self._base.description}, with changes"

    @property
    def size(self) -> int:
        return self._base.size

    @property
    def written(self) -> int:
        """Bytes of the file."""
        return self._end

    def read_nowait(self, offset: int, length: int) -> Parts | None:
        if any(
            number in self._tables for number in range(offset // TABLE, (offset + length - 1) // TABLE + 1)
        ):
            return None
        return self._base.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> Parts:
        """Raises MoverError of the base, OSError."""
        parts: list[memoryview | int] = []
        for entry, start, size in self._runs(offset, length):
            if entry == 0:
                parts += await self._base.read(start, size)
            elif entry == _ZERO:
                parts.append(size)
            else:
                parts.append(memoryview(await trio.to_thread.run_sync(self._read, entry, start, size)))
        return parts

    def expect(self, offset: int, length: int) -> None:
        self._base.expect(offset, length)

    async def states(self, offset: int, length: int) -> States:
        """Raises MoverError of the base."""
        found: list[tuple[int, int]] = []
        for entry, start, size in self._runs(offset, length):
            if entry:
                found.append((size, _HOLE if entry == _ZERO else 0))
                continue
            told = await self._base.states(start, size)
            found += told
            if sum(each for each, _ in told) < size or len(found) > _MOST_RUNS:
                break
        return found

    async def write(self, offset: int, content: memoryview) -> None:
        """Raises MoverError of the base, OSError."""
        async with self._changing:
            place, end = offset, offset + len(content)
            while place < end:
                low = place // CLUSTER * CLUSTER
                size = min(low + CLUSTER, end) - place
                piece = content[place - offset : place - offset + size]
                await self._write_cluster(low, place, piece)
                place += size

    async def zero(self, offset: int, length: int) -> None:
        """Raises MoverError of the base, OSError."""
        end = offset + length
        first, last = -(-offset // CLUSTER), (self._clusters if end == self.size else end // CLUSTER)
        if first >= last:
            await self.write(offset, memoryview(bytes(length)))
            return
        head, tail = first * CLUSTER - offset, max(end - last * CLUSTER, 0)
        if head:
            await self.write(offset, memoryview(bytes(head)))
        if tail:
            await self.write(end - tail, memoryview(bytes(tail)))
        async with self._changing:
            for number in range(first // PER_TABLE, (last - 1) // PER_TABLE + 1):
                low = number * PER_TABLE
                begin, stop = max(first - low, 0), min(last - low, PER_TABLE)
                if stop - begin == PER_TABLE:
                    self._tables[number] = _ALL_ZERO
                else:
                    self._table(number)[begin:stop] = _ZERO

    async def flush(self) -> None:
        """Raises OSError."""
        await trio.to_thread.run_sync(os.fdatasync, self._descriptor)

    @property
    def _clusters(self) -> int:
        return -(-self.size // CLUSTER)

    def _table(self, number: int) -> Table:
        """A table that may be changed."""
        table = self._tables.get(number)
        if table is None:
            table = self._tables[number] = np.zeros(PER_TABLE, np.uint64)
        elif table is _ALL_ZERO:
            table = self._tables[number] = table.copy()
        return table

    def _entry(self, cluster: int) -> int:
        table = self._tables.get(cluster // PER_TABLE)
        return 0 if table is None else int(table[cluster % PER_TABLE])

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Entry, offset and length of what a range consists of; of a long one perhaps not all."""
        found: list[tuple[int, int, int]] = []
        place, end = offset, offset + length
        for _ in range(_MOST_RUNS):
            if place >= end:
                break
            if place // TABLE not in self._tables:
                entry, size = 0, min(end, (place // TABLE + 1) * TABLE) - place
            else:
                entry = self._entry(place // CLUSTER)
                size = min(end, (place // CLUSTER + 1) * CLUSTER) - place
            if found and entry in (0, _ZERO) and found[-1][0] == entry:
                found[-1] = (entry, found[-1][1], found[-1][2] + size)
            else:
                found.append((entry, place, size))
            place += size
        return found

    def _read(self, entry: int, offset: int, length: int) -> bytes:
        content = os.pread(self._descriptor, length, (entry & _OFFSET) + offset % CLUSTER)
        if len(content) < length:
            raise OSError("The file of changes was cut off.")
        return content

    async def _write_cluster(self, low: int, offset: int, piece: memoryview) -> None:
        """Write a part of a cluster, or all of it."""
        cluster = low // CLUSTER
        entry = self._entry(cluster)
        if entry not in (0, _ZERO):
            place = (entry & _OFFSET) + offset - low
            await trio.to_thread.run_sync(write_at, self._descriptor, piece, place)
            return
        whole = bytearray(CLUSTER)
        size = min(CLUSTER, self.size - low)
        if entry == 0 and len(piece) < size:
            place = 0
            for part in await self._base.read(low, size):
                if isinstance(part, int):
                    place += part
                else:
                    whole[place : place + len(part)] = part
                    place += len(part)
        whole[offset - low : offset - low + len(piece)] = piece
        place = self._end
        await trio.to_thread.run_sync(write_at, self._descriptor, memoryview(whole), place)
        self._end += CLUSTER
        self._table(cluster // PER_TABLE)[cluster % PER_TABLE] = _OWN | place

    def finish(self, backing: str) -> None:
        """Make the file a qcow2 image upon `backing`, durably. Blocks. Raises OSError."""
        end = self._end
        tables = -(-self._clusters // PER_TABLE)
        roots = np.zeros(max(tables, 1), ">u8")
        used = [0]
        for number, table in sorted(self._tables.items()):
            write_at(self._descriptor, table.astype(">u8").tobytes(), end)
            roots[number] = _OWN | end
            used.append(end // CLUSTER)
            data = table[(table & np.uint64(_OFFSET)) != 0]
            used += ((data & np.uint64(_OFFSET)) // np.uint64(CLUSTER)).tolist()
            end += CLUSTER
        root_at = end
        write_at(self._descriptor, roots.tobytes(), root_at)
        end += -(-roots.nbytes // CLUSTER) * CLUSTER
        used += range(root_at // CLUSTER, end // CLUSTER)
        count_at, count_clusters, blocks = self._counts(end, used)
        write_at(self._descriptor, self._header(backing, root_at, len(roots), count_at, count_clusters), 0)
        os.truncate(self._descriptor, count_at + (count_clusters + blocks) * CLUSTER)
        os.fsync(self._descriptor)

    def _counts(self, end: int, used: list[int]) -> tuple[int, int, int]:
        """Write how often each cluster is used, from `end` on. Returns the place, and how many clusters of both
        tables there are."""
        before = end // CLUSTER
        blocks = roots = 1
        while before + roots + blocks > blocks * _PER_REFCOUNTS:
            blocks += 1
            roots = -(-blocks // PER_TABLE)
        counts = np.zeros(blocks * _PER_REFCOUNTS, ">u2")
        counts[used] = 1
        counts[before : before + roots + blocks] = 1
        places = np.zeros(roots * PER_TABLE, ">u8")
        first = end + roots * CLUSTER
        places[:blocks] = first + np.arange(blocks) * CLUSTER
        write_at(self._descriptor, places.tobytes(), end)
        write_at(self._descriptor, counts.tobytes(), first)
        return end, roots, blocks

    def _header(self, backing: str, root_at: int, roots: int, count_at: int, count_clusters: int) -> bytes:
        name = backing.encode()
        extensions = _EXTENSION.pack(_BACKING_FORMAT, 3) + b"raw".ljust(8, b"\0") + _EXTENSION.pack(0, 0)
        name_at = _HEADER.size + len(extensions)
        header = _HEADER.pack(
            b"QFI\xfb", 3, name_at, len(name), CLUSTER.bit_length() - 1, self.size, 0, roots, root_at,
            count_at, count_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size,
        )  # fmt: skip
        return header + extensions + name


@asynccontextmanager
async def discarded_overlay(base: Export) -> AsyncIterator[Overlay]:
    """A writable export upon a read-only one; what is written is thrown away at the end.

    Raises:
        SinkError: No temporary file can be made.
    """
    try:
        file = tempfile.TemporaryFile(prefix="vadpipe-")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise SinkError(
            f"No file for changes can be made in {tempfile.gettempdir()}: {exc.strerror}.",
            remedy="Name another directory in TMPDIR.",
        ) from exc
    with file:
        yield Overlay(base, file.fileno())


class KeptOverlay(Overlay):
    """An overlay that becomes a qcow2 image; see `kept_overlay`."""

    backing = ""


@asynccontextmanager
async def kept_overlay(base: Export, path: Path) -> AsyncIterator[KeptOverlay]:
    """A writable export upon a read-only one; what is written becomes a qcow2 image at the end.

    Also when the block ends by an error. The image is written upon `backing`, which the body sets; without one
    nothing is kept.

    Raises:
        ConfigError: There is something with the name of the image already.
        SinkError: The file cannot be made, or the image cannot be written.
    """
    if os.path.lexists(path):  # noqa: ASYNC240 - asked once, before anything is served
        raise ConfigError(f"{path} exists already.", remedy="Name another file for the changes.")
    temporary = temporary_beside(path)
    try:
        descriptor = create(temporary)
    except OSError as exc:
        raise SinkError(f"{path} cannot be made: {exc.strerror}.", remedy="Name another place.") from exc
    try:
        made = KeptOverlay(base, descriptor)
        try:
            yield made
        finally:
            if made.backing:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_keep, made, temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _keep(made: KeptOverlay, temporary: Path, path: Path) -> None:
    try:
        made.finish(made.backing)
        publish(temporary, path, replace=False)
    except OSError as exc:
        raise SinkError(
            f"The changes cannot be kept in {path}: {exc.strerror}.", remedy="Check the free space there."
        ) from exc
    log.info("The changes of %s are in %s: %d bytes.", made.name, path, made.written)
