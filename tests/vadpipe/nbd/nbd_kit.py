"""Servers of NBD for tests, and what their images hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import Disk
from pipeline.testing import check_reader
from pipeline.units import MiB

SIZE = 22 * MiB + 3 * 512

Serve = Callable[..., Path]


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is missing: no server to read from")
    return found


def qemu_nbd(serve: Serve, image: Path, *more: object, socket: Path | None = None) -> Path:
    form = "raw" if image.suffix == ".raw" else "qcow2"
    words = [
        "qemu-nbd",
        "--persistent",
        "--shared=8",
        "--read-only",
        "-f",
        form,
        "-x",
        "vm/disk",
        "-k",
        "SOCKET",
    ]
    return serve(*words, *more, image, socket=socket)


async def keeps_the_rules_of_disks(disk: Disk, raw: Path) -> None:
    content = np.fromfile(raw, np.uint8)
    await check_reader(disk, lambda offset, length: content[offset : offset + length].tobytes())
