"""What a server offers: an export, whatever is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

# Bytes, or so many zeros.
Parts: TypeAlias = "Sequence[memoryview | int]"
# Consecutive extents: length, and flags of `protocol.State`.
States: TypeAlias = "Sequence[tuple[int, int]]"


class Export(Protocol):
    """A disk for clients of a server. All ranges lie inside [0, size); several calls may run at once.

    What fails raises MoverError or OSError; the client gets an error for its request, and stays connected.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def size(self) -> int: ...

    def read_nowait(self, offset: int, length: int) -> Parts | None:
        """The range, where it is at hand; None: `read` has to be asked. The memory stays as it is."""
        ...

    async def read(self, offset: int, length: int) -> Parts:
        """The range, at most 1 MiB of it. The memory stays as it is."""
        ...

    def expect(self, offset: int, length: int) -> None:
        """The range is going to be read soon."""
        ...

    async def states(self, offset: int, length: int) -> States:
        """What the range consists of, from `offset` on: at least one extent, perhaps not the whole range."""
        ...


@runtime_checkable
class WritableExport(Export, Protocol):
    """One that clients may change."""

    async def write(self, offset: int, content: memoryview) -> None:
        """Store bytes; the memory may change afterwards."""
        ...

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zero, without storing it."""
        ...

    async def flush(self) -> None:
        """Make durable what was written."""
        ...
