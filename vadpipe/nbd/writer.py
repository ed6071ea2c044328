"""Writing to an export of an NBD server, with several requests in flight.

A lost connection is not replaced: what the server had acknowledged and not made durable may be lost with it, so the
writing has failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import trio

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import SinkError
from pipeline.extents import Extents
from pipeline.units import CLUSTER, GiB, MiB

from .client import Nbd, NbdDisk, NbdError
from .protocol import Command, Export, Transmission

# Bytes of one request that writes zeros; its length has 32 bits.
_ZEROING: Final = 1 * GiB
_ZEROS: Final = memoryview(bytes(MiB))

# A flush may take as long as the server's storage needs for all that it holds back.
_TIMEOUT_S: Final = 600.0


@asynccontextmanager
async def open_for_writing(
    settings: Nbd, pool: BufferPool | None = None, *, name: str = "", remedy: str = ""
) -> AsyncIterator[NbdWriter]:
    """Open an export for writing, and disconnect at the end. What was not flushed may be lost.

    Args:
        settings: The server and the export.
        pool: Where the buffers come from.
        name: Names the export in messages.
        remedy: What helps when it cannot be written.

    Raises:
        NbdError: The server cannot be reached, or has no such export.
        SinkError: The export cannot be written.
    """
    patient = replace(settings, restarts=0, timeout_s=max(settings.timeout_s, _TIMEOUT_S))
    async with patient.open(pool=pool, key=name) as disk:
        export = disk.export
        if export is None or export.flags & Transmission.READ_ONLY:
            raise SinkError(
                f"The NBD server {settings.server} offers {settings.export!r} for reading only.",
                remedy="Start the server so that the export can be written.",
            )
        yield NbdWriter(settings, disk, export, remedy)


class NbdWriter:
    """An export that is open for writing. All methods raise SinkError."""

    def __init__(self, settings: Nbd, disk: NbdDisk, export: Export, remedy: str = "") -> None:
        self._settings, self._disk, self._export, self._remedy = settings, disk, export, remedy

    @property
    def capacity(self) -> int:
        return self._disk.capacity

    @property
    def server(self) -> str:
        return self._settings.server

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Write the `wanted` extents; the byte at disk offset `o` is `buffer.array[o - offset]`.

        The buffer must stay as it is until this has returned. Several writes may run at once and share the depth.
        """
        size = max(min(self._settings.request, self._export.maximum) // CLUSTER * CLUSTER, CLUSTER)
        memory = buffer.memory
        pieces = [
            (start, min(size, first + length - start))
            for first, length in wanted
            for start in range(first, first + length, size)
        ]
        failures: list[SinkError] = []

        async def put(start: int, length: int) -> None:
            content = memory[start - offset : start - offset + length]
            try:
                await self._send(Command.WRITE, start, length, content)
            except SinkError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for start, length in pieces:
                nursery.start_soon(put, start, length)
        if failures:
            raise failures[0]

    async def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zero; where the server can, without sending or storing zeros."""
        end = offset + length
        if self._export.flags & Transmission.WRITE_ZEROES:
            while offset < end:
                size = min(_ZEROING, end - offset)
                await self._send(Command.WRITE_ZEROES, offset, size)
                offset += size
            return
        most = max(min(len(_ZEROS), self._export.maximum) // CLUSTER * CLUSTER, CLUSTER)
        while offset < end:
            size = min(most, end - offset)
            await self._send(Command.WRITE, offset, size, _ZEROS[:size])
            offset += size

    async def flush(self) -> None:
        """Make everything durable that was written."""
        if self._export.flags & Transmission.FLUSH:
            await self._send(Command.FLUSH, 0, 0)

    async def _send(
        self, command: Command, offset: int, length: int, content: memoryview | None = None
    ) -> None:
        try:
            await self._disk.send(command, offset, length, content)
        except NbdError as exc:
            raise SinkError(exc.problem, remedy=self._remedy or exc.remedy, **exc.facts) from exc
