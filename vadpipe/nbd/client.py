"""A disk of an NBD server, read with several requests in flight over one connection.

A lost or silent connection is replaced, and its requests are sent anew.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import ChangeTrackingInvalid, ConfigError, SourceError
from pipeline.extents import Extents
from pipeline.protocols import ChangedAreas
from pipeline.units import CLUSTER, SPAN
from vadpipe.background import in_background

from . import protocol
from .bitmaps import DIRTY, Bitmaps
from .connection import Connection, Request, shake_hands
from .link import Link, LinkLost
from .protocol import Command, Export, ProtocolError, State

log = logging.getLogger(__name__)

DEFAULT_PORT = 10809
STATUS_SPAN = 1 << 31  # bytes per block status request, whose length has 32 bits


class NbdError(SourceError):
    """An NBD server failed or refused. Facts: `server`, `export`, and `offset` and `length` of a read."""

    def __init__(self, problem: str, *, transient: bool = False, remedy: str = "", **facts: object) -> None:
        super().__init__(problem, remedy=remedy, **facts)
        self.transient = transient


class HasPath(Protocol):
    """What names an export: `vadpipe.vddk.DiskAccess` among others."""

    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class Nbd:
    """How to read from an NBD server. Making one does no I/O.

    Args:
        host: Name or address; or, with a leading slash, the path of a Unix socket.
        port: TCP port.
        export: Name of the export; where it is empty and a disk is given, the disk's path.
        tls: TLS settings, which make TLS required; None: no TLS.
        depth: Requests in flight.
        request: Bytes of a request.
        timeout_s: A connection without a reply for this long is replaced.
        restarts: New connections in a row without a reply in between.
        restart_pause_s: Pause before the first of them; doubled for each further one.

    Raises:
        ConfigError: A setting is out of range.
    """

    host: str
    port: int = DEFAULT_PORT
    export: str = ""
    tls: ssl.SSLContext | None = None
    depth: int = 8
    request: int = SPAN
    timeout_s: float = 60.0
    restarts: int = 3
    restart_pause_s: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 256:
            raise ConfigError(f"depth={self.depth} is not between 1 and 256.")
        if self.request % CLUSTER or not CLUSTER <= self.request <= SPAN:
            raise ConfigError(f"request={self.request} is not a multiple of {CLUSTER} of at most {SPAN}.")
        if not self.host or not 1 <= self.port <= 65535:
            raise ConfigError(f"{self.host!r} and port {self.port} do not name an NBD server.")
        if self.host.startswith("/") and self.tls is not None and self.tls.check_hostname:
            raise ConfigError(
                f"The Unix socket {self.host} has no name that a certificate could be compared with.",
                remedy="Set check_hostname = False of the TLS settings; their authority is checked all the same.",
            )

    @property
    def server(self) -> str:
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"

    @asynccontextmanager
    async def open(
        self,
        access: HasPath | None = None,
        pool: BufferPool | None = None,
        key: str = "",
        bitmaps: Bitmaps | None = None,
    ) -> AsyncIterator[NbdDisk]:
        """Open an export for reading, and disconnect at the end.

        Args:
            access: Names the export where the settings do not.
            pool: The disk is read into buffers of this pool; None: a pool of its own.
            key: Names the disk; empty: the export's name does, or the server's.
            bitmaps: QEMU's dirty bitmaps in the place of change tracking; None: there is none.

        Raises:
            NbdError: The server cannot be reached, or has no such export.
        """
        name = self.export or (access.path if access is not None else "")
        async with in_background() as nursery:
            disk = NbdDisk(self, name, pool or BufferPool(), nursery, key, bitmaps)
            try:
                await disk.connect()
                yield disk
            finally:
                await disk.close()


class NbdDisk:
    """An open export; a `pipeline.Disk` with change tracking where it has dirty bitmaps."""

    def __init__(
        self,
        settings: Nbd,
        name: str,
        pool: BufferPool,
        nursery: trio.Nursery,
        key: str = "",
        bitmaps: Bitmaps | None = None,
    ) -> None:
        self.key = key or name or settings.server
        self.label = key or name.rpartition("/")[2] or settings.server
        self.pool = pool
        self.capacity = 0
        self.change_id = bitmaps.change_id if bitmaps else None
        self.reconnects = 0
        self._bitmaps = bitmaps
        self._settings, self._name, self._nursery = settings, name, nursery
        self._connection: Connection | None = None
        self._connecting = trio.Lock()
        self._failures = 0  # in a row
        self._places = trio.CapacityLimiter(settings.depth)

    @property
    def allocation(self) -> str:
        """ "queried", or "unavailable" where the server does not tell holes."""
        connection = self._connection
        known = connection is not None and protocol.ALLOCATION in connection.export.contexts
        return "queried" if known else "unavailable"

    async def allocated(self, offset: int, length: int) -> Extents:
        """What may hold data in [offset, offset + length); the rest reads as zero.

        Raises:
            NbdError: The server failed.
        """
        end = min(offset + length, self.capacity)
        if self.allocation == "unavailable":
            await trio.lowlevel.checkpoint()
            return Extents.whole(max(end - offset, 0), offset) if end > offset else Extents.empty()
        clean = State.ZERO
        found = await self._extents(protocol.ALLOCATION, offset, end, lambda state: not state & clean)
        return found.within(offset, end - offset)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        """What changed since a change id, from the offset to the end of the disk, by its dirty bitmaps.

        Raises:
            ChangeTrackingInvalid: There is no bitmap that was started at the moment of that change id, or the
                server does not offer it.
            NbdError: The server cannot be reached.
        """
        if self._bitmaps is None:
            raise ChangeTrackingInvalid(
                f"{self.key} is read over NBD without dirty bitmaps, so there is no change tracking.",
                disk=self.key,
            )
        found = Extents.empty()
        for context in self._bitmaps.since(since):
            try:
                if context not in (await self._ready()).export.contexts:
                    raise ChangeTrackingInvalid(
                        f"The server does not offer the bitmap {context!r}.", disk=self.key
                    )
                found |= await self._extents(
                    context, offset, self.capacity, lambda state: bool(state & DIRTY)
                )
            except NbdError as exc:
                if exc.transient:
                    raise
                raise ChangeTrackingInvalid(
                    f"The bitmap {context!r} cannot be read: {exc.problem}", disk=self.key
                ) from exc
        length = self.capacity - offset
        return ChangedAreas(offset, length, found.within(offset, length))

    async def _extents(self, context: str, offset: int, end: int, wanted: Callable[[State], bool]) -> Extents:
        """The extents of [offset, end) with a wanted state; the first may begin before. Raises NbdError."""
        found: list[tuple[int, int]] = []
        place = offset // CLUSTER * CLUSTER
        while place < end:
            size = min(STATUS_SPAN, -(-(end - place) // CLUSTER) * CLUSTER, self.capacity - place)
            asked = await self._run(Command.BLOCK_STATUS, place, size, None, context=context)
            before = place
            for extent, state in asked.status:
                if wanted(state):
                    found.append((place, min(extent, self.capacity - place)))
                place = min(place + extent, self.capacity)
            if place == before:
                raise self._error("The server told no extents", place, size)
        return Extents.of(found)

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        """Read the `wanted` extents; the byte at disk offset `o` goes to `buffer.array[o - offset]`.

        Several reads may run at once and share the depth. Bytes beside `wanted` may change.

        Raises:
            NbdError: The server failed. Facts are offset and length.
        """
        await trio.lowlevel.checkpoint()
        end = min(offset + SPAN, self.capacity)
        if buffer.position < 0 or offset % CLUSTER:
            raise ValueError(
                f"A read at offset {offset} needs a buffer that is held and a multiple of {CLUSTER}."
            )
        if len(wanted) and (int(wanted.start[0]) < offset or int(wanted.end[-1]) > end):
            raise ValueError(f"{wanted} is not inside [{offset}, {end}).")
        target = memoryview(buffer.array.data)
        failures: list[BaseException] = []

        async def run(start: int, size: int) -> None:
            try:
                place = start - offset
                await self._run(Command.READ, start, size, target[place : place + size])
            except SourceError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        connection = await self._ready()
        size = max(min(self._settings.request, connection.export.maximum) // CLUSTER * CLUSTER, CLUSTER)
        async with trio.open_nursery() as nursery:
            for first, length in wanted.aligned(CLUSTER, self.capacity):
                for start in range(first, first + length, size):
                    nursery.start_soon(run, start, min(size, first + length - start))
        if failures:
            raise failures[0]

    @property
    def export(self) -> Export | None:
        """What the server said of the export; None while there is no connection."""
        return None if self._connection is None else self._connection.export

    async def send(
        self, command: Command, offset: int = 0, length: int = 0, content: memoryview | None = None
    ) -> None:
        """Run a request that changes the export. `content` must stay as it is until this has returned.

        Raises:
            NbdError: The server failed or refused, or the connection is lost for good.
        """
        await self._run(command, offset, length, None, content)

    async def _run(
        self,
        command: Command,
        offset: int,
        length: int,
        target: memoryview | None,
        content: memoryview | None = None,
        context: str = protocol.ALLOCATION,
    ) -> Request:
        """Run one request, over new connections when the connection is lost."""
        async with self._places:
            while True:
                connection = await self._ready()
                reads = command in (Command.READ, Command.BLOCK_STATUS)
                asked = Request(offset, length, target, content=content, reads=reads, context=context)
                try:
                    await connection.run(command, asked)
                except LinkLost as exc:
                    await self._count_loss(connection, str(exc))
                    continue
                self._failures = 0
                if asked.error:
                    raise self._error(f"The server answered: {os.strerror(asked.error)}", offset, length)
                if command == Command.READ and asked.received != length:
                    raise self._error(f"The server sent {asked.received} bytes", offset, length)
                return asked

    async def _ready(self) -> Connection:
        async with self._connecting:
            while self._connection is None:
                try:
                    await self.connect()
                except NbdError as exc:
                    if not exc.transient:
                        raise
                    await self._pause(exc.problem)
            return self._connection

    async def _count_loss(self, connection: Connection, reason: str) -> None:
        if self._connection is not connection:
            return  # somebody else has seen it
        self._connection = None
        self.reconnects += 1
        async with self._connecting:
            await self._pause(reason)

    async def _pause(self, reason: str) -> None:
        """Wait before another connection. Raises NbdError after too many failures in a row."""
        self._failures += 1
        if self._failures > self._settings.restarts:
            tried = f"; {self._failures - 1} new connections did not help" if self._failures > 1 else ""
            raise self._unreachable(f"{reason.rstrip('.')}{tried}")
        pause_s = self._settings.restart_pause_s * 2 ** (self._failures - 1)
        log.info(
            "The NBD connection to %s is made anew in %.1f s: %s", self._settings.server, pause_s, reason
        )
        await trio.sleep(pause_s)

    async def connect(self) -> None:
        """Connect and shake hands. Raises NbdError."""
        settings = self._settings
        started = time.perf_counter()
        try:
            with trio.fail_after(settings.timeout_s):
                link = await Link.open(settings.host, settings.port)
                try:
                    name = None if settings.host.startswith("/") else settings.host
                    contexts = self._bitmaps.contexts if self._bitmaps else []
                    export = await shake_hands(link, self._name, settings.tls, name, contexts)
                except BaseException:
                    link.close()
                    raise
        except ProtocolError as exc:
            raise NbdError(
                f"{settings.server}: {exc}.",
                remedy="Check host, port, export and TLS of the NBD server.",
                server=settings.server,
                export=self._name,
            ) from exc
        except (OSError, trio.TooSlowError, LinkLost) as exc:
            raise self._unreachable(str(exc.__cause__ or exc) or type(exc).__name__) from exc
        if self.capacity not in (0, export.size):
            raise self._error(f"The export had {self.capacity} bytes and has {export.size}", 0, 0)
        self.capacity = export.size
        self._connection = Connection(link, export, settings.timeout_s)
        self._nursery.start_soon(self._connection.receive)
        log.info(
            "%s of %s is open: %d bytes, allocation %s, %.2f s.",
            self._name or "The default export", settings.server, export.size, self.allocation,
            time.perf_counter() - started,
        )  # fmt: skip

    async def close(self) -> None:
        """Disconnect in order."""
        if self._connection is not None:
            await self._connection.close()

    def _unreachable(self, reason: str) -> NbdError:
        settings = self._settings
        return NbdError(
            f"The NBD server {settings.server} cannot be used: {reason}.",
            transient=True,
            remedy="Check that the server runs, and the network between it and this machine.",
            server=settings.server,
            export=self._name,
        )

    def _error(self, problem: str, offset: int, length: int) -> NbdError:
        settings = self._settings
        return NbdError(
            f"{problem} for {self.key} at offset {offset}, length {length}.",
            remedy="Look at the NBD server's log.",
            server=settings.server,
            export=self._name,
            offset=offset,
            length=length,
        )
