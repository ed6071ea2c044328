"""Codecs: what turns the bytes of a frame into what is stored and back, and the registry that finds them by
name."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.values import DedupedSpan, EncodedFrame, FramedSpan, Span

from .adaptive_level import WEAKEST


class Codec(Protocol):
    """Encodes the bytes of a frame, and decodes them again. Several threads may call it at once."""

    @property
    def name(self) -> str:
        """What `codec_named` finds it by; stored beside every frame."""
        ...

    def encode(self, data: memoryview) -> bytes: ...

    def decode(self, payload: bytes | memoryview, length: int) -> bytes | memoryview:
        """The bytes that were encoded, `length` of them, whatever the settings of `encode` were.

        Raises:
            ValueError: The payload does not decode to `length` bytes. Says why, without taking more memory.
        """
        ...


@dataclass(frozen=True)
class Zstd:
    """Zstandard, level -7 to 22, or "auto": as strong as the store is slow.

    Only `Compress` can tell how slow the store is; whoever calls `encode` of "auto" gets level 1.

    On real file-system data level 1 makes 0.33 GB/s per core at ratio 3.8, level 3 0.21 at 4.2, level -1 0.37 at
    3.4 (docs/design.md). Incompressible data passes at 6 GB/s at level 1, so a look at a sample of it first would
    gain nothing.

    Source: RFC 8878; the frame carries its content size and no checksum of its own.
    """

    level: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        if self.level != "auto" and (not isinstance(self.level, int) or not -7 <= self.level <= 22):
            raise ConfigError(
                f"Zstd has no level {self.level!r}.", remedy='Choose one from -7 to 22, or "auto".'
            )

    @property
    def name(self) -> str:
        return "zstd"

    def encode(self, data: memoryview) -> bytes:
        level = WEAKEST if self.level == "auto" else self.level
        return _contexts.compressor(level).compress(data)

    def decode(self, payload: bytes | memoryview, length: int) -> bytes:
        try:
            promised = zstandard.get_frame_parameters(payload).content_size
            if promised not in (length, zstandard.CONTENTSIZE_UNKNOWN):  # before memory is taken for it
                raise ValueError(f"its payload promises {promised} bytes instead of {length}")
            data = _contexts.decompressor.decompress(payload, max_output_size=length)
        except zstandard.ZstdError as exc:
            raise ValueError(f"it cannot be decompressed ({exc})") from exc
        _check_length(data, length)
        return data

    def decode_into(self, payload: bytes | memoryview, target: memoryview) -> None:
        """As `decode`, into memory of the length that the payload decodes to. Raises ValueError."""
        try:
            promised = zstandard.get_frame_parameters(payload).content_size
            if promised != len(target):  # otherwise it would be decoded beside the target, and be copied
                target[:] = self.decode(payload, len(target))
                return
            length = _contexts.decompressor.stream_reader(payload).readinto(target)
        except zstandard.ZstdError as exc:
            raise ValueError(f"it cannot be decompressed ({exc})") from exc
        if length != promised:
            raise ValueError(f"it decodes to {length} bytes instead of {promised}")


@dataclass(frozen=True)
class Uncompressed:
    """No compression: a copy of the bytes."""

    @property
    def name(self) -> str:
        return "raw"

    def encode(self, data: memoryview) -> bytes:
        return bytes(data)

    def decode(self, payload: bytes | memoryview, length: int) -> memoryview:
        _check_length(payload, length)
        return memoryview(payload)


_registered: dict[str, Codec] = {"zstd": Zstd(), "raw": Uncompressed()}


def register_codec(codec: Codec) -> None:
    """Let `codec_named` find this codec. Whoever reads a repository registers the codecs it was written with.

    Raises:
        ConfigError: It is no codec, or another one has its name.
    """
    _expect_codec(codec)
    if type(_registered.setdefault(codec.name, codec)) is not type(codec):
        raise ConfigError(
            f"Two codecs have the name {codec.name!r}: {_registered[codec.name]!r} and {codec!r}.",
            remedy="Give yours another name.",
        )


def expect_registered(codec: Codec) -> None:
    """Raise ConfigError unless what this codec encodes can be decoded by its name."""
    _expect_codec(codec)
    if type(_registered.get(codec.name)) is not type(codec):
        raise ConfigError(
            f"The codec {codec.name!r} is not registered, so nothing could decode what it encodes.",
            remedy="Call register_codec(codec) where it is defined, and wherever the repository is read.",
        )


def codec_named(name: str) -> Codec:
    """The registered codec with this name. Raises KeyError; see `codec_names`."""
    return _registered[name]


def codec_names() -> list[str]:
    """The names of all registered codecs."""
    return sorted(_registered)


def encode_span(deduped: DedupedSpan, codec: Codec) -> FramedSpan:
    """The kernel of Compress: encode the new frames and release the span.

    A frame that does not shrink is stored uncompressed.
    """
    span, cut, assignment = deduped.span, deduped.digested.cut, deduped.assignment
    frames: list[EncodedFrame] = []
    for planned in assignment.frames:
        rows = planned.first + np.flatnonzero(~assignment.known[planned.first : planned.last])
        chunk_length = cut.chunk_length[rows]
        length = int(chunk_length.sum())
        data = _gathered(span, cut.chunk_offset[rows], chunk_length)
        name, payload = codec.name, codec.encode(data)
        if len(payload) >= length and name != Uncompressed().name:
            name, payload = Uncompressed().name, bytes(data)
        digest = deduped.digested.digest[rows]
        frames.append(EncodedFrame(planned.number, name, length, payload, chunk_length, digest))
    span.release()
    return FramedSpan(
        offset=span.offset,
        length=span.length,
        data=span.data,
        zeros=span.zeros,
        zero_read=span.zero_read,
        unchanged_read=span.unchanged_read,
        identity=deduped.digested.identity,
        chunk_offset=cut.chunk_offset,
        chunk_length=cut.chunk_length,
        chunk_frame=assignment.frame,
        chunk_place=assignment.place,
        known=assignment.known,
        frames=frames,
    )


def _gathered(span: Span, offset: NDArray[np.int64], length: NDArray[np.int64]) -> memoryview:
    """The bytes of chunks, one after the other; copied only where they do not lie so in the span."""
    start, end = offset - span.offset, offset - span.offset + length
    begins = np.flatnonzero(start[1:] != end[:-1]) + 1
    lows, highs = start[[0, *begins]].tolist(), end[[*(begins - 1), -1]].tolist()
    parts = [span.buffer.memory[low:high] for low, high in zip(lows, highs, strict=True)]
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _expect_codec(codec: object) -> None:
    missing = [name for name in ("name", "encode", "decode") if not hasattr(codec, name)]
    if missing or isinstance(codec, type):
        raise ConfigError(
            f"{codec!r} is no codec: it {f'has no {missing[0]}' if missing else 'is a class'}.",
            remedy="A codec has name, encode(data) and decode(payload, length); one is Zstd(level=3).",
        )


def _check_length(data: bytes | memoryview, length: int) -> None:
    if len(data) != length:
        raise ValueError(f"it decodes to {len(data)} bytes instead of {length}")


class _Contexts(threading.local):
    """One context per thread and level: making one costs as much as compressing a small frame."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self._of_level: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._of_level:
            self._of_level[level] = zstandard.ZstdCompressor(level=level)
        return self._of_level[level]


_contexts = _Contexts()
