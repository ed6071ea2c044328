"""What the tests of file systems share: images made by the usual tools, and disks as files."""

import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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


def golden(name, path):
    """A stored image, unpacked."""
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return path
