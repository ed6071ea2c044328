"""VMDK chains made by qemu-img, the stand-in library, and the proof that no test leaves a process behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.secrets import Secret
from pipeline.units import SPAN, KiB, MiB
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import Vddk

THUMBPRINT = ":".join(["3F"] * 20)
COOKIE = ":".join(["B1"] * 20)  # looks like a thumbprint, which the library logs
PASSWORD = "correct horse battery"
CAPACITY = 22 * MiB + 3 * 512  # not a whole number of spans, requests, chunks or clusters

VDDK_LIBDIR = os.environ.get("VDDK_LIBDIR", "")


@pytest.fixture(params=["stand-in", "real"])
def any_libdir(request: pytest.FixtureRequest) -> str:
    """The stand-in and, where there is one, the real library. Good for local disks."""
    if request.param == "stand-in":
        return str(request.getfixturevalue("libdir"))
    if not VDDK_LIBDIR:
        pytest.skip("VDDK_LIBDIR is not set: no real VDDK to test with")
    return VDDK_LIBDIR


@dataclass(frozen=True)
class Chain:
    """A VMDK whose content is known from qemu-img alone."""

    leaf: Path
    raw: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    mapped: Extents


def qemu(tool: str, *arguments: object) -> bytes:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing: nothing to compare with")
    return subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True).stdout


def write(image: Path, *pieces: tuple[int, int, int]) -> None:
    """Fill (offset, length) with a byte each."""
    commands = [
        word for offset, length, byte in pieces for word in ("-c", f"write -P {byte} {offset} {length}")
    ]
    qemu("qemu-io", "-f", "vmdk", *commands, image)


def known(leaf: Path) -> Chain:
    raw = leaf.with_suffix(".raw")
    qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", leaf, raw)
    areas = json.loads(qemu("qemu-img", "map", "--output=json", "-f", "vmdk", leaf))
    mapped = Extents.of((area["start"], area["length"]) for area in areas if area["data"])
    return Chain(leaf, np.fromfile(raw, dtype=np.uint8), mapped)


@dataclass(frozen=True)
class Lab:
    """What the stand-in sees as a vCenter: `root` with its datastore and settings."""

    root: Path
    chains: dict[str, Chain]

    def access(self, chain: str = "grandchild", **changes: object) -> DiskAccess:
        leaf = self.chains[chain].leaf
        facts: dict[str, object] = {
            "path": f"[ds1] web01/{leaf.name}",
            "server": "vc.lab",
            "user": "backup",
            "password": Secret.from_text(PASSWORD),
            "thumbprint": THUMBPRINT,
            "vm": "vm-16",
            "snapshot": "snapshot-5",
        }
        return DiskAccess(**(facts | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def made_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    place = root / "datastores" / "ds1" / "web01"
    place.mkdir(parents=True)
    (root / "vddk.conf").write_text(
        f"thumbprint={THUMBPRINT}\nuser=backup\npassword={PASSWORD}\ncookie={COOKIE}\nvm=vm-16\nsnapshot=snapshot-5\n"
    )
    random = np.random.default_rng(20)
    content = np.zeros(CAPACITY, np.uint8)
    for start, end in ((0, 1000 * KiB), (3 * MiB + 4096, 9 * MiB), (14 * MiB, 14 * MiB + 512)):
        content[start:end] = random.integers(1, 256, end - start, np.uint8)
    source = place / "source.img"
    content.tofile(source)
    flat, sparse = place / "flat.vmdk", place / "sparse.vmdk"
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", source, flat)
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", source, sparse)
    child, grandchild = place / "child.vmdk", place / "grandchild.vmdk"
    qemu("qemu-img", "create", "-f", "vmdk", "-b", sparse, "-F", "vmdk", child)
    write(child, (4 * MiB, 128 * KiB, 11), (CAPACITY - 512, 512, 12))
    qemu("qemu-img", "create", "-f", "vmdk", "-b", child, "-F", "vmdk", grandchild)
    write(grandchild, (64 * KiB, 64 * KiB, 0), (4 * MiB + 64 * KiB, 64 * KiB, 13), (18 * MiB, 3 * MiB, 14))
    return Lab(root, {leaf.stem: known(leaf) for leaf in (flat, sparse, child, grandchild)})


@pytest.fixture
def lab(made_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("VADPIPE_LAB_ROOT", str(made_lab.root))
    return made_lab


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    pool = BufferPool(4 * SPAN)
    yield pool
    gc.collect()
    assert pool.statistics().free == pool.statistics().buffers


def quick(libdir: Path | str, **changes: object) -> Vddk:
    """Settings whose clocks suit a test."""
    calm: dict[str, object] = {"restart_pause_s": 0.0, "end_timeout_s": 10.0}
    return Vddk(libdir, **(calm | changes))  # type: ignore[arg-type]


def children(of: int | None = None) -> list[int]:
    """Process ids of the VDDK children of a process, of this one unless told otherwise; zombies included."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has just gone
            continue
        if parent == (of or os.getpid()) and b"child.py" in command:
            found.append(int(status.parent.name))
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert children() == []


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, object]]]:
    """What the stand-in counted, one row per process that came to its Exit."""
    path = tmp_path / "counters"
    monkeypatch.setenv("VADPIPE_VDDK_COUNTERS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]
