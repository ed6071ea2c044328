"""The identity of chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from pipeline import (
    DIGEST_SIZE,
    ChunkIndex,
    CutSpan,
    DigestedSpan,
    Gap,
    Identity,
    KernelStage,
)
from vadpipe.kernels.digest import Blake3

__all__ = ["Blake3", "Digest"]


_UNKEYED = Blake3()


@dataclass(frozen=True)
class Digest(KernelStage[CutSpan | Gap, DigestedSpan | Gap]):
    """Cut spans in, the same spans out with the digest of each chunk. Gaps pass.

    Memory: the spans in hand. Cancel: leaves nothing behind.
    """

    identity: Identity | ChunkIndex = _UNKEYED
    serial = True  # many small calls: see pipeline.lift

    def kernel(self) -> Callable[[CutSpan], DigestedSpan]:
        return self._digest

    def _digest(self, span: CutSpan) -> DigestedSpan:
        memory = span.buffer.memory
        identity = identity_of(self.identity)
        digest = identity.digest
        starts = (span.chunk_offset - span.offset).tolist()
        ends = (span.chunk_offset - span.offset + span.chunk_length).tolist()
        joined = b"".join([digest(memory[low:high]) for low, high in zip(starts, ends, strict=True)])
        return DigestedSpan(
            **vars(span),
            identity=identity,
            digest=np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_SIZE),
        )


def identity_of(named: Identity | ChunkIndex) -> Identity:
    """An identity, or that of an index."""
    found: Identity | None = getattr(named, "identity", None)
    return cast("Identity", named if found is None else found)
