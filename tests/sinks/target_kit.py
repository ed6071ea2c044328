"""What the targets that make images must do; one list of tests, `test_targets.py`, runs for each of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trio

from sinks.qemu import Qcow2Directory
from sinks.raw import RawDirectory
from sinks.restoring import RestoreReceipt, RestoreTarget, restore
from sinks.vmdk import VmdkDirectory
from vadpipe.repository import Repository, open_repository


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name}, the witness, is not installed")
    return found


@dataclass(frozen=True)
class ImageTarget:
    """A target that makes an image of each disk in a directory. `form` is qemu's name of the image's format."""

    name: str
    make: Callable[[Path], RestoreTarget]
    form: str
    too_large: str = "File too large"  # what it says at a limit of file sizes

    def content(self, image: str | Path, scratch: Path) -> np.ndarray:
        """The bytes of an image, as qemu-img reads them."""
        scratch.unlink(missing_ok=True)
        command = [tool("qemu-img"), "convert", "-f", self.form, "-O", "raw", str(image), str(scratch)]
        subprocess.run(command, check=True, capture_output=True)
        return np.fromfile(scratch, np.uint8)

    def __str__(self) -> str:
        return self.name


TARGETS = [
    ImageTarget("raw", RawDirectory, "raw"),
    *(
        ImageTarget(form, lambda path, form=form: VmdkDirectory(path, form), "vmdk")  # type: ignore[misc]
        for form in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized")
    ),
    ImageTarget(
        "qcow2",
        Qcow2Directory,
        "qcow2",
        r"No space left on device for .*/scsi0-0\.qcow2",
    ),
]


def restored(
    repository: Repository, target: RestoreTarget, *, force: bool = False, keys: tuple[str, ...] = ()
) -> RestoreReceipt:
    """Restore the newest point."""

    async def work() -> RestoreReceipt:
        async with open_repository(repository.path) as reader:
            return await restore(reader, reader.points[-1], target, keys=keys, force=force)

    return trio.run(work)


def files(directory: Path) -> dict[str, bytes]:
    """The files below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
