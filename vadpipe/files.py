"""What every room that keeps files needs: writing them durably, and a place for its state."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import ConfigError

FILE_MODE = 0o600  # what is written may be a VM's data: only its owner may read it

_IOV_MAX = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16


def create(path: Path) -> int:
    """A descriptor of a new file, for writing and reading. Raises OSError, also for a link in its place."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # the last is of Windows, which lacks the others
        flags |= getattr(os, name, 0)
    return os.open(path, flags, FILE_MODE)


def write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    """Append all parts, without joining them first."""
    left = [memoryview(part).cast("B") for part in parts if len(part)]
    while left:
        written = _write(descriptor, left[:_IOV_MAX])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes of the content at an offset of the file. Raises OSError."""
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _write(descriptor: int, parts: Sequence[memoryview]) -> int:
    return os.writev(descriptor, parts) if hasattr(os, "writev") else os.write(descriptor, parts[0])


TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.partial")  # the names that `temporary_beside` gives


def temporary_beside(final: Path) -> Path:
    """An unused name in the same directory."""
    return final.with_name(f".{secrets.token_hex(8)}.partial")


def publish(temporary: Path, final: Path, *, replace: bool) -> None:
    """Give a flushed file its final name, durably.

    Args:
        replace: whether an existing file may be replaced; a link is replaced itself, not what it names.

    Raises:
        FileExistsError: there is something with that name, and `replace` is false.
        OSError
    """
    if replace:
        os.replace(temporary, final)
    else:
        try:
            os.link(temporary, final, follow_symlinks=False)  # unlike a rename, never replaces
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            os.close(create(final))  # no hard links here: take the name, then replace our own file
            os.replace(temporary, final)
        else:
            os.unlink(temporary)
    flush_directory(final.parent)


def write_durably(
    final: Path,
    content: bytes,
    *,
    temporary: Path | None = None,
    replace: bool = False,
    prepare: Callable[[Path], object] | None = None,
) -> None:
    """Write a small file, whole or not at all.

    Args:
        temporary: Where it is written first; by default an unused name beside it.
        replace: Whether an existing file may be replaced.
        prepare: Is called with the temporary file before that gets its final name, to set its mode and owner.

    Raises:
        FileExistsError: There is something with that name, and `replace` is false.
        OSError
    """
    temporary = temporary or temporary_beside(final)
    descriptor = create(temporary)
    try:
        try:
            write_all(descriptor, [content])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if prepare is not None:
            prepare(temporary)
        publish(temporary, final, replace=replace)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_directory(directory: Path) -> None:
    """Make renames, new files and removals in the directory durable (Windows does it without being asked).

    Raises OSError.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def state_directory() -> Path:
    """`$XDG_STATE_HOME/vadpipe`, else `~/.local/state/vadpipe` (XDG base directory specification).

    Raises:
        ConfigError: There is neither; e.g. in a container whose user has no HOME and no passwd entry.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():
        return Path(state) / "vadpipe"
    try:
        return Path.home() / ".local" / "state" / "vadpipe"
    except RuntimeError as exc:
        raise ConfigError(
            "There is no place for the state of vadpipe: this user has neither HOME nor a passwd entry.",
            remedy="Set XDG_STATE_HOME to a directory that is kept between runs, e.g. XDG_STATE_HOME=/var/lib.",
        ) from exc
