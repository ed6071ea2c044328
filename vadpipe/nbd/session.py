"""One client of a server after the handshake: requests in, replies out, several at once.

A request is a task of its own, and replies come in the order in which they are ready. What a client can make this
process hold is bounded: requests are not received while `most_requests` of its own are in flight, or as many bytes
as its share allows, and a long request is answered in pieces. What it writes is stored piece by piece while it is
received.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable
from typing import Final

import trio

from pipeline.errors import MoverError

from .export import Export, Parts, WritableExport
from .link import Link, LinkLost
from .negotiation import CONTEXT_ID, LARGEST_REQUEST, Agreement
from .protocol import (
    HOLE,
    REPLY_DONE,
    REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    ProtocolError,
)

log = logging.getLogger(__name__)

PIECE: Final = 1 << 20  # of a longer request; about a frame of a repository
MOST_REQUESTS: Final = 128  # libnbd's nbdcopy has 64 in flight

_RECEIVED: Final = 64 << 10  # requests have 28 bytes, so one call brings many
_LEAST_HOLE: Final = 16 << 10  # shorter ones are sent as zeros: a chunk costs about as much to send
_MOST_EXTENTS: Final = 8192  # of a reply, 64 KiB

_CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
_SIMPLE = struct.Struct(">IIQ")
_DATA_CHUNK = struct.Struct(">IHHQIQ")  # the same, and the offset of the data
_HOLE_CHUNK = struct.Struct(">IHHQIQI")
assert _CHUNK.size == REPLY_MAGIC.size + STRUCTURED_REPLY.size
assert _SIMPLE.size == REPLY_MAGIC.size + SIMPLE_REPLY.size

_ZEROS: Final = memoryview(bytes(PIECE))
_KNOWN_FLAGS: Final = {
    Command.READ: CommandFlag.DONT_FRAGMENT,
    Command.WRITE: CommandFlag.FUA,
    Command.FLUSH: CommandFlag(0),
    Command.TRIM: CommandFlag.FUA,
    Command.CACHE: CommandFlag(0),
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE,
    Command.BLOCK_STATUS: CommandFlag.ONE_EXTENT,
}
_CHANGES: Final = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.FLUSH)


class Session:
    """Requests and replies of one client.

    Args:
        link: Where the client is.
        agreed: What the handshake ended with; it has an export.
        share: How many bytes of requests may be in flight, asked for when there are some already.
    """

    def __init__(self, link: Link, agreed: Agreement, share: Callable[[], int]) -> None:
        assert agreed.export is not None
        self._export: Export = agreed.export
        self._changes = agreed.export if isinstance(agreed.export, WritableExport) else None
        self._structured = agreed.structured
        self._allocation = agreed.allocation
        self._link = link
        self._share = share
        self._sending = trio.Lock()
        self._requests = 0
        self._bytes = 0
        self._freed: trio.Event | None = None
        self._received = memoryview(bytearray(_RECEIVED))
        self._first = self._last = 0  # of what is received and not used
        self._lost = ""

    async def run(self) -> None:
        """Serve until the client says good-bye. Raises LinkLost, ProtocolError."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while await self._one_request():
                    pass
            except (LinkLost, ProtocolError) as exc:
                failure = exc
                nursery.cancel_scope.cancel()
        if self._lost:
            raise LinkLost(self._lost)
        if failure is not None:
            raise failure

    async def _one_request(self) -> bool:
        """Receive a request and begin with it. False: it was the last."""
        if self._last - self._first < REQUEST.size:
            await self._receive(REQUEST.size)
        magic, flags, command, cookie, offset, length = REQUEST.unpack_from(self._received, self._first)
        self._first += REQUEST.size
        if magic != REQUEST_MAGIC:
            raise ProtocolError("the client sent what is no request")
        if command == Command.DISCONNECT:
            return False
        if command == Command.WRITE and length > LARGEST_REQUEST:
            raise ProtocolError(f"the client wants to write {length} bytes at once")
        problem = self._problem(command, flags, offset, length)
        if command == Command.WRITE:
            await self._write(cookie, flags, offset, length, problem)
            return True
        claim = min(length, PIECE) if command == Command.READ else 0
        while self._requests >= MOST_REQUESTS or (self._requests and self._bytes + claim > self._share()):
            self._freed = trio.Event()
            await self._freed.wait()
        self._requests += 1
        self._bytes += claim
        self._nursery.start_soon(self._answer, command, flags, cookie, offset, length, problem, claim)
        return True

    def _problem(self, command: int, flags: int, offset: int, length: int) -> int:
        """The error number of a request that cannot be served; 0: it can."""
        known = _KNOWN_FLAGS.get(command)  # type: ignore[call-overload]  # a number that may be no command
        if known is None or flags & ~known:
            return errno.EINVAL
        if command in _CHANGES and self._changes is None:
            return errno.EPERM
        if command == Command.FLUSH:
            return errno.EINVAL if offset or length else 0
        if offset + length > self._export.size:
            return errno.ENOSPC if command in _CHANGES else errno.EINVAL
        if command == Command.READ and length > LARGEST_REQUEST:
            return errno.EINVAL
        if command == Command.READ and flags & CommandFlag.DONT_FRAGMENT and length > PIECE:
            return errno.EOVERFLOW
        if command == Command.BLOCK_STATUS and not (length and self._allocation and self._structured):
            return errno.EINVAL
        return 0

    async def _answer(
        self, command: int, flags: int, cookie: int, offset: int, length: int, problem: int, claim: int
    ) -> None:
        try:
            if problem:
                await self._fail(command, cookie, problem)
            elif command == Command.READ:
                await self._read(cookie, offset, length, bool(flags & CommandFlag.DONT_FRAGMENT))
            elif command == Command.BLOCK_STATUS:
                await self._status(cookie, offset, length, bool(flags & CommandFlag.ONE_EXTENT))
            elif command == Command.CACHE:
                self._export.expect(offset, length)
                await self._done(cookie)
            elif self._changes is not None:
                await self._change(self._changes, cookie, command, flags, offset, length)
        except LinkLost as exc:
            self._lost = self._lost or str(exc)
            self._nursery.cancel_scope.cancel()
        finally:
            self._requests -= 1
            self._bytes -= claim
            if self._freed is not None:
                self._freed.set()

    async def _read(self, cookie: int, offset: int, length: int, whole: bool) -> None:
        if not self._structured:
            await self._read_simply(cookie, offset, length)
            return
        end = offset + length
        place = offset
        while True:
            size = min(end - place, PIECE)
            try:
                parts = await self._parts(place, size)
            except (MoverError, OSError) as exc:
                await self._fail(Command.READ, cookie, _number(exc), place)
                return
            last = REPLY_DONE if place + size == end else 0
            await self._send(_chunks(cookie, place, parts, last, whole=whole))
            place += size
            if last:
                return

    async def _read_simply(self, cookie: int, offset: int, length: int) -> None:
        """A reply without chunks cannot fail when it has begun, so a long one is read twice, and not held."""
        pieces = [
            (place, min(offset + length - place, PIECE)) for place in range(offset, offset + length, PIECE)
        ]
        parts: Parts = ()
        try:
            for place, size in pieces:
                parts = await self._parts(place, size)
        except (MoverError, OSError) as exc:
            await self._fail(Command.READ, cookie, _number(exc))
            return
        head = _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        if len(pieces) <= 1:
            await self._send([head, *_filled(parts)])
            return
        async with self._sending:
            await self._link.send_parts([head])
            for place, size in pieces:
                try:
                    parts = await self._parts(place, size)
                except (MoverError, OSError) as exc:
                    raise LinkLost("what was read once cannot be read again") from exc
                await self._link.send_parts(_filled(parts))

    async def _parts(self, offset: int, length: int) -> Parts:
        parts = self._export.read_nowait(offset, length)
        return await self._export.read(offset, length) if parts is None else parts

    async def _status(self, cookie: int, offset: int, length: int, one: bool) -> None:
        try:
            states = (await self._export.states(offset, length))[: 1 if one else _MOST_EXTENTS]
        except (MoverError, OSError) as exc:
            await self._fail(Command.BLOCK_STATUS, cookie, _number(exc))
            return
        content = b"".join(struct.pack(">II", *each) for each in states)
        size = 4 + len(content)
        head = _CHUNK.pack(STRUCTURED_REPLY_MAGIC, REPLY_DONE, Chunk.BLOCK_STATUS, cookie, size)
        await self._send([head + struct.pack(">I", CONTEXT_ID) + content])

    async def _write(self, cookie: int, flags: int, offset: int, length: int, problem: int) -> None:
        """Store what is received, before the next request is. After an error the rest is received and dropped."""
        content = memoryview(bytearray(min(length, PIECE)))
        end, place = offset + length, offset
        while place < end:
            piece = content[: min(end - place, PIECE)]
            await self._receive_into(piece)
            if not problem and self._changes is not None:
                try:
                    await self._changes.write(place, piece)
                except (MoverError, OSError) as exc:
                    problem = _number(exc)
            place += len(piece)
        if not problem and flags & CommandFlag.FUA:
            problem = await self._flushed()
        await (self._fail(Command.WRITE, cookie, problem) if problem else self._done(cookie))

    async def _change(
        self, export: WritableExport, cookie: int, command: int, flags: int, offset: int, length: int
    ) -> None:
        problem = 0
        try:
            if command != Command.FLUSH:
                await export.zero(offset, length)
        except (MoverError, OSError) as exc:
            problem = _number(exc)
        if not problem and (command == Command.FLUSH or flags & CommandFlag.FUA):
            problem = await self._flushed()
        await (self._fail(command, cookie, problem) if problem else self._done(cookie))

    async def _flushed(self) -> int:
        try:
            if self._changes is not None:
                await self._changes.flush()
        except (MoverError, OSError) as exc:
            return _number(exc)
        return 0

    async def _done(self, cookie: int) -> None:
        await self._send([_SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)])

    async def _fail(self, command: int, cookie: int, problem: int, offset: int | None = None) -> None:
        if not self._structured or command not in (Command.READ, Command.BLOCK_STATUS):
            await self._send([_SIMPLE.pack(SIMPLE_REPLY_MAGIC, problem, cookie)])
            return
        content = struct.pack(">IH", problem, 0)
        kind = Chunk.ERROR
        if offset is not None:
            kind, content = Chunk.ERROR_OFFSET, content + struct.pack(">Q", offset)
        head = _CHUNK.pack(STRUCTURED_REPLY_MAGIC, REPLY_DONE, kind, cookie, len(content))
        await self._send([head + content])

    async def _send(self, parts: list[bytes | memoryview]) -> None:
        async with self._sending:
            await self._link.send_parts(parts)

    async def _receive(self, size: int) -> None:
        """Have at least `size` bytes received, which fit. Raises LinkLost."""
        held = self._last - self._first
        self._received[:held] = self._received[self._first : self._last]
        self._first, self._last = 0, held
        while self._last < size:
            count = self._link.receive_nowait(self._received[self._last :])
            if not count:
                await self._link.wait()
            self._last += count
        await trio.lowlevel.checkpoint()

    async def _receive_into(self, target: memoryview) -> None:
        """Fill all of `target`. Raises LinkLost."""
        held = min(self._last - self._first, len(target))
        target[:held] = self._received[self._first : self._first + held]
        self._first += held
        rest = target[held:]
        while rest:
            count = self._link.receive_nowait(rest)
            if not count:
                await self._link.wait()
            rest = rest[count:]


def _chunks(cookie: int, offset: int, parts: Parts, last: int, *, whole: bool) -> list[bytes | memoryview]:
    """The chunks of a structured reply to a read: holes that are worth it, and data between them."""
    found: list[bytes | memoryview] = []
    data: list[memoryview] = []
    place, begun = offset, offset
    left = len(parts)
    for part in parts:
        left -= 1
        if isinstance(part, int) and (part < _LEAST_HOLE or whole):
            data.append(_ZEROS[:part])
            place += part
        elif isinstance(part, int):
            if data:
                found += _data(cookie, begun, data, place - begun, 0)
                data = []
            done = 0 if left else last
            size = HOLE.size
            found.append(
                _HOLE_CHUNK.pack(STRUCTURED_REPLY_MAGIC, done, Chunk.HOLE, cookie, size, place, part)
            )
            place += part
            begun = place
        else:
            data.append(part)
            place += len(part)
    if data:
        found += _data(cookie, begun, data, place - begun, last)
    return found or [_CHUNK.pack(STRUCTURED_REPLY_MAGIC, last, Chunk.NONE, cookie, 0)]


def _data(
    cookie: int, offset: int, data: list[memoryview], length: int, flags: int
) -> list[bytes | memoryview]:
    head = _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, Chunk.DATA, cookie, length + 8, offset)
    return [head, *data]


def _filled(parts: Parts) -> list[bytes | memoryview]:
    return [_ZEROS[:part] if isinstance(part, int) else part for part in parts]


def _number(exc: MoverError | OSError) -> int:
    """The error number that NBD has for an error."""
    cause = exc if isinstance(exc, OSError) else exc.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return errno.ENOSPC if full else errno.EIO
