"""What the lab's guest keeps on its disks: the machine's own files, log files, a database. All by seed."""

from __future__ import annotations

import os
import random
import re
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.units import CLUSTER, KiB, MiB

from .vmdk_files import opened, write_at

# Smaller files take longer to copy than their bytes are worth, larger ones leave no room for others.
_SMALLEST, _LARGEST = 64 * KiB, 16 * MiB


def machine_files(total: int, seed: int) -> dict[str, Path]:
    """About `total` bytes of files of this machine, under names that every file system takes."""
    roots = {sysconfig.get_path("stdlib"), "/usr/lib/python3", "/usr/share", sys.prefix}
    found = [path for root in sorted(roots) for path in _first_files(Path(root), total)]
    random.Random(seed).shuffle(found)
    chosen: dict[str, Path] = {}
    for path, size in found:
        if size <= total:
            total -= size
            chosen[f"{len(chosen):04d}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)[-80:]}"] = path
    return chosen


def _first_files(root: Path, total: int) -> Iterator[tuple[Path, int]]:
    """Files below `root` with their sizes, in the order of their paths, until `total` bytes are reached."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - {"__pycache__"})  # comes and goes
        for name in sorted(files):
            path = Path(directory, name)
            size = path.stat().st_size if path.is_file() and os.access(path, os.R_OK) else 0
            if _SMALLEST <= size <= _LARGEST and not path.is_symlink():
                yield path, size
                total -= size
        if total <= 0:
            return


def log_file(rng: random.Random, length: int) -> bytes:
    """Log lines of which a third is random, so that they compress as logs do."""
    lines = bytearray()
    while len(lines) < length:
        lines += (
            f"{rng.getrandbits(160):040x} accepted from web frontend, stock reserved, invoice sent\n".encode()
        )
    return bytes(lines[:length])


@dataclass(frozen=True)
class Database:
    """Where the pages of the database lie on the data disk: `pages` of 4 KiB from `offset` on."""

    offset: int
    pages: int

    def write(self, image: int, rng: random.Random, pages: Sequence[int]) -> None:
        """Write new versions of these pages into an open image of the disk."""
        for page in pages:
            write_at(image, self.offset + page * CLUSTER, _page(rng, page))


def fill_data_image(raw: Path, files: Mapping[str, Path], size: int, seed: int) -> Database:
    """Write a tar archive of about `size` bytes to the start of the image, and a database of that size."""
    capacity = raw.stat().st_size
    size = min(size, capacity // 4)
    with raw.open("r+b") as image, tarfile.open(fileobj=image, mode="w") as archive:
        for name, path in files.items():
            entry = archive.gettarinfo(path, arcname=name)
            if archive.offset + entry.size + tarfile.RECORDSIZE <= size:
                with path.open("rb") as content:
                    archive.addfile(entry, content)
    database = Database(capacity // 2 // CLUSTER * CLUSTER, size // CLUSTER)
    rng = random.Random(seed)
    with opened(raw, os.O_RDWR) as fd:
        database.write(fd, rng, range(database.pages))
    return database


def _page(rng: random.Random, page: int) -> bytes:
    """A page number, half a page of rows that look alike, half a page that does not compress."""
    head = page.to_bytes(8, "little") + rng.randbytes(8)
    return (head + b"row of order, article, amount; ".ljust(32) * 64)[: CLUSTER // 2] + rng.randbytes(
        CLUSTER // 2
    )
