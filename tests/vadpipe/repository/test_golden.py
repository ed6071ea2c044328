"""The format, byte for byte: a tiny repository with fixed ids, keys and times.

A change that fails here changes the format: it needs a new version, and a reader for this one.
`python -m tests.vadpipe.repository.test_golden` writes the files anew.
"""

import shutil
from pathlib import Path

import numpy as np
import trio

from pipeline import CLUSTER, KiB
from tests.vadpipe.repository.repository_kit import (
    MemoryDisk,
    backup,
    files_of,
    fixed_origin,
    random_bytes,
    restore,
    stored_path,
)
from vadpipe.repository import verify
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

GOLDEN = Path(__file__).parent / "golden" / "repository"


async def make_repository(path: Path) -> list[np.ndarray]:
    """Two points of a disk of five clusters and a tail; returns the disk's states."""
    repository = Repository(path, origin=fixed_origin())
    repository.init()
    content = random_bytes(1, 5 * CLUSTER + 512)
    content[: 4 * CLUSTER] = 0
    content[CLUSTER : CLUSTER + 8] = np.frombuffer(b"clusters", np.uint8)
    disk = MemoryDisk(content)
    await backup(repository, [disk], stored_path)
    first = disk.content.copy()
    disk.write(2 * CLUSTER, random_bytes(2, CLUSTER))
    await backup(repository, [disk], stored_path)
    return [first, disk.content]


async def test_the_files_are_the_golden_ones(tmp_path):
    await make_repository(tmp_path / "made")
    made, golden = files_of(tmp_path / "made"), files_of(GOLDEN)
    assert list(made) == list(golden)
    for name in golden:
        assert made[name] == golden[name], f"{name} differs"


async def test_the_golden_files_are_read(tmp_path):
    states = await make_repository(tmp_path / "made")
    async with open_repository(GOLDEN) as reader:
        for point, state in zip(reader.points, states, strict=True):
            assert np.array_equal(await restore(reader, point), state)
        report = await verify(reader)
    assert report.damages == ()
    assert report.bytes < 64 * KiB


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    trio.run(make_repository, GOLDEN)
