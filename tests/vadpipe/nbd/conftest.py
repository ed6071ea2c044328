"""Images, and servers that live as long as a test."""

from __future__ import annotations

import contextlib
import socket as socketlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.buffers import BufferPool
from pipeline.units import SPAN, KiB, MiB
from tests.vadpipe.nbd.nbd_kit import SIZE, Serve, needs


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    content = np.zeros(SIZE, np.uint8)
    for start, end in (
        (0, 1000 * KiB),
        (3 * MiB + 4096, 9 * MiB),
        (14 * MiB, 14 * MiB + 512),
        (SIZE - 700, SIZE),
    ):
        content[start:end] = random.integers(1, 256, end - start, np.uint8)
    path = tmp_path_factory.mktemp("nbd") / "disk.raw"
    content.tofile(path)
    return path


@pytest.fixture(scope="module")
def qcow2(raw: Path) -> Path:
    target = raw.with_suffix(".qcow2")
    subprocess.run([needs("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", raw, target], check=True)
    return target


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server, and waits until it listens on a Unix socket, or on a port that is given."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: object, socket: Path | None = None, port: int = 0) -> Path:
        place = socket or tmp_path / f"{len(running)}.sock"
        place.unlink(missing_ok=True)
        family = socketlib.AF_INET if port else socketlib.AF_UNIX
        words = [str(word).replace("SOCKET", str(place)) for word in command]
        running.append(subprocess.Popen([needs(words[0]), *words[1:]], stderr=subprocess.PIPE))
        deadline_s = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socketlib.socket(family) as probe:
                probe.connect(("127.0.0.1", port) if port else str(place))
                return place
            assert running[-1].poll() is None, running[-1].communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    start.kill = lambda: running[-1].kill() or running[-1].wait()  # type: ignore[attr-defined,func-returns-value]
    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    pool = BufferPool(6 * SPAN)
    yield pool
    assert pool.statistics().free == pool.statistics().buffers
