"""What the tests of file systems share: images made by the usual tools, and disks as files."""

import gzip
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import KiB, MiB

GOLDEN = Path(__file__).parent / "golden"
TOOLS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class DiskFile:
    """A disk in a file. `read`: the ranges that were read."""

    failure = None

    def __init__(self, path):
        self._path = path
        self.size = path.stat().st_size
        self.read = []

    def read_at(self, offset, length):
        self.read.append((offset, length))
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


def tool(*command, **options):
    """Run a tool of the system; without it the test is skipped."""
    if shutil.which(command[0], path=TOOLS) is None:
        pytest.skip(f"{command[0]} is not installed")
    environment = {**os.environ, "PATH": TOOLS, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ext_image(path, commands, size="16M", options=("-t", "ext4")):
    """An ext image, filled by debugfs."""
    path.unlink(missing_ok=True)
    tool("mkfs.ext4", "-q", "-F", *options, path, size)
    debugfs(path, commands)
    return path


def debugfs(path, commands):
    """Run commands of debugfs; one that fails is told, as its exit status is 0."""
    with path.with_suffix(".commands").open("w") as file:
        file.write("\n".join(commands) + "\n")
    said = tool("debugfs", "-w", "-f", file.name, path)
    assert not re.search(r"^(?!debugfs)[a-z0-9_]+: ", said, re.MULTILINE), said
    return said


def lvm_disks(directory, commands):
    """Two physical volumes of the group `vgtest`, with the same files in two ext4.

    `root` has two segments, one on each; `data` has stripes of 64 KiB.
    """
    root = ext_image(directory / "root", commands, "60M", ("-t", "ext4", "-L", "root")).read_bytes()
    data = ext_image(directory / "data", commands, "80M", ("-t", "ext4", "-L", "data")).read_bytes()
    pieces = {0: [], 1: []}  # where on each, and what
    for at in range(0, len(root), 64 * KiB):
        place = (0, MiB + at) if at < 40 * MiB else (1, MiB + at)
        pieces[place[0]].append((place[1], root[at : at + 64 * KiB]))
    for number, at in enumerate(range(0, len(data), 64 * KiB)):
        row, column = divmod(number, 2)
        pieces[column].append(((41 * MiB, MiB)[column] + row * 64 * KiB, data[at : at + 64 * KiB]))
    disks = [directory / "pv0", directory / "pv1"]
    for number, disk in enumerate(disks):
        with disk.open("wb") as file:
            file.truncate(300 * MiB)
            file.write(gzip.decompress((GOLDEN / f"lvm-pv{number}.gz").read_bytes()))
            for place, piece in pieces[number]:
                if any(piece):
                    file.seek(place)
                    file.write(piece)
    return disks


def golden(name, path):
    """A stored image, unpacked."""
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return path
