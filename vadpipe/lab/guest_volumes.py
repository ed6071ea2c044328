"""File systems in raw images, written without mounting them and without root.

NTFS with ntfs-3g's tools where they are installed, else ext4 with e2fsprogs, else plain bytes. A volume keeps
no state: it is its image. Files lie in the root directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.units import CLUSTER

from .vmdk_files import LabDiskError, opened, write_at

FileSystem = Literal["ntfs", "ext4", "none"]

# Debian keeps them where the PATH of a user does not reach.
_TOOL_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Volume(Protocol):
    """A file system in the image `raw`, which has its final size before `make`."""

    @property
    def raw(self) -> Path: ...

    def make(self, files: Mapping[str, Path]) -> None:
        """Make the file system, with copies of these files under these names. Raises LabDiskError."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file, new or in place of the one of that name. Raises LabDiskError."""
        ...

    def remove(self, name: str) -> None:
        """Free the space of a file. Raises LabDiskError."""
        ...


def volume_in(raw: Path, file_system: FileSystem) -> Volume:
    return _KINDS[file_system](raw)


def best_file_system() -> FileSystem:
    """What the tools of this machine can make, the most Windows-like first."""
    if _tool("mkntfs") and _tool("ntfscp"):
        return "ntfs"
    return "ext4" if _tool("mke2fs") and _tool("debugfs") else "none"


def names_in(raw: Path, file_system: FileSystem) -> set[str] | None:
    """Names of the files in the image's root directory, by the file system's own tools. None: there is no way.

    Raises LabDiskError when the tools find no whole file system there.
    """
    if file_system == "ntfs" and _tool("ntfsls"):
        return {line.strip() for line in _run("ntfsls", raw, output="stdout").splitlines()} - {"."}
    if file_system == "ext4":
        lines = _run("debugfs", "-R", "ls -p /", raw, output="stdout").splitlines()
        return {line.split("/")[5] for line in lines if line.strip()} - {".", "..", "lost+found"}
    return None


@dataclass(frozen=True)
class NtfsVolume:
    """NTFS by mkntfs and ntfscp. Neither can delete a file, so a removed one stays, with no bytes."""

    raw: Path

    def make(self, files: Mapping[str, Path]) -> None:
        _run("mkntfs", "-F", "-Q", "-q", self.raw)
        for name, source in files.items():
            _run("ntfscp", "-q", self.raw, source, name)

    def put(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as source:
            source.write(content)
            source.flush()
            _run("ntfscp", "-q", self.raw, source.name, name)

    def remove(self, name: str) -> None:
        self.put(name, b"")


@dataclass(frozen=True)
class Ext4Volume:
    """ext4 by mke2fs and debugfs."""

    raw: Path

    def make(self, files: Mapping[str, Path]) -> None:
        with tempfile.TemporaryDirectory(dir=self.raw.parent) as root:
            for name, source in files.items():
                shutil.copyfile(source, Path(root, name))
            _run("mke2fs", "-q", "-F", "-t", "ext4", "-b", CLUSTER, "-d", root, self.raw)

    def put(self, name: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as source:
            source.write(content)
            source.flush()
            self._edit(f'rm "{name}"', f'write "{source.name}" "{name}"')

    def remove(self, name: str) -> None:
        self._edit(f'rm "{name}"')

    def _edit(self, *commands: str) -> None:
        """Run debugfs commands. It exits with 0 whatever happens; errors are what it prints besides its name."""
        with tempfile.NamedTemporaryFile("w") as script:
            script.write("\n".join(commands) + "\n")
            script.flush()
            said = _run("debugfs", "-w", "-f", script.name, self.raw)
        lines = [
            line for line in said.splitlines() if not line.startswith(("debugfs 1.", "rm: File not found"))
        ]
        if lines:
            raise LabDiskError(
                f"debugfs cannot change {self.raw}: {' '.join(lines)}", remedy="Build the lab's VM again."
            )


@dataclass(frozen=True)
class PlainVolume:
    """No file system: each file lies, without a name, at a place that its name chooses."""

    raw: Path

    def make(self, files: Mapping[str, Path]) -> None:
        for name, source in files.items():
            self.put(name, source.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        with opened(self.raw, os.O_RDWR) as fd:
            capacity = os.fstat(fd).st_size
            digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
            offset = int.from_bytes(digest, "little") % (capacity // CLUSTER) * CLUSTER
            write_at(fd, offset, content[: capacity - offset])

    def remove(self, name: str) -> None:
        self.put(name, bytes(CLUSTER))


_KINDS: dict[FileSystem, Callable[[Path], Volume]] = {
    "ntfs": NtfsVolume,
    "ext4": Ext4Volume,
    "none": PlainVolume,
}


def _tool(name: str) -> str | None:
    return shutil.which(name, path=_TOOL_PATH)


def _run(tool: str, *arguments: object, output: Literal["stdout", "stderr"] = "stderr") -> str:
    """Run a tool; returns what it printed there. Raises LabDiskError with what it said on standard error."""
    program = _tool(tool)
    if program is None:
        raise LabDiskError(f"{tool} is not installed.", remedy="Install ntfs-3g or e2fsprogs.")
    command = [program, *map(str, arguments)]
    environment = {**os.environ, "LC_ALL": "C"}  # what they say is read
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as exc:
        raise LabDiskError(
            f"{tool} failed with exit code {exc.returncode}: {exc.stderr.strip()}",
            remedy="Make the disk larger, or fill it with less.",
        ) from exc
    return done.stdout if output == "stdout" else done.stderr
