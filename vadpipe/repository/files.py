"""Durable files: temporary name, fsync, rename, fsync of the directory; and the errors of the file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline import SinkError
from vadpipe.files import flush_directory

# VM data lies in these files: only their owner may read them.
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def sink_errors(path: Path, doing: str) -> Iterator[None]:
    """Inside, an OSError becomes a SinkError that names `path`; `doing` is like 'write'."""
    try:
        yield
    except OSError as exc:
        number = exc.errno or 0
        if number in _FULL:
            remedy = "Free space there (or raise the quota or file size limit) and run again."
        elif number in _REFUSED:
            remedy = "Give this user the right to do so, or choose another target."
        else:
            remedy = "Check the file system and the kernel's log, then run again."
        raise SinkError(
            f"Could not {doing} {path}: {os.strerror(number) if number else exc}.",
            remedy=f"{remedy} Nothing was published.",
            path=str(path),
            errno=number,
        ) from exc


def create(path: Path) -> int:
    """A descriptor of a new file, for writing and reading."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)


def write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    """Append all parts, without joining them first."""
    left = [memoryview(part).cast("B") for part in parts if len(part)]
    while left:
        written = os.writev(descriptor, left[:_IOV_MAX])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def publish(temporary: Path, final: Path) -> None:
    """Give a flushed file its final name, durably. The directory is made when it is missing."""
    if not final.parent.is_dir():
        final.parent.mkdir(DIRECTORY_MODE, exist_ok=True)
        flush_directory(final.parent.parent)
    os.rename(temporary, final)
    flush_directory(final.parent)


def write_durably(final: Path, temporary: Path, content: bytes) -> None:
    """A small file, whole or not at all."""
    descriptor = create(temporary)
    try:
        write_all(descriptor, [content])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    publish(temporary, final)
