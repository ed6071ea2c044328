"""Where the files of a repository lie, what they may be called, and how they are read and written.

Every file that a run writes begins with the id of the run. So what a dead run left is found by name, without a
journal that would have to be flushed before each file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipeline import SinkError
from vadpipe import files
from vadpipe.files import flush_directory

from .backends.contract import Damage as Damage

RUN_ID_SIZE = 8
PACK_ID_SIZE = RUN_ID_SIZE + 4

_RUN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Layout:
    """The paths of the repository in directory `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def points(self) -> Path:
        return self.root / "points"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.packs, self.index, self.points, self.runs, self.tmp)

    def pack(self, pack_id: str) -> Path:
        """The last two digits spread the packs of one run, whose ids begin alike, over 256 directories."""
        return self.packs / pack_id[-2:] / f"{pack_id}.pack"

    def segment(self, run_id: str, serial: int) -> Path:
        return self.index / f"{run_id}{serial:08x}.idx"

    def point(self, machine_uuid: str, point_id: str) -> Path:
        return self.points / machine_directory(machine_uuid) / f"{point_id}.json"

    def lock(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.lock"

    def segments_of(self, run_id: str) -> list[Path]:
        return sorted(self.index.glob(f"{run_id}*.idx"))

    def packs_of(self, run_id: str) -> list[Path]:
        return sorted(self.packs.glob(f"??/{run_id}*.pack"))

    def temporary_of(self, run_id: str) -> list[Path]:
        return sorted(self.tmp.glob(f"{run_id}*"))


def pack_id(run_id: str, serial: int) -> str:
    """Pack number `serial` of a run."""
    return f"{run_id}{serial:08x}"


def run_of(path: Path) -> str | None:
    """The id of the run that wrote a file, if its name begins with one."""
    found = _RUN_ID.match(path.name)
    return found.group() if found else None


def machine_directory(uuid: str) -> str:
    """A VM's UUID as a file name. UUIDs come from configuration files: none may name another directory."""
    name = quote(uuid, safe="")
    return name.replace(".", "%2E") if name.strip(".") == "" else name


DIRECTORY_MODE = 0o700

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free space there, or raise the quota, and run again."),
    errno.EFBIG: "Raise the limit of file sizes (`ulimit -f`) and run again.",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "Give this user the right to do so, or choose another target.",
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "Raise the limit of open files (`ulimit -n`) and run again."
    ),
}


@contextmanager
def sink_errors(path: Path, doing: str) -> Iterator[None]:
    """Inside, an OSError becomes a SinkError that names `path`; `doing` is like 'write'."""
    try:
        yield
    except OSError as exc:
        number = exc.errno or 0
        remedy = _REMEDIES.get(number, "Check the file system and the kernel's log, then run again.")
        raise SinkError(
            f"Could not {doing} {path}: {os.strerror(number) if number else exc}.",
            remedy=f"{remedy} Nothing was published.",
            path=str(path),
            errno=number,
        ) from exc


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file. Never waits, as opening a FIFO would.

    Raises:
        Damage: it is missing, something else or cannot be read; the cause is the OSError, if there was one.
        SinkError: this process has too many files open.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            with sink_errors(path, "open"):
                raise
        if exc.errno == errno.ELOOP:
            raise Damage("it is a symbolic link instead of a file") from exc
        raise Damage(f"reading it failed ({exc.strerror})") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damage("it is not a regular file")
    return descriptor


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """`open_regular`, closed at the end; an OSError inside becomes a Damage."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    except OSError as exc:
        raise Damage(f"reading it failed ({exc.strerror})") from exc
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`. Raises Damage when the file ends before, OSError."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size:
        more = os.pread(descriptor, size - len(content), offset + len(content))
        if not more:
            raise Damage("it is cut off")
        content += more
    return content


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a small file. Raises Damage, also when it is larger than `limit`."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise Damage(f"it has {size} bytes, and no file of its kind has more than {limit}")
        return read_exactly(descriptor, size, 0)


def publish(temporary: Path, final: Path) -> None:
    """Give a flushed file its final name, durably. The directory is made when it is missing."""
    make_directory(final.parent)
    files.publish(temporary, final, replace=True)


def write_durably(final: Path, temporary: Path, content: bytes) -> None:
    """A small file, whole or not at all."""
    make_directory(final.parent)
    files.write_durably(final, content, temporary=temporary, replace=True)


def make_directory(directory: Path) -> None:
    """Make a directory, durably, unless it is there."""
    if not directory.is_dir():
        directory.mkdir(DIRECTORY_MODE, exist_ok=True)
        flush_directory(directory.parent)
