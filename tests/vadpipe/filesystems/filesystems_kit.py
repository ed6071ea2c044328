"""What the tests of file systems share: images made by the usual tools, and disks as files."""

import lzma
import os
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
        self._file = open(path, "rb")  # noqa: SIM115 - is open as long as the test
        self.size = self._file.seek(0, os.SEEK_END)
        self.read = []

    def read_at(self, offset, length):
        self.read.append((offset, length))
        self._file.seek(offset)
        return self._file.read(length)

    def close(self):
        self._file.close()


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
    told = tool("debugfs", "-w", "-f", "-", path, input="\n".join(commands) + "\n")
    return told


def golden(name, path):
    """A stored image, unpacked."""
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
    return path
