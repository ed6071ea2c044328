"""Replies of one connection on their way out: one task sends them, many with one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from .link import Link

# What is sent before those who wait for it are told. A Unix socket of Linux holds 208 KiB.
_AT_ONCE: Final = 512 << 10

Content: TypeAlias = Sequence[bytes | memoryview]
Sent: TypeAlias = Callable[[], object]
More: TypeAlias = Callable[[Link], Awaitable[object]]


class Outbox:
    """Replies that wait to be sent. Who puts them in bounds how many there are."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[tuple[Content, int, Sent | None, More | None]] = deque()
        self._added = trio.lowlevel.ParkingLot()

    def put(self, content: Content, *, sent: Sent | None = None, more: More | None = None) -> None:
        """Send this, after what was put in before.

        Args:
            content: The parts of a reply.
            sent: Is called when the socket has taken it.
            more: Sends the rest of the reply, before anything else is sent.
        """
        self._waiting.append((content, sum(map(len, content)), sent, more))
        if self._added:  # it waits
            self._added.unpark()

    async def put_and_wait(self, content: Content) -> None:
        """Send this, and wait until the socket has taken it."""
        taken = trio.Event()
        self.put(content, sent=taken.set)
        await taken.wait()

    async def run(self) -> None:
        """Send for ever. Raises LinkLost."""
        while True:
            if not self._waiting:
                await self._added.park()
                continue
            parts: list[bytes | memoryview] = []
            sent: list[Sent] = []
            size, more = 0, None
            while self._waiting and size < _AT_ONCE and more is None:
                content, length, one, more = self._waiting.popleft()
                parts += content
                size += length
                if one is not None:
                    sent.append(one)
            await self._link.send_parts(parts)
            if more is not None:
                await more(self._link)
            for one in sent:
                one()
