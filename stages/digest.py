"""Digest: the identity of each chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from pipeline import ConfigError, CutSpan, DigestedSpan, Gap, Identity, KernelStage
from vadpipe.kernels.digest import Blake3 as Blake3
from vadpipe.kernels.digest import digest_span


class Identified(Protocol):
    """Has the identity of its chunks: a point of a repository, or a MemoryIndex."""

    @property
    def identity(self) -> Identity: ...


@dataclass(frozen=True)
class Digest(KernelStage[CutSpan | Gap, DigestedSpan | Gap]):
    """Cut spans in, the same spans out with the digest of each chunk. Gaps pass.

    `by` says how chunks are named: the point that they go to (`Digest(point)`), an index, or an identity itself.

    Memory: the spans in hand. Cancel: leaves nothing behind.
    Raises: ConfigError when `by` has no identity.
    """

    if TYPE_CHECKING:
        by: Identified | Identity
    else:
        by: object = None
    serial = True  # many small calls: see pipeline.lift

    def __post_init__(self) -> None:
        if isinstance(self.by, type) or not (hasattr(self.by, "identity") or hasattr(self.by, "digest")):
            raise ConfigError(
                "Digest needs to know how chunks are named."
                if self.by is None
                else f"Digest cannot name chunks by {self.by!r}.",
                remedy="Write Digest(point): the point that they are stored in knows.",
            )

    @property
    def identity(self) -> Identity:
        return cast(Identity, getattr(self.by, "identity", self.by))

    def kernel(self) -> Callable[[CutSpan], DigestedSpan]:
        return partial(digest_span, identity=self.identity)
