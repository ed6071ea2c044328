"""RememberRanges: what an increment is going to write is noted before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trio.abc import ReceiveChannel, SendChannel

from pipeline import Disk, Extents, Stage, Window
from pipeline.composition import expect_disk


class Remembers(Protocol):
    """Keeps ranges of a disk that are going to be written: the replica of a migration."""

    async def remember(self, disk: Disk, extents: Extents) -> None:
        """Return when the ranges are durable. Raises SinkError."""
        ...


@dataclass(frozen=True)
class RememberRanges(Stage[Window, Window]):
    """Windows of a disk in, the same windows out, once their ranges are noted durably.

    It stands between the extents source and `ReadSpans` of a path that ends with `IntoReplica`: after a crash, what
    the increment may have written half is known.
    Memory: one window. Cancel: what was noted stays noted.
    Raises: SinkError.
    """

    replica: Remembers
    disk: Disk

    def __post_init__(self) -> None:
        expect_disk(self, self.disk)

    async def run(self, inbox: ReceiveChannel[Window], outbox: SendChannel[Window]) -> None:
        async for window in inbox:
            touched = window.data | window.zeros
            if len(touched):
                await self.replica.remember(self.disk, touched)
            await outbox.send(window)
