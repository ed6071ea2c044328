"""Disk images to measure with: ext4 file systems of the machine's own files, made without root."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.units import CLUSTER, GiB, format_size

# What an operating system and its programs consist of; caches of compressed archives would tell nothing.
ROOTS = ("/usr", sys.base_prefix)

_DESCRIPTOR = """\
# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"
RW {sectors} FLAT "{name}" 0
ddb.adapterType = "lsilogic"
"""


def ext4_image(directory: Path, size: int, fill: int, seed: int, *, layout: int = 0) -> Path:
    """A sparse raw image of `size` bytes with about `fill` bytes of files, chosen by seed; made once.

    Another `layout` has the same files in other places: their directories are dealt to 16 new ones.
    Beside it lies a VMDK descriptor, so that LocalVm(image.parent) reads it. Raises ConfigError without mke2fs.
    """
    place = directory / f"ext4-{size // GiB}g-{fill >> 20}m-{seed}{f'-{layout}' if layout else ''}"
    image = place / "disk.raw"
    if image.exists():
        return image
    mke2fs = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mke2fs is None:
        raise ConfigError("There is no mke2fs to make an image with.", remedy="Install e2fsprogs.")
    chosen = list(_chosen(fill, seed))
    found = sum(length for _, length in chosen)
    if found < fill * 9 // 10:
        raise ConfigError(
            f"This machine has only {format_size(found)} of files to fill an image with.",
            remedy=f"Ask for a smaller --fill than {format_size(fill)}.",
        )
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        tree, raw = Path(scratch, "tree"), Path(scratch, "disk.raw")
        tree.mkdir()
        for path, _ in chosen:
            dealt = random.Random(f"{layout} {path.parent}").randrange(16)
            _take(path, tree / str(dealt) if layout else tree)
        with raw.open("wb") as file:
            file.truncate(size)
        # Blocks of 4 KiB, as on any disk of 512 MiB or more; mke2fs would take 1 KiB for a small one.
        subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree, raw], check=True)
        describe(image, size)
        raw.rename(image)
    return image


def describe(image: Path, size: int) -> None:
    """Write a VMDK descriptor beside a raw image of `size` bytes, so that LocalVm(image.parent) reads it."""
    image.with_suffix(".vmdk").write_text(_DESCRIPTOR.format(sectors=size // 512, name=image.name))


def _chosen(fill: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Whole directories in an order by seed, so that files keep the neighbours they have.

    Each directory has its own place in that order: one that comes or goes leaves the others where they are, and an
    image that is made later holds nearly the same files.
    """
    directories = sorted({Path(found) for root in ROOTS for found, _, _ in os.walk(root)})
    for directory in sorted(directories, key=lambda found: random.Random(f"{seed} {found}").random()):
        if fill < CLUSTER:
            return
        for entry in sorted(_entries(directory), key=lambda entry: entry.name):
            length = entry.stat(follow_symlinks=False).st_size
            if entry.is_file(follow_symlinks=False) and length <= fill:
                yield Path(entry.path), length
                fill -= length


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _take(path: Path, tree: Path) -> None:
    """Link or copy a file into the tree; one that is unreadable or gone meanwhile is left out."""
    target = tree / path.parent.relative_to("/") / path.name
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another file system
            shutil.copyfile(path, target)
