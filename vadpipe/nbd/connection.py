"""One connection to an NBD server: its handshake, requests in flight, and the task that receives their replies.

The bytes of a reply are received straight into the memory of the one who asked. A request that was cancelled stays
in flight, and its reply is thrown away, so nothing writes into its memory any more.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from . import protocol
from .link import Link, LinkLost
from .protocol import Chunk, Command, Export, ProtocolError, State

CLOSING_S = 5.0
_DISCARDED = 1 << 16  # bytes of a reply nobody wants that are received at once


@dataclass(eq=False)
class Request:
    """A request in flight. Its bytes go to `target`, which is as long; None: they are thrown away.

    `content`: what is sent with it. `reads`: whether a simple reply brings bytes. `context`: whose block status is
    kept.
    """

    offset: int
    length: int
    target: memoryview | None
    received: int = 0
    status: list[tuple[int, State]] = field(default_factory=list)
    error: int = 0
    lost: str = ""
    ended: trio.Event = field(default_factory=trio.Event)
    content: memoryview | None = None
    reads: bool = True
    context: str = protocol.ALLOCATION


class Connection:
    """Run `receive` in the background; then `run` requests."""

    def __init__(self, link: Link, export: Export, timeout_s: float) -> None:
        self.export = export
        self._link = link
        self._timeout_s = timeout_s
        self._requests: dict[int, Request] = {}
        self._sending = trio.Lock()
        self._silence = trio.CancelScope()
        self._cookie = 0
        self.lost = ""

    async def run(self, command: Command, asked: Request) -> None:
        """Send a request and wait for the end of its reply. Raises LinkLost."""
        if self.lost:
            raise LinkLost(self.lost)
        self._cookie += 1
        cookie = self._cookie
        self._requests[cookie] = asked
        self._silence.deadline = trio.current_time() + self._timeout_s
        try:
            async with self._sending:
                with trio.CancelScope(shield=True):  # half a request would spoil the connection
                    await self._link.send_all(protocol.request(command, cookie, asked.offset, asked.length))
                    if asked.content is not None:
                        await self._link.send_all(asked.content)
        except BaseException:  # nothing was sent, or the link is lost: no reply will come
            self._requests.pop(cookie, None)
            raise
        try:
            await asked.ended.wait()
        except BaseException:
            asked.target = None
            raise
        if asked.lost:
            raise LinkLost(asked.lost)

    async def receive(self) -> None:
        """Handle replies until the connection ends; never raises an error."""
        try:
            with self._silence:
                while True:
                    await self._receive_reply()
            self.lost = f"there was no reply for {self._timeout_s:g} s"
        except (LinkLost, ProtocolError) as exc:
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
            self._link.close()

    async def _receive_reply(self) -> None:
        (magic,) = protocol.REPLY_MAGIC.unpack(await self._link.exactly(4))
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            error, cookie = protocol.SIMPLE_REPLY.unpack(await self._link.exactly(protocol.SIMPLE_REPLY.size))
            asked = self._find(cookie)
            asked.error = error
            if not error and asked.reads:
                await self._take(asked, asked.offset, asked.length)
            await self._end(cookie)
            return
        if magic != protocol.STRUCTURED_REPLY_MAGIC:
            protocol.malformed("reply")
        content = await self._link.exactly(protocol.STRUCTURED_REPLY.size)
        flags, kind, cookie, length = protocol.STRUCTURED_REPLY.unpack(content)
        asked = self._find(cookie)
        await self._receive_chunk(asked, kind, length)
        if flags & protocol.REPLY_DONE:
            await self._end(cookie)
        else:
            self._sign_of_life()

    async def _receive_chunk(self, asked: Request, kind: int, length: int) -> None:
        if kind == Chunk.DATA and length > 8:
            offset = int.from_bytes(await self._link.exactly(8), "big")
            await self._take(asked, offset, length - 8)
            return
        if length > protocol.MAX_MESSAGE:
            protocol.malformed("chunk")
        content = await self._link.exactly(length)
        if kind == Chunk.HOLE and length == protocol.HOLE.size:
            offset, size = protocol.HOLE.unpack(content)
            self._check(asked, offset, size)
            if asked.target is not None:
                place = offset - asked.offset
                asked.target[place : place + size] = bytes(size)
        elif kind == Chunk.BLOCK_STATUS:
            asked.status += protocol.block_status(content, self.export.contexts.get(asked.context, 0))
        elif kind & 0x8000:
            asked.error = int.from_bytes(content[:4], "big") or 5
        elif kind != Chunk.NONE:
            protocol.malformed("chunk")

    async def _take(self, asked: Request, offset: int, length: int) -> None:
        """Receive bytes of a reply straight to where they belong."""
        self._check(asked, offset, length)
        place = offset - asked.offset
        end = place + length
        while place < end:
            # Read anew for each piece: the request may have been cancelled while this waited.
            target = asked.target
            view = (
                memoryview(bytearray(min(end - place, _DISCARDED))) if target is None else target[place:end]
            )
            count = self._link.receive_nowait(view)
            if not count:
                await self._link.wait()
            place += count

    def _check(self, asked: Request, offset: int, length: int) -> None:
        asked.received += length
        end = asked.offset + asked.length
        if not asked.offset <= offset <= offset + length <= end or asked.received > asked.length:
            protocol.malformed("range of data")

    def _find(self, cookie: int) -> Request:
        asked = self._requests.get(cookie)
        if asked is None:
            raise ProtocolError("the server sent a reply to no request")
        return asked

    async def _end(self, cookie: int) -> None:
        self._requests.pop(cookie).ended.set()
        self._sign_of_life()
        await trio.lowlevel.checkpoint()  # let others run, though more may have come

    def _sign_of_life(self) -> None:
        waiting = trio.current_time() + self._timeout_s if self._requests else math.inf
        self._silence.deadline = waiting

    async def close(self) -> None:
        """Say good-bye; the receiver closes the link."""
        with trio.move_on_after(CLOSING_S, shield=True), suppress(LinkLost):
            async with self._sending:
                await self._link.send_all(protocol.request(Command.DISCONNECT, 0))


async def shake_hands(
    link: Link,
    name: str,
    tls: ssl.SSLContext | None,
    server_name: str | None,
    contexts: Sequence[str] = (),
) -> Export:
    """The handshake for an export. Raises ProtocolError, LinkLost, ssl.SSLError."""
    steps = protocol.handshake(name, tls=tls is not None, contexts=contexts)
    step = next(steps)
    while True:
        answer = b""
        match step:
            case protocol.Send(content):
                await link.send_all(content)
            case protocol.Receive(length):
                answer = await link.exactly(length)
            case protocol.StartTls():
                assert tls is not None
                await link.start_tls(tls, server_name)
        try:
            step = steps.send(answer) if isinstance(step, protocol.Receive) else next(steps)
        except StopIteration as done:
            export: Export = done.value
            return export
