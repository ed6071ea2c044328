"""A sink that keeps nothing, for measuring what stands before it."""

from __future__ import annotations

from dataclasses import dataclass

from trio.abc import ReceiveChannel

from pipeline import Sink


@dataclass(frozen=True)
class NullSink(Sink[object, int]):
    """Anything in, the number of items out; buffers are given back.

    Memory: one item. Cancel: leaves nothing behind.
    """

    async def run(self, inbox: ReceiveChannel[object]) -> int:
        count = 0
        async for item in inbox:
            count += 1
            release = getattr(item, "release", None)
            if release is not None:
                release()
        return count
