"""Files of a disk: opened once, read at places, and watched.

A file that changed since it was opened cannot be part of one image of the disk: every error here says so, and a
short read is never taken for data.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.extents import Extents

_REMEDY_CUT = "The file is cut off or still being written; copy or restore it in full."
_REMEDY_MOVED = "Power the VM off or read a copy that nobody changes, then start again."


class RandomAccess(Protocol):
    """Bytes at places; what the parsers of this room read from."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly these bytes. Raises SourceError, which says that they are `what`."""
        ...


def cut_off(name: str, size: int, offset: int, length: int, what: str) -> SourceError:
    """The error for bytes that lie beyond the end of a file."""
    return SourceError(
        f"{name} ends at {size} bytes, but its {what} lies at {offset} to {offset + length}.",
        remedy=_REMEDY_CUT,
        file=name,
        file_offset=offset,
        expected=offset + length,
        found=size,
    )


class DiskFile:
    """An open regular file; all methods are synchronous and thread-safe. Raises SourceError only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        with _translated(self.name):
            # O_NONBLOCK: a FIFO that bears the name of a disk must not hold us up.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._opened = os.fstat(self._descriptor)
        self.size = self._opened.st_size
        if not stat.S_ISREG(self._opened.st_mode):
            self.close()
            raise SourceError(
                f"{self.name} is not a regular file.",
                remedy="A disk on a host device cannot be read from files; export the VM first.",
                file=self.name,
            )

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def changed_s(self) -> float:
        """When the file was last written before it was opened; Unix time."""
        return self._opened.st_mtime

    def read(self, offset: int, length: int, what: str) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise cut_off(self.name, self.size, offset, length, what)
        with _translated(self.name):
            content = os.pread(self._descriptor, length, offset)
        if len(content) < length:
            raise cut_off(self.name, offset + len(content), offset, length, what)
        return content

    def read_into(self, target: NDArray[np.uint8], offset: int) -> None:
        """Fill `target` with the bytes from `offset` on."""
        done = 0
        with _translated(self.name):
            while done < len(target):
                count = os.preadv(self._descriptor, [target[done:].data], offset + done)
                if count == 0:
                    found = os.fstat(self._descriptor).st_size
                    raise cut_off(self.name, found, offset, len(target), "data")
                done += count

    def held(self, offset: int, length: int) -> Extents:
        """Where in the file bytes are stored; all of it where the file system keeps no account of holes."""
        end = min(offset + length, self.size)
        found: list[tuple[int, int]] = []
        with _translated(self.name):
            while offset < end:
                try:
                    start = os.lseek(self._descriptor, offset, os.SEEK_DATA)
                    stop = os.lseek(self._descriptor, start, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                        break
                    if error.errno != errno.EINVAL:
                        raise
                    start, stop = offset, end
                if start < end:
                    found.append((start, min(stop, end) - start))
                offset = stop
        return Extents.of(found)

    def check_unchanged(self) -> None:
        """Raise SourceError if the file was changed, cut or removed since it was opened."""
        with _translated(self.name):
            now = os.fstat(self._descriptor)
        if now.st_size < self.size:
            raise cut_off(self.name, now.st_size, 0, self.size, "data")
        if now.st_nlink == 0:
            raise SourceError(
                f"{self.name} was removed while it was read.", remedy=_REMEDY_MOVED, file=self.name
            )
        if (now.st_size, now.st_mtime_ns) != (self.size, self._opened.st_mtime_ns):
            raise SourceError(
                f"{self.name} was changed while it was read.", remedy=_REMEDY_MOVED, file=self.name
            )


class OpenFiles:
    """The files of a VM, each opened once; `close` closes them all.

    Args:
        inside: The directories that all files must lie in after symbolic links are followed. The texts of a VM name
            other files, and come from whoever made the VM: without this bound they could name any file of this
            machine. None: no bound.
    """

    def __init__(self, inside: Iterable[Path] | None = None) -> None:
        self._inside = None if inside is None else [directory.resolve() for directory in inside]
        self._files: dict[Path, DiskFile] = {}

    def open(self, path: Path) -> DiskFile:
        """The file at `path`, symbolic links followed.

        Raises:
            SourceError: It cannot be opened, or lies outside the VM's directories.
        """
        with _translated(str(path)):
            real = path.resolve()
        if self._inside is not None and not any(real.is_relative_to(root) for root in self._inside):
            raise SourceError(
                f"{path} is {real}, which lies outside of {self._inside[0]}, the VM's directory.",
                remedy=f"If the VM is trusted, allow it: LocalVm(..., outside=[{str(real.parent)!r}]).",
                file=str(path),
                outside=str(real),
            )
        if real not in self._files:
            self._files[real] = DiskFile(real)
        return self._files[real]

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """The one place where errors of the operating system become ours."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: a NUL
        number = getattr(error, "errno", None)
        remedy = {
            errno.ENOENT: "Restore the file, or take it out of the VM's configuration.",
            errno.EACCES: "Give the user that runs this the right to read the file.",
            errno.EMFILE: "Raise the limit of open files (`ulimit -n`); a split disk opens all its files.",
            errno.ESTALE: "The file was removed on its server; read a copy that nobody changes.",
        }.get(number or 0, "Check the file, its path and its file system.")
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SourceError(f"{name}: {reason}.", remedy=remedy, file=name) from error
