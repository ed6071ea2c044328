"""MarkZeros: which clusters hold nothing but zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import Gap, KernelStage, Span, Zeros
from vadpipe.kernels.zeros import mark_zeros


@dataclass(frozen=True)
class MarkZeros(KernelStage[Span | Gap, Span | Gap]):
    """Spans in, the same spans out with zero clusters moved from `data` to `zeros`; an empty span becomes a gap.

    Gaps pass. Memory: the spans in hand. Cancel: leaves nothing behind.
    """

    serial = True  # many small calls: see pipeline.lift

    def kernel(self) -> Callable[[Span], Span | Zeros]:
        return mark_zeros
