"""Compress: new frames, encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline import DedupedSpan, FramedSpan, Gap, KernelStage
from vadpipe.kernels.codecs import Codec as Codec
from vadpipe.kernels.codecs import Uncompressed as Uncompressed
from vadpipe.kernels.codecs import Zstd as Zstd
from vadpipe.kernels.codecs import encode_span, expect_registered


@dataclass(frozen=True)
class Compress(KernelStage[DedupedSpan | Gap, FramedSpan | Gap]):
    """Deduped spans in, framed spans out: the new frames encoded, the buffers given back. Gaps pass.

    A frame that does not shrink is stored uncompressed.
    Memory: the spans in hand and their encoded frames. Cancel: leaves nothing behind.
    Raises: ConfigError when `codec` is none or is not registered, or `workers` is less than 1.
    """

    codec: Codec = field(default_factory=Zstd)
    workers: int = 2
    releases = True

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_registered(self.codec)

    def kernel(self) -> Callable[[DedupedSpan], FramedSpan]:
        return partial(encode_span, codec=self.codec)
