"""One client of a server after the handshake: requests in, replies out, several at once.

A read of what is at hand is answered at once, reads that follow each other by one task, and any other request by
a task of its own; replies come in the order in which they are ready. One task sends them, as many with one call as
there are. What a client can make this process hold is bounded: requests are not received while too many of its own
are in flight, or more bytes than its share, and a long request is answered in pieces. What it writes is stored
piece by piece while it is received.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio

from pipeline.errors import MoverError

from .export import Export, Parts, WritableExport
from .link import Link, LinkLost
from .negotiation import LARGEST_REQUEST, Agreement
from .outbox import Content, More, Outbox
from .protocol import REPLY_DONE, REQUEST, REQUEST_MAGIC, Command, CommandFlag, ProtocolError
from .replies import PIECE, Asked, chunks, extents, failure, filled, simple

MOST_REQUESTS: Final = 128  # libnbd's nbdcopy has 64 in flight

_RECEIVED: Final = 64 << 10  # requests have 28 bytes, so one call brings many
_MOST_EXTENTS: Final = 8192  # of a reply, 64 KiB

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
        self._lines: dict[int, deque[Asked]] = {}  # of reads in order, by where the last of them ends
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
        asked = Asked(command, flags, cookie, offset, length, problem)
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

    def _begin_read(self, asked: Asked) -> None:
        """Answer a read at once, or by the task that answers the one before it on the disk, or by a new task."""
        line = self._lines.pop(asked.offset, None)
        if line is None:
            if self._read_at_once(asked):
                return
            line = deque()
            self._nursery.start_soon(self._read_in_line, line)
        line.append(asked)
        self._lines[asked.offset + asked.length] = line

    def _read_at_once(self, asked: Asked) -> bool:
        if asked.length > PIECE:
            return False
        parts = self._export.read_nowait(asked.offset, asked.length)
        if parts is None:
            return False
        self._end(asked, chunks(asked, asked.offset, parts, REPLY_DONE))
        return True

    async def _read_in_line(self, line: deque[Asked]) -> None:
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

    def _end(self, asked: Asked, content: Content, *, more: More | None = None) -> None:
        """Send the end of a reply."""
        self._outbox.put(content, sent=partial(self._ended, asked), more=more)

    def _ended(self, asked: Asked) -> None:
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

    async def _answer(self, asked: Asked) -> None:
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

    async def _read(self, asked: Asked) -> None:
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
                self._end(asked, chunks(asked, place, parts, REPLY_DONE))
                return
            await self._outbox.put_and_wait(chunks(asked, place, parts, 0))
            place += size

    async def _read_simply(self, asked: Asked) -> None:
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
        head = simple(asked, 0)
        if len(pieces) <= 1:
            self._end(asked, [head, *filled(parts)])
            return

        async def send(link: Link) -> None:
            for place, size in pieces:
                try:
                    again = await self._parts(place, size)
                except (MoverError, OSError) as exc:
                    raise LinkLost("what was read once cannot be read again") from exc
                await link.send_parts(filled(again))

        self._end(asked, [head], more=send)

    async def _parts(self, offset: int, length: int) -> Parts:
        parts = self._export.read_nowait(offset, length)
        return await self._export.read(offset, length) if parts is None else parts

    async def _status(self, asked: Asked) -> None:
        try:
            states = await self._export.states(asked.offset, asked.length)
        except (MoverError, OSError) as exc:
            self._fail(asked, _number(exc))
            return
        told = states[: 1 if asked.flags & CommandFlag.ONE_EXTENT else _MOST_EXTENTS]
        self._end(asked, extents(asked, told))

    async def _write(self, asked: Asked) -> None:
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

    async def _change(self, export: WritableExport, asked: Asked) -> None:
        problem = 0
        try:
            if asked.command != Command.FLUSH:
                await export.zero(asked.offset, asked.length)
        except (MoverError, OSError) as exc:
            problem = _number(exc)
        await self._changed(asked, problem)

    async def _changed(self, asked: Asked, problem: int) -> None:
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

    def _done(self, asked: Asked) -> None:
        self._end(asked, [simple(asked, 0)])

    def _fail(self, asked: Asked, problem: int, offset: int | None = None) -> None:
        if self._structured and asked.command in (Command.READ, Command.BLOCK_STATUS):
            self._end(asked, failure(asked, problem, offset))
        else:
            self._end(asked, [simple(asked, problem)])

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


def _number(exc: MoverError | OSError) -> int:
    """The error number that NBD has for an error."""
    cause = exc if isinstance(exc, OSError) else exc.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return errno.ENOSPC if full else errno.EIO
