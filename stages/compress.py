"""Compress: new frames, encoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline import DedupedSpan, FramedSpan, Gap, KernelStage
from pipeline.meters import current_meter
from vadpipe.kernels.adaptive_level import AdaptiveLevel
from vadpipe.kernels.codecs import Codec as Codec
from vadpipe.kernels.codecs import Uncompressed as Uncompressed
from vadpipe.kernels.codecs import Zstd as Zstd
from vadpipe.kernels.codecs import encode_span, expect_registered


@dataclass(frozen=True)
class Compress(KernelStage[DedupedSpan | Gap, FramedSpan | Gap]):
    """Deduped spans in, framed spans out: the new frames encoded, the buffers given back. Gaps pass.

    A frame that does not shrink is stored uncompressed. With `Zstd("auto")` the level follows the store: it rises
    while the store is waited for, and falls again before compression becomes what limits the pipeline.
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
        if isinstance(self.codec, Zstd) and self.codec.level == "auto":
            return _adaptive()
        return partial(encode_span, codec=self.codec)


def _adaptive() -> Callable[[DedupedSpan], FramedSpan]:
    meter, adaptive, lock = current_meter(), AdaptiveLevel(), threading.Lock()

    def encode(deduped: DedupedSpan) -> FramedSpan:
        with lock:
            level = adaptive.observe(time.monotonic(), meter.blocked_s, meter.starved_s)
        return encode_span(deduped, Zstd(level))

    return encode
