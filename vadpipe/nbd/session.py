"""One client of a server after the handshake: requests in, replies out, several at once.

A read of what is at hand is answered at once, reads that follow each other by one task, and any other request by
a task of its own; replies come in the order in which they are ready. One task sends them, as many with one call as
there are. What a client can make this process hold is bounded: requests are not received while too many of its own
are in flight, or more bytes than its share, and a long request is answered in pieces. What it writes is stored
piece by piece while it is received.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

import trio

from pipeline.errors import MoverError

from .export import Export, Parts, WritableExport
from .link import Link, LinkLost
from .negotiation import CONTEXT_ID, LARGEST_REQUEST, Agreement
from .outbox import Content, More, Outbox
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

PIECE: Final = 1 << 20  # of a longer request; about a frame of a repository
MOST_REQUESTS: Final = 128  # libnbd's nbdcopy has 64 in flight

_RECEIVED: Final = 64 << 10  # requests have 28 bytes, so one call brings many
_LEAST_HOLE: Final = 16 << 10  # shorter ones are sent as zeros: a chunk costs about as much to send
_MOST_EXTENTS: Final = 8192  # of a reply, 64 KiB

_CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
_SIMPLE = struct.Struct(">IIQ")
_CONTEXT = struct.Struct(">I")
_EXTENT = struct.Struct(">II")
_DATA_CHUNK = struct.Struct(">IHHQIQ")  # the same, and the offset of the data
_HOLE_CHUNK = struct.Struct(">IHHQIQI")
assert _CHUNK.size == REPLY_MAGIC.size + STRUCTURED_REPLY.size
assert _SIMPLE.size == REPLY_MAGIC.size + SIMPLE_REPLY.size

_ZEROS: Final = memoryview(bytes(PIECE))
# The flags that each command may have. Plain numbers: arithmetic on flags as enumerations costs microseconds.
_KNOWN_FLAGS: Final[Mapping[int, int]] = {
    int(Command.READ): int(CommandFlag.DONT_FRAGMENT),
    int(Command.WRITE): int(CommandFlag.FUA),
    int(Command.FLUSH): 0,
    int(Command.TRIM): int(CommandFlag.FUA),
    int(Command.CACHE): 0,
    int(Command.WRITE_ZEROES): int(CommandFlag.FUA | CommandFlag.NO_HOLE),
    int(Command.BLOCK_STATUS): int(CommandFlag.ONE_EXTENT),
}
_CHANGES: Final = frozenset(map(int, (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.FLUSH)))
_READ: Final = int(Command.READ)
_DONT_FRAGMENT: Final = int(CommandFlag.DONT_FRAGMENT)


class _Asked(NamedTuple):
    """A request. `problem`: the error number that is all it gets; 0: it is served."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    problem: int


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
        self._outbox = Outbox(link)
        self._lines: dict[int, deque[_Asked]] = {}  # of reads in order, by where the last of them ends
        self._requests = 0
        self._bytes = 0
        self._freed: trio.Event | None = None
        self._received = memoryview(bytearray(_RECEIVED))
        self._first = self._last = 0  # of what is received and not used
        self._lost: LinkLost | ProtocolError | None = None

    async def run(self) -> None:
        """Serve until the client says good-bye. Raises LinkLost, ProtocolError."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._send)
            try:
                while await self._one_request():
                    pass
                while self._requests:
                    await self._wait_for_one()
            except (LinkLost, ProtocolError) as exc:
                self._lost = self._lost or exc
            nursery.cancel_scope.cancel()
        if self._lost is not None:
            raise self._lost

    async def _send(self) -> None:
        try:
            await self._outbox.run()
        except LinkLost as exc:
            self._lost = self._lost or exc
            self._nursery.cancel_scope.cancel()

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
        asked = _Asked(command, flags, cookie, offset, length, problem)
        claim = min(length, PIECE) if command == _READ else 0
        while self._requests >= MOST_REQUESTS or (self._requests and self._bytes + claim > self._share()):
            await self._wait_for_one()
        self._requests += 1
        self._bytes += claim
        if command == Command.WRITE:
            await self._write(asked)
        elif command == _READ and not problem and self._structured:
            self._begin_read(asked)
        else:
            self._nursery.start_soon(self._answer, asked)
        return True

    def _begin_read(self, asked: _Asked) -> None:
        """Answer a read at once, or by the task that answers the one before it on the disk, or by a new task."""
        line = self._lines.pop(asked.offset, None)
        if line is None:
            if self._read_at_once(asked):
                return
            line = deque()
            self._nursery.start_soon(self._read_in_line, line)
        line.append(asked)
        self._lines[asked.offset + asked.length] = line

    def _read_at_once(self, asked: _Asked) -> bool:
        if asked.length > PIECE:
            return False
        parts = self._export.read_nowait(asked.offset, asked.length)
        if parts is None:
            return False
        self._end(asked, _chunks(asked, asked.offset, parts, REPLY_DONE))
        return True

    async def _read_in_line(self, line: deque[_Asked]) -> None:
        """Answer reads that follow each other on the disk; a task for each would cost more than what it does."""
        while line:
            asked = line[0]
            if not self._read_at_once(asked):
                await self._read(asked)
            line.popleft()
            if not line:
                self._lines.pop(asked.offset + asked.length, None)

    async def _wait_for_one(self) -> None:
        """Wait until a reply is sent."""
        self._freed = trio.Event()
        await self._freed.wait()

    def _end(self, asked: _Asked, content: Content, *, more: More | None = None) -> None:
        """Send the end of a reply."""
        self._outbox.put(content, sent=partial(self._ended, asked), more=more)

    def _ended(self, asked: _Asked) -> None:
        self._requests -= 1
        if asked.command == _READ:
            self._bytes -= min(asked.length, PIECE)
        if self._freed is not None:
            self._freed.set()

    def _problem(self, command: int, flags: int, offset: int, length: int) -> int:
        """The error number of a request that cannot be served; 0: it can."""
        known = _KNOWN_FLAGS.get(command)
        if known is None or flags & ~known:
            return errno.EINVAL
        if command == _READ:
            if offset + length > self._export.size or length > LARGEST_REQUEST:
                return errno.EINVAL
            return errno.EOVERFLOW if flags and length > PIECE else 0
        if command in _CHANGES and self._changes is None:
            return errno.EPERM
        if command == Command.FLUSH:
            return errno.EINVAL if offset or length else 0
        if offset + length > self._export.size:
            return errno.ENOSPC if command in _CHANGES else errno.EINVAL
        if command == Command.BLOCK_STATUS and not (length and self._allocation and self._structured):
            return errno.EINVAL
        return 0

    async def _answer(self, asked: _Asked) -> None:
        if asked.problem:
            self._fail(asked, asked.problem)
        elif asked.command == Command.READ:
            await self._read_simply(asked)
        elif asked.command == Command.BLOCK_STATUS:
            await self._status(asked)
        elif asked.command == Command.CACHE:
            self._export.expect(asked.offset, asked.length)
            self._done(asked)
        elif self._changes is not None:
            await self._change(self._changes, asked)

    async def _read(self, asked: _Asked) -> None:
        end = asked.offset + asked.length
        place = asked.offset
        while True:
            size = min(end - place, PIECE)
            try:
                parts = await self._parts(place, size)
            except (MoverError, OSError) as exc:
                self._fail(asked, _number(exc), place)
                return
            if place + size == end:
                self._end(asked, _chunks(asked, place, parts, REPLY_DONE))
                return
            await self._outbox.put_and_wait(_chunks(asked, place, parts, 0))
            place += size

    async def _read_simply(self, asked: _Asked) -> None:
        """A reply without chunks cannot fail when it has begun, so a long one is read twice, and not held."""
        end = asked.offset + asked.length
        pieces = [(place, min(end - place, PIECE)) for place in range(asked.offset, end, PIECE)]
        parts: Parts = ()
        try:
            for place, size in pieces:
                parts = await self._parts(place, size)
        except (MoverError, OSError) as exc:
            self._fail(asked, _number(exc))
            return
        head = _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, asked.cookie)
        if len(pieces) <= 1:
            self._end(asked, [head, *_filled(parts)])
            return

        async def send(link: Link) -> None:
            for place, size in pieces:
                try:
                    again = await self._parts(place, size)
                except (MoverError, OSError) as exc:
                    raise LinkLost("what was read once cannot be read again") from exc
                await link.send_parts(_filled(again))

        self._end(asked, [head], more=send)

    async def _parts(self, offset: int, length: int) -> Parts:
        parts = self._export.read_nowait(offset, length)
        return await self._export.read(offset, length) if parts is None else parts

    async def _status(self, asked: _Asked) -> None:
        try:
            states = await self._export.states(asked.offset, asked.length)
        except (MoverError, OSError) as exc:
            self._fail(asked, _number(exc))
            return
        told = states[: 1 if asked.flags & CommandFlag.ONE_EXTENT else _MOST_EXTENTS]
        content = b"".join([_CONTEXT.pack(CONTEXT_ID), *(_EXTENT.pack(*each) for each in told)])
        self._end(asked, [_head(asked, Chunk.BLOCK_STATUS, len(content)), content])

    async def _write(self, asked: _Asked) -> None:
        """Store what is received, before the next request is. After an error the rest is received and dropped."""
        problem = asked.problem
        content = memoryview(bytearray(min(asked.length, PIECE)))
        place, end = asked.offset, asked.offset + asked.length
        while place < end:
            piece = content[: min(end - place, PIECE)]
            await self._receive_into(piece)
            if not problem and self._changes is not None:
                try:
                    await self._changes.write(place, piece)
                except (MoverError, OSError) as exc:
                    problem = _number(exc)
            place += len(piece)
        await self._changed(asked, problem)

    async def _change(self, export: WritableExport, asked: _Asked) -> None:
        problem = 0
        try:
            if asked.command != Command.FLUSH:
                await export.zero(asked.offset, asked.length)
        except (MoverError, OSError) as exc:
            problem = _number(exc)
        await self._changed(asked, problem)

    async def _changed(self, asked: _Asked, problem: int) -> None:
        """Answer a change, after a flush where one is asked for."""
        wanted = asked.command == Command.FLUSH or asked.flags & CommandFlag.FUA
        if wanted and not problem and self._changes is not None:
            try:
                await self._changes.flush()
            except (MoverError, OSError) as exc:
                problem = _number(exc)
        if problem:
            self._fail(asked, problem)
        else:
            self._done(asked)

    def _done(self, asked: _Asked) -> None:
        self._end(asked, [_SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, asked.cookie)])

    def _fail(self, asked: _Asked, problem: int, offset: int | None = None) -> None:
        if not self._structured or asked.command not in (Command.READ, Command.BLOCK_STATUS):
            self._end(asked, [_SIMPLE.pack(SIMPLE_REPLY_MAGIC, problem, asked.cookie)])
            return
        kind, content = Chunk.ERROR, struct.pack(">IH", problem, 0)
        if offset is not None:
            kind, content = Chunk.ERROR_OFFSET, content + struct.pack(">Q", offset)
        self._end(asked, [_head(asked, kind, len(content)), content])

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


def _chunks(asked: _Asked, offset: int, parts: Parts, last: int) -> list[bytes | memoryview]:
    """The chunks of a structured reply to a read: holes that are worth it, and data between them."""
    whole = asked.flags & _DONT_FRAGMENT
    found: list[bytes | memoryview] = []
    data: list[bytes | memoryview] = []
    place = begun = offset
    left = len(parts)
    for part in parts:
        left -= 1
        if not isinstance(part, int):
            data.append(part)
            place += len(part)
        elif part < _LEAST_HOLE or whole:
            data.append(_ZEROS[:part])
            place += part
        else:
            if data:
                found += [_data_head(asked, begun, place, 0), *data]
                data = []
            done = 0 if left else last
            head = (STRUCTURED_REPLY_MAGIC, done, Chunk.HOLE, asked.cookie, HOLE.size)
            found.append(_HOLE_CHUNK.pack(*head, place, part))
            place += part
            begun = place
    if data:
        found += [_data_head(asked, begun, place, last), *data]
    return found or [_head(asked, Chunk.NONE, 0)]


def _data_head(asked: _Asked, offset: int, end: int, flags: int) -> bytes:
    size = end - offset + 8
    return _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, Chunk.DATA, asked.cookie, size, offset)


def _head(asked: _Asked, kind: int, size: int) -> bytes:
    """Of a chunk that is the last of its reply."""
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, REPLY_DONE, kind, asked.cookie, size)


def _filled(parts: Parts) -> list[bytes | memoryview]:
    return [_ZEROS[:part] if isinstance(part, int) else part for part in parts]


def _number(exc: MoverError | OSError) -> int:
    """The error number that NBD has for an error."""
    cause = exc if isinstance(exc, OSError) else exc.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return errno.ENOSPC if full else errno.EIO
