"""The kernels one by one, on the user's data or on data made from a seed: MiB per CPU-second each.

What a kernel costs is the CPU time of one thread. Kernels take turns, A B C A B C, so that a busy machine slows
all of them down. Each gets what it gets in a pipeline: the zero test and the cuts spans of 4 MiB, digests the
chunks, codecs and encryption frames of 1 MiB.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.testing.fakes import PatternDisk
from pipeline.units import SPAN, MiB
from pipeline.values import Span
from vadpipe.kernels.chunks import cut
from vadpipe.kernels.codecs import Codec, Uncompressed, Zstd, codec_named, codec_names
from vadpipe.kernels.dedupe import FRAME
from vadpipe.kernels.digest import Blake3
from vadpipe.kernels.zeros import zero_extents

LEVELS = (-1, 1, 3, 6, 9)


@dataclass(frozen=True)
class Kernel:
    """A kernel with its data: `run` takes `size` bytes once, and returns the bytes that a codec made of them."""

    size: int
    run: Callable[[], int | None]


def kernels_of(data: NDArray[np.uint8], levels: Sequence[int] = LEVELS) -> Mapping[str, Kernel]:
    """The kernels by name. The zero test gets all of `data`, the others what it leaves, as in a pipeline.

    The kernel that decodes takes what the one before it encoded.
    """
    spans = [Span.of(data[at : at + SPAN].data, at) for at in range(0, len(data), SPAN)]
    left = [part for span in spans for part in _nonzero(span)]
    kept = np.concatenate(left) if left else np.empty(0, dtype=np.uint8)
    pieces, frames = _cut_at(kept, SPAN), _cut_at(kept, FRAME)
    chunks = [piece[low:high] for piece in pieces for low, high in _borders(cut(piece))]
    blake3 = Blake3(bytes(32))
    kernels = {"zero test": Kernel(len(data), partial(_each, zero_extents, spans))}
    work: dict[str, Callable[[], int | None]] = {
        "cut": partial(_each, cut, pieces),
        "blake3, keyed": partial(_each, blake3.digest, chunks),
        "xxh3-128": partial(_each, xxhash.xxh3_128_digest, chunks),
        "sha256": partial(_each, hashlib.sha256, chunks),
    }
    for level in levels:
        work |= _coding(f"zstd {level}", Zstd(level), frames)
    for name in codec_names():
        if name != Zstd().name:
            work |= _coding(name, codec_named(name), frames)
    work |= _sealing(frames)
    return kernels | {name: Kernel(len(kept), run) for name, run in work.items() if len(kept)}


def _nonzero(span: Span) -> Iterator[NDArray[np.uint8]]:
    for offset, length in span.data - zero_extents(span):
        yield span.buffer.array[offset - span.offset : offset - span.offset + length]


def _cut_at(data: NDArray[np.uint8], size: int) -> list[memoryview]:
    return [data[at : at + size].data for at in range(0, len(data), size)]


def _coding(name: str, codec: Codec, frames: Sequence[memoryview]) -> dict[str, Callable[[], int | None]]:
    encoded: list[bytes] = []

    def encode() -> int:
        encoded[:] = [codec.encode(frame) for frame in frames]
        return sum(map(len, encoded))

    def decode() -> None:
        for payload, frame in zip(encoded, frames, strict=True):
            codec.decode(payload, len(frame))

    if isinstance(codec, Uncompressed):  # decoding gives back the payload itself
        return {f"{name}, encode": encode}
    return {f"{name}, encode": encode, f"{name}, decode": decode}


def _sealing(frames: Sequence[memoryview]) -> dict[str, Callable[[], int | None]]:
    """AES-256-GCM as a sealed repository uses it; nothing without the package `cryptography`."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        return {}
    cipher, nonce = AESGCM(bytes(32)), bytes(12)  # nothing of it is kept, so the nonce may repeat
    return {"aes-256-gcm, seal": partial(_each, lambda frame: cipher.encrypt(nonce, frame, None), frames)}


def _borders(ends: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _each(kernel: Callable[..., object], items: Sequence[object]) -> None:
    for item in items:
        kernel(item)


def measure_kernels(kernels: Mapping[str, Kernel], repeat: int) -> list[dict[str, object]]:
    """Rows of a document, in turns: `mib_per_cpu_s`, and `ratio` where something was encoded."""
    rows: list[dict[str, object]] = []
    for _ in range(repeat):
        for case, kernel in kernels.items():
            begun = time.thread_time()
            made = kernel.run()
            spent_s = max(time.thread_time() - begun, 1e-9)
            ratio = {"ratio": kernel.size / made} if made else {}
            rate = kernel.size / MiB / spent_s
            rows.append({"case": case, "cpu_s": spent_s, "mib_per_cpu_s": rate, **ratio})
    return rows


def seeded_data(size: int, seed: int) -> NDArray[np.uint8]:
    """Data made from a seed: a tenth of it zeros, a fifth repeated, the rest compresses about 2:1."""
    disk = PatternDisk(size, seed=seed, hole_ratio=0)
    return disk.bytes_at(0, size)


def data_of(path: Path, most: int) -> NDArray[np.uint8]:
    """The first MiBs of a file that are not holes, up to `most` bytes. Raises ConfigError."""
    try:
        data = first_data(path, most)
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be read: {exc.strerror}.", remedy="Name a file, e.g. a raw image."
        ) from exc
    if not len(data):
        raise ConfigError(f"{path} has no MiB of data.", remedy="Name a larger file, e.g. a raw image.")
    return data


def first_data(path: Path, most: int) -> NDArray[np.uint8]:
    """The first whole MiBs of a file that are not holes, up to `most` bytes."""
    held = np.empty(most // MiB * MiB, dtype=np.uint8)
    filled = 0
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        while filled < len(held):
            try:
                offset = os.lseek(file.fileno(), file.tell(), os.SEEK_DATA) // MiB * MiB
            except OSError:  # nothing but a hole up to the end
                break
            if offset + MiB > size:
                break
            file.seek(offset)
            filled += file.readinto(held[filled : filled + MiB].data)
    return held[:filled]
