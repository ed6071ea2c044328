"""How much storing disk B after disk A adds, by ways to cut: fixed blocks against chunks cut at clusters.

    python bench/cuts.py A.raw B.raw

The figures of docs/design.md, section "What flows". Two images that show it: the same files in two file systems,
`mke2fs -q -t ext4 -d DIRECTORY A.raw`, and again from a copy of the directory in another order.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash
import zstandard

from pipeline.units import CLUSTER, KiB, MiB
from vadpipe.bench.machine import machine_line

READ = 8 * MiB  # one read; cuts start anew in the next
ALIGN = 64 * KiB  # to which extents are widened
FRAME = 1 * MiB  # of new chunks, compressed together

Cut = Callable[[bytes], list[memoryview]]


def fixed(size: int) -> Cut:
    """Blocks of one size."""
    return lambda data: [memoryview(data)[at : at + size] for at in range(0, len(data), size)]


def by_content(mean: int, least: int, most: int) -> Cut:
    """Chunks that end after a cluster whose own xxh3 ends in zeros under a mask."""
    mask = mean // CLUSTER - 1

    def cut(data: bytes) -> list[memoryview]:
        view, chunks, start = memoryview(data), [], 0
        for end in range(CLUSTER, len(data) + 1, CLUSTER):
            length = end - start
            ends_here = length >= least and not xxhash.xxh3_64_intdigest(view[end - CLUSTER : end]) & mask
            if length >= most or ends_here:
                chunks.append(view[start:end])
                start = end
        return [*chunks, view[start:]] if start < len(data) else chunks

    return cut


WAYS = {
    "fixed 64 KiB": fixed(64 * KiB),
    "fixed 16 KiB": fixed(16 * KiB),
    "fixed 4 KiB": fixed(4 * KiB),
    "content 64 KiB (16 to 256)": by_content(64 * KiB, 16 * KiB, 256 * KiB),
    "content 32 KiB (8 to 128)": by_content(32 * KiB, 8 * KiB, 128 * KiB),
    "content 128 KiB (32 to 512)": by_content(128 * KiB, 32 * KiB, 512 * KiB),
}


def allocated(image: Path) -> Iterator[bytes]:
    """What the image holds, in reads of at most READ bytes; holes are left out."""
    with image.open("rb", buffering=0) as file:
        fd, size, at = file.fileno(), image.stat().st_size, 0
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                return
            at = os.lseek(fd, data, os.SEEK_HOLE)
            data -= data % ALIGN
            end = min(size, -(-at // ALIGN) * ALIGN)
            while data < end:
                yield os.pread(fd, min(READ, end - data), data)
                data += min(READ, end - data)


class Store:
    """Counts what would be stored, and what it would be compressed."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._zstd = zstandard.ZstdCompressor(level=1)

    def add(self, image: Path, cut: Cut) -> tuple[int, int, float]:
        """Bytes of new chunks, their bytes compressed, and the CPU-seconds of cutting."""
        new = compressed = 0
        cutting_s = 0.0
        for data in allocated(image):
            begun = time.process_time()
            chunks = cut(data)
            cutting_s += time.process_time() - begun
            frame: list[memoryview] = []
            for chunk in chunks:
                name = xxhash.xxh3_128_digest(chunk)
                if name in self._seen:
                    continue
                self._seen.add(name)
                if not np.frombuffer(chunk, np.uint8).any():
                    continue
                frame.append(chunk)
                new += len(chunk)
                if sum(map(len, frame)) >= FRAME:
                    compressed += len(self._zstd.compress(b"".join(frame)))
                    frame = []
            if frame:
                compressed += len(self._zstd.compress(b"".join(frame)))
        return new, compressed, cutting_s


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("first", type=Path, metavar="A.raw")
    arguments.add_argument("second", type=Path, metavar="B.raw")
    given = arguments.parse_args()
    print(machine_line())
    print(f"{'':28} {'A: MiB new, zstd-1, CPU-s to cut':>34} {'B adds':>26}")
    for name, cut in WAYS.items():
        store = Store()
        rows = []
        for image in (given.first, given.second):
            new, compressed, cutting_s = store.add(image, cut)
            rows.append(f"{new / MiB:10.0f} {compressed / MiB:8.0f} {cutting_s:6.2f}")
        print(f"{name:28} {rows[0]:>34} {rows[1]:>26}", flush=True)


if __name__ == "__main__":
    main()
