"""What decodes the payload of a frame, by the name that is stored with it."""

from __future__ import annotations

import threading
from typing import Protocol

import zstandard


class Decoder(Protocol):
    """Decodes what a codec encoded. Safe to call from several threads at once."""

    @property
    def name(self) -> str: ...

    def decode(self, payload: memoryview, length: int) -> memoryview:
        """The `length` bytes that were encoded. Raises ValueError when the payload is not theirs."""
        ...


class _Raw:
    name = "raw"

    def decode(self, payload: memoryview, length: int) -> memoryview:
        return payload


class _Zstd:
    name = "zstd"

    def __init__(self) -> None:
        self._local = threading.local()

    def decode(self, payload: memoryview, length: int) -> memoryview:
        context = getattr(self._local, "context", None)
        if context is None:
            context = self._local.context = zstandard.ZstdDecompressor()
        try:
            promised = zstandard.get_frame_parameters(payload).content_size
            if promised not in (length, zstandard.CONTENTSIZE_UNKNOWN):  # before memory is taken for it
                raise ValueError(f"its payload promises {promised} bytes instead of {length}")
            return memoryview(context.decompress(payload, max_output_size=length))
        except zstandard.ZstdError as exc:
            raise ValueError(f"it cannot be decompressed ({exc})") from exc


_CODECS: dict[str, Decoder] = {codec.name: codec for codec in (_Raw(), _Zstd())}


def codec_named(name: str) -> Decoder:
    """Raises KeyError for a name that nobody registered."""
    return _CODECS[name]
