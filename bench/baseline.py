"""The whole path as one short program: what the engine must not be slower than.

    python bench/baseline.py IMAGE OUT [--level N] [--workers N] [--identity blake3|xxh3] [--no-compression]

Fixed 64 KiB blocks are named, the new ones compressed in frames and written one after the other. Compare with the
case `image-repository-zstd1` of `vadpipe bench path` on the same image: that one also cuts by content, keeps an
index and publishes a restore point.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import numpy as np
import trio
import xxhash
import zstandard

from pipeline.units import KiB, MiB
from vadpipe.bench.machine import cpu_s, machine_line, peak_rss

BLOCK = 64 * KiB
FRAME = 1 * MiB
SPAN = 4 * MiB

IDENTITIES: dict[str, Callable[[memoryview], bytes]] = {
    "blake3": lambda block: blake3.blake3(block).digest(),
    "xxh3": xxhash.xxh3_128_digest,
}


class Encoder:
    """The work of one thread trip: zero test, identity, compression and writing of a span."""

    def __init__(self, out: int, level: int | None, identity: Callable[[memoryview], bytes]) -> None:
        self._out = out
        self._level = level
        self._identity = identity
        self._seen: set[bytes] = set()
        self._local = threading.local()

    def __call__(self, span: memoryview) -> Counter[str]:
        """Bytes read, zero, known, new and stored."""
        blocks = len(span) // BLOCK
        words = np.frombuffer(span, np.uint64).reshape(blocks, -1)
        holds_data: list[bool] = np.atleast_1d(words.any(axis=1)).tolist()
        done = Counter(read=len(span), zero=holds_data.count(False) * BLOCK)
        frames: list[bytes] = []
        begin = None  # of the run of new blocks
        for at in range(blocks + 1):
            new = False
            if at < blocks and holds_data[at]:
                name = self._identity(span[at * BLOCK : (at + 1) * BLOCK])
                new = name not in self._seen
                self._seen.add(name)
                done["new" if new else "known"] += BLOCK
            if new:
                begin = at if begin is None else begin
            elif begin is not None:
                frames += self._frames(span[begin * BLOCK : at * BLOCK])
                begin = None
        if frames:
            done["stored"] = os.writev(self._out, frames)
        return done

    def _frames(self, data: memoryview) -> Iterator[bytes]:
        for at in range(0, len(data), FRAME):
            piece = data[at : at + FRAME]
            yield bytes(piece) if self._level is None else self._compressor().compress(piece)

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=self._level or 1)
        found: zstandard.ZstdCompressor = self._local.compressor
        return found


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what the image holds, widened to blocks."""
    size, at = os.fstat(fd).st_size // BLOCK * BLOCK, 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            return
        end = os.lseek(fd, data, os.SEEK_HOLE)
        at = min(size, -(-end // BLOCK) * BLOCK)
        yield data // BLOCK * BLOCK, at


async def move(image: int, encode: Encoder, workers: int) -> Counter[str]:
    """Read the image span by span, and encode on `workers` threads."""
    total: Counter[str] = Counter()
    to_encode, spans = trio.open_memory_channel[tuple[bytearray, int]](0)
    give_back, free = trio.open_memory_channel[bytearray](workers + 2)
    for _ in range(workers + 2):
        give_back.send_nowait(bytearray(SPAN))

    async def read() -> None:
        async with to_encode:
            for begin, end in extents(image):
                while begin < end:
                    buffer, length = await free.receive(), min(SPAN, end - begin)
                    view = memoryview(buffer)[:length]
                    await trio.to_thread.run_sync(os.preadv, image, [view], begin)
                    await to_encode.send((buffer, length))
                    begin += length

    async def work(inbox: trio.MemoryReceiveChannel[tuple[bytearray, int]]) -> None:
        async for buffer, length in inbox:
            total.update(await trio.to_thread.run_sync(encode, memoryview(buffer)[:length]))
            await give_back.send(buffer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for _ in range(workers):
            nursery.start_soon(work, spans)
    return total


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("image", type=Path, metavar="IMAGE")
    arguments.add_argument("out", type=Path, metavar="OUT", help="is overwritten")
    arguments.add_argument("--level", type=int, default=1, help="of zstd (1)")
    arguments.add_argument("--workers", type=int, default=2, help="threads that encode (2)")
    arguments.add_argument("--identity", choices=list(IDENTITIES), default="blake3")
    arguments.add_argument("--no-compression", action="store_true")
    given = arguments.parse_args()
    with given.image.open("rb", buffering=0) as image, given.out.open("wb", buffering=0) as out:
        level = None if given.no_compression else given.level
        encode = Encoder(out.fileno(), level, IDENTITIES[given.identity])
        begun, spent_s = time.perf_counter(), cpu_s()
        total = trio.run(move, image.fileno(), encode, given.workers)
        os.fsync(out.fileno())
        wall_s, spent_s = time.perf_counter() - begun, cpu_s() - spent_s
    read, spent_s = total["read"] / MiB, max(spent_s, 0.01)  # a tick of the clock at least
    print(machine_line())
    print(
        ", ".join(
            f"{name} {total[name] / MiB:.0f} MiB" for name in ("read", "zero", "known", "new", "stored")
        )
    )
    print(
        f"{read / spent_s:.0f} MiB/CPU-s  {read / wall_s:.0f} MiB/s  {wall_s:.2f} s  {spent_s:.2f} CPU-s  "
        f"{peak_rss() / MiB:.0f} MiB RSS"
    )


if __name__ == "__main__":
    main()
