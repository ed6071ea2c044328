"""What clients change of a read-only export: clusters of 64 KiB in a local file, which can become a qcow2 image.

The file is laid out as a qcow2 image from the start: clusters of data follow each other behind the first one, and
the tables are those of the format, held in memory. Thrown away, it never had a name or a header. Kept, the tables
and the header are written behind the data at the end; the image names the served disk as its backing file.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import numpy as np
import trio

from pipeline.errors import ConfigError, SinkError
from vadpipe.files import create, publish, temporary_beside, write_at
from vadpipe.nbd.export import Export, Parts, States
from vadpipe.nbd.protocol import State

from .qcow2 import CLUSTER, OFFSET, OWN, PER_TABLE, TABLE, ZERO, Table, completion

log = logging.getLogger(__name__)

_HOLE: Final = int(State.HOLE | State.ZERO)
_MOST_RUNS: Final = 8192

_ALL_ZERO: Final[Table] = np.full(PER_TABLE, ZERO, np.uint64)  # shared: a guest may discard a whole disk


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
            elif entry == ZERO:
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
                found.append((size, _HOLE if entry == ZERO else 0))
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
                    self._table(number)[begin:stop] = ZERO

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
            if found and entry in (0, ZERO) and found[-1][0] == entry:
                found[-1] = (entry, found[-1][1], found[-1][2] + size)
            else:
                found.append((entry, place, size))
            place += size
        return found

    def _read(self, entry: int, offset: int, length: int) -> bytes:
        content = os.pread(self._descriptor, length, (entry & OFFSET) + offset % CLUSTER)
        if len(content) < length:
            raise OSError("The file of changes was cut off.")
        return content

    async def _write_cluster(self, low: int, offset: int, piece: memoryview) -> None:
        """Write a part of a cluster, or all of it."""
        cluster = low // CLUSTER
        entry = self._entry(cluster)
        if entry not in (0, ZERO):
            place = (entry & OFFSET) + offset - low
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
        self._table(cluster // PER_TABLE)[cluster % PER_TABLE] = OWN | place

    def finish(self, backing: str) -> None:
        """Make the file a qcow2 image upon `backing`, durably. Blocks. Raises OSError."""
        for place, content in completion(self.size, self._tables, self._end, backing):
            write_at(self._descriptor, content, place)
        os.fsync(self._descriptor)


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
