"""`python bench/requests.py --latency 0.02 --size 256`: requests, time and CPU of a repository that is far away.

The store is in memory, and each request takes `--latency` seconds longer. One disk of random bytes, so that
nothing is saved by compression: a full backup, one with nothing new, one with two clusters changed, a restore,
a verification.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline import KiB, MiB
from pipeline.units import format_size
from tests.vadpipe.repository import repository_kit as kit
from vadpipe.repository import Repository, verify
from vadpipe.repository.backends.cached import Cached
from vadpipe.repository.backends.contract import Backend, Parts, Stored, Upload
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import Delayed, Forwarding


class Counting(Forwarding):
    """Counts what would be a request to an S3 server."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.requests: Counter[str] = Counter()
        self.read_bytes = 0

    def _count(self, what: str, name: str) -> None:
        self.requests[f"{what} {name.partition('/')[0]}"] += 1

    def put(self, name: str, parts: Parts) -> None:
        self._count("put", name)
        self.inner.put(name, parts)

    def begin(self, name: str) -> Upload:
        self._count("put", name)
        return self.inner.begin(name)

    def replace(self, name: str, parts: Parts) -> None:
        self._count("put", name)
        self.inner.replace(name, parts)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._count("get", name)
        content = self.inner.read(name, offset, length)
        self.read_bytes += len(content)
        return content

    def size(self, name: str) -> int:
        self._count("head", name)
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[Stored]:
        self._count("list", prefix)
        return self.inner.list(prefix)

    def delete(self, names: Iterable[str]) -> None:
        kept = tuple(names)
        if kept:
            self._count("delete", kept[0])
        self.inner.delete(kept)


@click.command()
@click.option("--latency", default=0.02, show_default=True, help="Seconds that each request takes longer.")
@click.option("--size", default=256, show_default=True, help="MiB of the disk.")
@click.option("-v", "--verbose", is_flag=True, help="Show each kind of request.")
def main(latency: float, size: int, verbose: bool) -> None:
    store = Counting(Delayed(MemoryBackend(), latency))
    random = np.random.default_rng(1)
    disk = kit.MemoryDisk(random.integers(0, 256, size * MiB, dtype=np.uint8))
    with tempfile.TemporaryDirectory() as copies:
        repository = Repository(Cached(store, copies))
        repository.init()

        def step(name: str, work: Callable[[], Awaitable[object]]) -> None:
            store.requests.clear()
            store.read_bytes = 0
            begin, cpu = time.monotonic(), time.process_time()
            trio.run(work)
            wall, cpu = time.monotonic() - begin, time.process_time() - cpu
            click.echo(
                f"{name:<14}{sum(store.requests.values()):>6} requests {wall:8.2f} s {cpu:8.2f} CPU-s"
                f"  {format_size(store.read_bytes)} read"
            )
            if verbose:
                click.echo(
                    "  " + ", ".join(f"{count} {what}" for what, count in sorted(store.requests.items()))
                )

        async def full() -> None:
            await kit.backup(repository, [disk])

        async def incremental() -> None:
            await kit.backup(repository, [disk], kit.incremental_path)

        async def restore() -> None:
            async with repository.read() as reader:
                assert np.array_equal(await kit.restore(reader, reader.points[-1]), disk.content)

        async def check() -> None:
            async with repository.read() as reader:
                assert not (await verify(reader)).damages

        step("full", full)
        step("nothing new", incremental)
        disk.write(5 * MiB, random.integers(0, 256, 8 * KiB, dtype=np.uint8))
        step("8 KiB changed", incremental)
        step("restore", restore)
        step("verify", check)


if __name__ == "__main__":
    main()
