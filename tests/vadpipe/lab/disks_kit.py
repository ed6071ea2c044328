"""Disks for tests, and what qemu-img and our own reader find in them."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.units import KiB, MiB
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vmdk_chain import open_link, opened_chain

BLOCK = 64 * KiB
ODD = 2 * MiB + 3 * 512  # neither whole grains nor whole clusters

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done.stdout


def witnessed(path: Path) -> bytes:
    """What qemu-img reads through the chain that starts at `path`, after checking every file of it."""
    for link in json.loads(qemu_img("info", "--backing-chain", "--output=json", path)):
        assert link["format"] == "vmdk"
        qemu_img("check", link["filename"])
    raw = path.with_suffix(".witness")
    qemu_img("convert", "-O", "raw", path, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def chain_by_hints(path: Path) -> list[Path]:
    chain = [path]
    while True:
        link = open_link(chain[-1])
        text = link.descriptor
        link.close()
        if "parentFileNameHint" not in text:
            return chain
        chain.append(path.with_name(text.split('parentFileNameHint="')[1].split('"')[0]))


def shown(path: Path) -> bytes:
    """What our own reader finds, following the descriptors and not the state file."""
    with opened_chain(chain_by_hints(path)) as chain:
        return bytes(chain.read(0, chain.links[0].capacity))


def blocks_of(areas: list[tuple[int, int]]) -> set[int]:
    assert all(offset % BLOCK == 0 for offset, _ in areas)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(areas)), "runs are sorted and merged"
    return {
        block for offset, length in areas for block in range(offset // BLOCK, -(-(offset + length) // BLOCK))
    }


def differing(one: bytearray, other: bytearray) -> set[int]:
    different = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    return set(np.flatnonzero(np.logical_or.reduceat(different, np.arange(0, ODD, BLOCK))).tolist())


def touched(offset: int, length: int) -> set[int]:
    return set(range(offset // BLOCK, -(-(offset + length) // BLOCK)))


def new_disk(directory: Path, provisioning: str = "thin", capacity: int = ODD) -> LabDisk:
    if provisioning == "thin":
        return LabDisk.create(directory, "web01", capacity)
    return LabDisk.create(directory, "web01", capacity, provisioning="flat")
