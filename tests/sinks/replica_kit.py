"""Migrations of disks that are computed from a seed, into images that qemu-img reads as a witness."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import Disk, DiskReceipt, Extents, JobReceipt, KiB, MiB, Pipeline
from pipeline.testing import FakeMachine, PatternDisk
from sinks.migrate import Migrate
from sinks.replica import IntoReplica, Replica, ReplicaWriter
from stages.extents import ChangedExtents
from stages.read import ReadSpans
from stages.remember import RememberRanges
from stages.zeros import MarkZeros
from tests.sinks.target_kit import tool

CAPACITY = 24 * MiB + 512 * 3


def path(disk: Disk, replica: ReplicaWriter) -> Pipeline[DiskReceipt]:
    return (
        ChangedExtents(disk, replica.previous(disk))
        | RememberRanges(replica, disk)
        | ReadSpans(disk)
        | MarkZeros()
        | IntoReplica(replica, disk)
    )


def image_content(image: Path, form: str, scratch: Path) -> np.ndarray:  # type: ignore[type-arg]
    """The bytes of an image, as qemu-img reads them."""
    scratch.unlink(missing_ok=True)
    command = [tool("qemu-img"), "convert", "-f", form, "-O", "raw", str(image), str(scratch)]
    subprocess.run(command, check=True, capture_output=True)
    return np.fromfile(scratch, np.uint8)


@dataclass
class Moving:
    """A migration of one pattern disk."""

    root: Path
    form: str = "qcow2"
    disk: PatternDisk = field(default_factory=lambda: PatternDisk(CAPACITY, seed=5))

    def __post_init__(self) -> None:
        tool("qemu-nbd")

    @property
    def replica(self) -> Replica:
        return Replica(f"{self.form}:{self.root / 'images'}", state=self.root / "migration")

    @property
    def image(self) -> Path:
        return self.root / "images" / "fake" / f"scsi0-0.{self.form}"

    def job(self, disk: object = None, **settings: object) -> Migrate:  # type: ignore[type-arg]
        settings = {"into": self.replica, "path": path} | settings
        return Migrate(FakeMachine([disk or self.disk]), **settings)  # type: ignore[arg-type,list-item]

    async def increment(self, disk: object = None, **settings: object) -> JobReceipt:
        return await self.job(disk, **settings).run()

    def matches(self) -> bool:
        content = image_content(self.image, self.form, self.root / "witness.raw")
        wanted = self.disk.bytes_at(0, CAPACITY)
        return len(content) >= CAPACITY and np.array_equal(content[:CAPACITY], wanted)


def written(receipt: JobReceipt) -> int:
    """Bytes that went to the replica as data."""
    return sum(run.receipt.stored for run in receipt.disks)


def changed(receipt: JobReceipt) -> int:
    return sum(run.changed or 0 for run in receipt.disks)


def doubt(moving: Moving) -> Extents:
    return moving.replica.directory.doubt("scsi0:0")


PIECE = 64 * KiB


def qemu(name: str, *arguments: object) -> bytes:
    """Run one of qemu's tools to its end."""
    return subprocess.run([tool(name), *map(str, arguments)], check=True, capture_output=True).stdout


def zeros_of(image: Path, form: str) -> int:
    """The bytes that an image holds as zeros without data, as qemu-img tells."""
    parts = json.loads(qemu("qemu-img", "map", "--output=json", "-f", form, image))
    return sum(part["length"] for part in parts if part["zero"])
