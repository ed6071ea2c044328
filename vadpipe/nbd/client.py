"""A disk of an NBD server, read with several requests in flight over one connection.

A lost or silent connection is replaced, and its requests are sent anew.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from pipeline.buffers import Buffer, BufferPool
from pipeline.errors import ChangeTrackingInvalid, ConfigError, SourceError
from pipeline.extents import Extents
from pipeline.protocols import ChangedAreas
from pipeline.units import CLUSTER, SPAN

from . import protocol
from .connection import Connection, Request, shake_hands
from .link import Link, LinkLost
from .protocol import Command, ProtocolError, State

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

    @property
    def server(self) -> str:
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"

    @asynccontextmanager
    async def open(
        self, access: HasPath | None = None, pool: BufferPool | None = None, key: str = ""
    ) -> AsyncIterator[NbdDisk]:
        """Open an export for reading, and disconnect at the end.

        Args:
            access: Names the export where the settings do not.
            pool: The disk is read into buffers of this pool; None: a pool of its own.
            key: Names the disk; empty: the export's name does, or the server's.

        Raises:
            NbdError: The server cannot be reached, or has no such export.
        """
        name = self.export or (access.path if access is not None else "")
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            disk = NbdDisk(self, name, pool or BufferPool(), nursery, key)
            try:
                await disk.connect()
                yield disk
            except BaseException as exc:  # raised again outside of the nursery: bare, not in a group
                failure = exc
            await disk.close()
            nursery.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure


<<<<<<< HEAD
=======
class _Lost(Exception):
    """The connection was lost before a reply; the text is the reason."""


@dataclass(eq=False)
class _Request:
    """A request in flight. `take(offset, content)` gets bytes or the length of a hole; None after cancelling.

    `content`: what is sent with it. `reads`: whether a simple reply brings bytes.
    """

    offset: int
    length: int
    take: Callable[[int, bytes | int], None] | None
    received: int = 0
    status: list[tuple[int, State]] = field(default_factory=list)
    error: int = 0
    lost: str = ""
    ended: trio.Event = field(default_factory=trio.Event)
    content: memoryview | None = None
    reads: bool = True


class _Connection:
    """One connection to the server, after its handshake."""

    def __init__(self, stream: trio.abc.Stream, export: Export, timeout_s: float) -> None:
        self.export = export
        self._stream = stream
        self._timeout_s = timeout_s
        self._received = bytearray()
        self._requests: dict[int, _Request] = {}
        self._sending = trio.Lock()
        self._silence = trio.CancelScope()
        self._cookie = 0
        self.lost = ""

    async def run(self, command: Command, asked: _Request) -> None:
        """Send a request and wait for the end of its reply. Raises _Lost."""
        if self.lost:
            raise _Lost(self.lost)
        self._cookie += 1
        cookie = self._cookie
        self._requests[cookie] = asked
        self._silence.deadline = trio.current_time() + self._timeout_s
        try:
            async with self._sending:
                with trio.CancelScope(shield=True):  # half a request would spoil the connection
                    await self._stream.send_all(protocol.request(command, cookie, asked.offset, asked.length))
                    if asked.content is not None:
                        await self._stream.send_all(asked.content)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._requests.pop(cookie, None)
            raise _Lost(f"the connection broke ({exc})") from exc
        try:
            await asked.ended.wait()
        except BaseException:
            asked.take = None
            raise
        if asked.lost:
            raise _Lost(asked.lost)

    async def receive(self) -> None:
        """Handle replies until the connection ends; never raises an error."""
        try:
            with self._silence:
                while True:
                    await self._receive_reply()
            self.lost = f"there was no reply for {self._timeout_s:g} s"
        except (_Lost, ProtocolError) as exc:
            self.lost = str(exc)
        except trio.Cancelled:
            self.lost = "it was closed"
            raise
        finally:
            self.lost = self.lost or "it failed"
            for asked in self._requests.values():
                asked.lost = self.lost
                asked.ended.set()
            self._requests.clear()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _receive_reply(self) -> None:
        (magic,) = protocol.REPLY_MAGIC.unpack(await self._exactly(4))
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            error, cookie = protocol.SIMPLE_REPLY.unpack(await self._exactly(protocol.SIMPLE_REPLY.size))
            asked = self._find(cookie)
            asked.error = error
            if not error and asked.reads:
                await self._take(asked, asked.offset, asked.length)
            self._end(cookie)
            return
        if magic != protocol.STRUCTURED_REPLY_MAGIC:
            protocol.malformed("reply")
        content = await self._exactly(protocol.STRUCTURED_REPLY.size)
        flags, kind, cookie, length = protocol.STRUCTURED_REPLY.unpack(content)
        asked = self._find(cookie)
        await self._receive_chunk(asked, kind, length)
        if flags & protocol.REPLY_DONE:
            self._end(cookie)
        else:
            self._sign_of_life()

    async def _receive_chunk(self, asked: _Request, kind: int, length: int) -> None:
        if kind == Chunk.DATA and length > 8:
            offset = int.from_bytes(await self._exactly(8), "big")
            await self._take(asked, offset, length - 8)
            return
        if length > protocol.MAX_MESSAGE:
            protocol.malformed("chunk")
        content = await self._exactly(length)
        if kind == Chunk.HOLE and length == protocol.HOLE.size:
            offset, size = protocol.HOLE.unpack(content)
            self._check(asked, offset, size)
            if asked.take is not None:
                asked.take(offset, size)
        elif kind == Chunk.BLOCK_STATUS:
            asked.status += protocol.block_status(content, self.export.contexts.get(protocol.ALLOCATION, 0))
        elif kind & 0x8000:
            asked.error = int.from_bytes(content[:4], "big") or 5
        elif kind != Chunk.NONE:
            protocol.malformed("chunk")

    async def _take(self, asked: _Request, offset: int, length: int) -> None:
        """Receive bytes of a reply straight to where they belong."""
        self._check(asked, offset, length)
        while length:
            if not self._received:
                await self._fill()
            part = bytes(self._received[:length])
            del self._received[: len(part)]
            if asked.take is not None:
                asked.take(offset, part)
            offset, length = offset + len(part), length - len(part)

    def _check(self, asked: _Request, offset: int, length: int) -> None:
        asked.received += length
        end = asked.offset + asked.length
        if not asked.offset <= offset <= offset + length <= end or asked.received > asked.length:
            protocol.malformed("range of data")

    async def _exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            await self._fill()
        content = bytes(self._received[:length])
        del self._received[:length]
        return content

    async def _fill(self) -> None:
        try:
            content = await self._stream.receive_some(1 << 18)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise _Lost(f"the connection broke ({exc})") from exc
        if not content:
            raise _Lost("the server closed the connection")
        self._received += content

    def _find(self, cookie: int) -> _Request:
        asked = self._requests.get(cookie)
        if asked is None:
            raise ProtocolError("the server sent a reply to no request")
        return asked

    def _end(self, cookie: int) -> None:
        self._requests.pop(cookie).ended.set()
        self._sign_of_life()

    def _sign_of_life(self) -> None:
        waiting = trio.current_time() + self._timeout_s if self._requests else math.inf
        self._silence.deadline = waiting

    async def close(self) -> None:
        """Say good-bye; the receiver closes the stream."""
        with (
            trio.move_on_after(CLOSING_S, shield=True),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            async with self._sending:
                await self._stream.send_all(protocol.request(Command.DISCONNECT, 0))


>>>>>>> main
class NbdDisk:
    """An open export; a `pipeline.Disk` without change tracking."""

    change_id: None = None

    def __init__(
        self, settings: Nbd, name: str, pool: BufferPool, nursery: trio.Nursery, key: str = ""
    ) -> None:
        self.key = key or name or settings.server
        self.label = key or name.rpartition("/")[2] or settings.server
        self.pool = pool
        self.capacity = 0
        self.reconnects = 0
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
        found: list[tuple[int, int]] = []
        place = offset // CLUSTER * CLUSTER
        while place < end:
            size = min(STATUS_SPAN, -(-(end - place) // CLUSTER) * CLUSTER, self.capacity - place)
            asked = await self._run(Command.BLOCK_STATUS, place, size, None)
            before = place
            for extent, state in asked.status:
                if not state & State.ZERO:
                    found.append((place, min(extent, self.capacity - place)))
                place = min(place + extent, self.capacity)
            if place == before:
                raise self._error("The server told no extents", place, size)
        return Extents.of(found).within(offset, end - offset)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        """NBD has no change tracking.

        Raises:
            ChangeTrackingInvalid: Always.
        """
        raise ChangeTrackingInvalid(
            f"{self.key} is read over NBD, which has no change tracking.", disk=self.key
        )

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

<<<<<<< HEAD
    async def _run(self, command: Command, offset: int, length: int, target: memoryview | None) -> Request:
=======
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
        take: Callable[[int, bytes | int], None] | None,
        content: memoryview | None = None,
    ) -> _Request:
>>>>>>> main
        """Run one request, over new connections when the connection is lost."""
        async with self._places:
            while True:
                connection = await self._ready()
<<<<<<< HEAD
                asked = Request(offset, length, target)
=======
                reads = command in (Command.READ, Command.BLOCK_STATUS)
                asked = _Request(offset, length, take, content=content, reads=reads)
>>>>>>> main
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
            raise self._unreachable(
                f"{reason.rstrip('.')}; {self._failures - 1} new connections did not help"
            )
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
                    export = await shake_hands(link, self._name, settings.tls, name)
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
