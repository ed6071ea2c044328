"""Dedupe: which chunks are new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline import ChunkIndex, ConfigError, DedupedSpan, DigestedSpan, Gap, Identity, KernelStage
from vadpipe.kernels.dedupe import MemoryIndex as MemoryIndex
from vadpipe.kernels.dedupe import dedupe_span


@dataclass(frozen=True)
class Dedupe(KernelStage[DigestedSpan | Gap, DedupedSpan | Gap]):
    """Digested spans in, the same spans out with the place of every chunk: in a stored frame or a planned one.

    Out: frames are runs of new chunks that lie together on the disk, at most 1 MiB each. Gaps pass.
    Memory: the spans in hand, and what the index holds. Cancel: frames that were planned and not stored; a
    repository drops them with the unpublished point.
    Raises: ConfigError when `index` is no index.
    """

    index: ChunkIndex
    serial = True

    def __post_init__(self) -> None:
        if isinstance(self.index, type) or not hasattr(self.index, "assign"):
            raise ConfigError(
                f"Dedupe cannot look chunks up in {self.index!r}.",
                remedy="Write Dedupe(point), or Dedupe(MemoryIndex()) where nothing is stored.",
            )

    @property
    def identity(self) -> Identity:
        return self.index.identity

    def kernel(self) -> Callable[[DigestedSpan], DedupedSpan]:
        return partial(dedupe_span, index=self.index)
