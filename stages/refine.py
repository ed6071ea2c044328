"""Refine: which clusters of a changed chunk really changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline import ConfigError, DigestedSpan, Disk, Gap, Identity, KernelStage, Unchanged
from pipeline.composition import expect_disk
from vadpipe.kernels.refine import PreviousContent, Refiner


class Refinable(Protocol):
    """A point that can tell what the previous one holds, and names chunks."""

    @property
    def identity(self) -> Identity: ...

    def previous_content(self, disk: Disk) -> PreviousContent | None: ...


@dataclass(frozen=True)
class Refine(KernelStage[DigestedSpan | Gap, DigestedSpan | Gap]):
    """Digested spans in, the same spans out with less data: what the previous point holds at the same place is
    unchanged.

    Stands between Digest and Dedupe. Chunks that are not stored yet are compared with the previous point of the
    same disk, cluster by cluster. Of a chunk with enough unchanged clusters only the changed ones stay, in chunks
    of their own; the others stay as they are, and so do chunks that are stored already. Gaps pass, and everything
    does where there is no previous point with a disk of this capacity.

    Memory: the spans in hand, 4 MiB to compare in, 4 MiB of decoded frames of the repository, one page of its map.
    Cancel: leaves nothing behind.
    Raises: ConfigError when `index` is no point, IntegrityError for a damaged index. Damage in the previous point
    is a warning: what changed there is stored whole.

    Args:
        index: The point that is written.
        disk: The disk that is read.
    """

    index: Refinable
    disk: Disk
    serial = True

    def __post_init__(self) -> None:
        if isinstance(self.index, type) or not hasattr(self.index, "previous_content"):
            raise ConfigError(
                f"Refine cannot compare with what {self.index!r} holds.",
                remedy="Write Refine(point, disk), with the point and the disk that the path function is given.",
            )
        expect_disk(self, self.disk)

    @property
    def identity(self) -> Identity:
        return self.index.identity

    def kernel(self) -> Callable[[DigestedSpan], DigestedSpan | Unchanged]:
        previous = self.index.previous_content(self.disk)
        return _unchanged if previous is None else Refiner(previous)


def _unchanged(digested: DigestedSpan) -> DigestedSpan:
    return digested
