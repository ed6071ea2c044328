"""Encoding new frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import zstandard

from pipeline import (
    ConfigError,
    DedupedSpan,
    EncodedFrame,
    FramedSpan,
    Gap,
    KernelStage,
)


class Codec(Protocol):
    """Turns the bytes of a frame into what is stored. Safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What decodes it again, as written into the frame."""
        ...

    def encode(self, data: memoryview) -> bytes: ...


@dataclass(frozen=True)
class Zstd:
    """Zstandard, level -7 to 22. On real file-system data level 1 makes 0.33 GB/s per core at ratio 3.8, level 3
    0.21 at 4.2, level -1 0.37 at 3.4 (docs/design.md, section 4).

    Source: RFC 8878; the frame carries its content size and no checksum of its own.
    """

    level: int = 1

    def __post_init__(self) -> None:
        if not -7 <= self.level <= 22:
            raise ConfigError(f"Zstd has no level {self.level}.", remedy="Choose one from -7 to 22.")

    @property
    def name(self) -> str:
        return "zstd"

    def encode(self, data: memoryview) -> bytes:
        return _contexts.of(self.level).compress(data)


@dataclass(frozen=True)
class Uncompressed:
    """No compression: a copy of the bytes."""

    @property
    def name(self) -> str:
        return "raw"

    def encode(self, data: memoryview) -> bytes:
        return bytes(data)


class _Contexts(threading.local):
    """One context per thread and level: making one costs as much as compressing a small frame."""

    def __init__(self) -> None:
        self._of_level: dict[int, zstandard.ZstdCompressor] = {}

    def of(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._of_level:
            self._of_level[level] = zstandard.ZstdCompressor(level=level)
        return self._of_level[level]


_contexts = _Contexts()


@dataclass(frozen=True)
class Compress(KernelStage[DedupedSpan | Gap, FramedSpan | Gap]):
    """Deduped spans in, framed spans out: the new frames encoded, the buffers given back. Gaps pass.

    A frame that does not shrink is stored as it is.
    Memory: the spans in hand and their encoded frames. Cancel: leaves nothing behind.
    """

    codec: Codec = Zstd()
    workers: int = 2
    releases = True

    def kernel(self) -> Callable[[DedupedSpan], FramedSpan]:
        return self._compress

    def _compress(self, span: DedupedSpan) -> FramedSpan:
        memory = span.buffer.memory
        frames: list[EncodedFrame] = []
        for planned in span.frames:
            rows = slice(planned.first, planned.last)
            low = int(span.chunk_offset[planned.first]) - span.offset
            length = int(span.chunk_length[rows].sum())
            data = memory[low : low + length]
            codec, payload = self.codec.name, self.codec.encode(data)
            if len(payload) >= length and codec != Uncompressed().name:
                codec, payload = Uncompressed().name, bytes(data)
            frames.append(
                EncodedFrame(
                    planned.number, codec, length, payload, span.chunk_length[rows], span.digest[rows]
                )
            )
        span.release()
        return FramedSpan(
            offset=span.offset,
            length=span.length,
            identity=span.identity,
            data=span.data,
            zeros=span.zeros,
            zero_read=span.zero_read,
            chunk_offset=span.chunk_offset,
            chunk_length=span.chunk_length,
            chunk_frame=span.chunk_frame,
            chunk_place=span.chunk_place,
            known=span.known,
            frames=frames,
        )
