"""CutChunks: where chunks end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import CutSpan, Gap, KernelStage, Span
from vadpipe.kernels.chunks import cut_span


@dataclass(frozen=True)
class CutChunks(KernelStage[Span | Gap, CutSpan | Gap]):
    """Spans in, the same spans out with the borders of their chunks.

    Out: chunks of 16 to 256 KiB, whole clusters, covering `data` exactly; smaller only at the end of an extent.
    Gaps pass. Memory: the spans in hand. Cancel: leaves nothing behind.
    """

    serial = True  # many small calls: see pipeline.lift

    def kernel(self) -> Callable[[Span], CutSpan]:
        return cut_span
