"""A directory that takes what comes out of a file system: names, links and times that nobody has checked.

Everything is made relative to descriptors of directories, and no link is followed on the way; so nothing is written
outside. A file is written under a temporary name, and gets its own when it is whole.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Final

from pipeline.errors import SinkError
from pipeline.units import KiB, MiB
from vadpipe.files import FILE_MODE, write_at

from .contract import Content, Entry

log = logging.getLogger(__name__)

_LONGEST: Final = 255  # bytes of a name (NAME_MAX of Linux)
_PIECE: Final = MiB
_HOLE: Final = 4 * KiB  # zeros of so many bytes are left out
_ZEROS: Final = bytes(_HOLE)
_DIRECTORY_MODE: Final = 0o700
_PERMISSIONS: Final = 0o777  # no set-user-id: who restores a file is not who installed it


def safe_name(name: str) -> bytes:
    """A name of a guest as one of this system: never a path, `.` or `..`, and at most 255 bytes long.

    What cannot stand in a name is percent-encoded; what is too long ends in its digest.
    """
    raw = encoded(name).replace(b"/", b"%2F").replace(b"\0", b"%00") or b"%"
    if raw in (b".", b".."):
        raw = raw.replace(b".", b"%2E")
    if len(raw) > _LONGEST:
        digest = blake2b(raw, digest_size=8).hexdigest().encode()
        raw = raw[: _LONGEST - 17].decode("utf-8", "ignore").encode() + b"~" + digest
    return raw


def encoded(name: str) -> bytes:
    """The bytes of a name. Lone surrogates stand for bytes that are no UTF-8, or else are of UTF-16."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


class Directory:
    """An open directory of the target.

    Args:
        descriptor: Is closed with it.
        path: For messages.
        force: Files that are there already may be replaced.
    """

    def __init__(self, descriptor: int, path: Path, *, force: bool) -> None:
        self._descriptor, self.path, self._force = descriptor, path, force
        self._mine: set[bytes] = set()  # names that were made here
        self._files: set[tuple[int, int]] = set()  # what they name

    @classmethod
    def open(cls, path: Path, *, force: bool) -> Directory:
        """The directory that the user names; links to it are followed. Raises SinkError."""
        with _told(path):
            return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path, force=force)

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def directory(self, name: bytes) -> tuple[Directory, bytes]:
        """Make a directory, or with `force` open the one that is there. Returns its name too. Raises SinkError."""
        path, each = self._path(name), name
        with _told(path):
            for each in self._free_names(name):
                with suppress(FileExistsError):
                    os.mkdir(each, _DIRECTORY_MODE, dir_fd=self._descriptor)
                    self._note(each)
                    break
                if self._is_mine(each):
                    continue
                if not self._force:
                    raise exists(path)
                self._note(each)
                break
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(each, flags, dir_fd=self._descriptor)
            return Directory(descriptor, self._path(each), force=self._force), each

    def file(self, name: bytes, content: Content, entry: Entry, check: Callable[[int], None]) -> bytes:
        """Write a file, whole or not at all; its holes stay holes.

        Args:
            name: As `safe_name` has it.
            content: Its bytes.
            entry: Its times and permissions.
            check: Is called with the number of bytes after each piece, and may raise.

        Returns:
            The name that it got: another one where the target takes this name for one that it has already.

        Raises:
            SinkError: It cannot be written, or is there already.
            MoverError: As `content` raises it.
        """
        path = self._path(name)
        temporary = f".{secrets.token_hex(8)}.partial".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _told(path):
            descriptor = os.open(temporary, flags, FILE_MODE, dir_fd=self._descriptor)
        try:
            try:
                _write(descriptor, path, content, check)
                with _told(path):
                    if entry.mode is not None:
                        os.fchmod(descriptor, entry.mode & _PERMISSIONS)
                    if entry.modified_ns is not None:
                        _set_time(descriptor, entry.modified_ns)
            finally:
                os.close(descriptor)
            return self._publish(temporary, name)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._descriptor)
            raise

    def link(self, name: bytes, target: str, modified_ns: int | None) -> bytes:
        """Make a symbolic link. Returns the name that it got. Raises SinkError."""
        path = self._path(name)
        temporary = f".{secrets.token_hex(8)}.partial".encode()
        with _told(path):
            raw = encoded(target)
            if not raw or b"\0" in raw:
                raise SinkError(f"{path} cannot be made: a link to {target!r}.")
            os.symlink(raw, temporary, dir_fd=self._descriptor)
            try:
                if modified_ns is not None:
                    times = (modified_ns, modified_ns)
                    os.utime(temporary, ns=times, dir_fd=self._descriptor, follow_symlinks=False)
                return self._publish(temporary, name)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._descriptor)
                raise

    def finish(self, entry: Entry) -> None:
        """Set the time and permissions of the directory itself, when all is in it. Raises SinkError."""
        with _told(self.path):
            if entry.mode is not None:
                os.fchmod(self._descriptor, entry.mode & _PERMISSIONS)
            if entry.modified_ns is not None:
                _set_time(self._descriptor, entry.modified_ns)

    def _publish(self, temporary: bytes, name: bytes) -> bytes:
        """Give a file its name. With `force`, files and links that were there before are replaced."""
        here = self._descriptor
        with _told(self._path(name)):
            for each in self._free_names(name):
                if self._is_mine(each):
                    continue
                if self._force:
                    os.rename(temporary, each, src_dir_fd=here, dst_dir_fd=here)
                else:
                    try:
                        os.link(temporary, each, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
                        os.unlink(temporary, dir_fd=here)
                    except FileExistsError:
                        raise exists(self._path(name)) from None
                    except OSError as exc:
                        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                            raise
                        # No hard links here: the name was free a moment ago, and the directory is ours.
                        if _there(each, here):
                            raise exists(self._path(name)) from None
                        os.rename(temporary, each, src_dir_fd=here, dst_dir_fd=here)
                self._note(each)
                return each
        raise AssertionError

    def _free_names(self, name: bytes) -> Iterator[bytes]:
        """The name, and others for the case that the target does not tell it from one that was made before."""
        yield name
        for number in range(1, 1000):
            ending = b"~%d" % number
            yield name[: _LONGEST - len(ending)] + ending
        raise SinkError(f"{self._path(name)} has too many namesakes.")

    def _is_mine(self, name: bytes) -> bool:
        """Whether this name stands for something that was made here, perhaps by a name in other letters."""
        if name in self._mine:
            return True
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) in self._files

    def _note(self, name: bytes) -> None:
        found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        self._mine.add(name)
        self._files.add((found.st_dev, found.st_ino))

    def _path(self, name: bytes) -> Path:
        return self.path / os.fsdecode(name)


def _write(descriptor: int, path: Path, content: Content, check: Callable[[int], None]) -> None:
    for start, length in content.extents():
        end = min(start + length, content.size)
        for offset in range(start, end, _PIECE):
            piece = content.read(offset, min(_PIECE, end - offset))
            with _told(path):
                _write_data(descriptor, piece, offset)
            check(len(piece))
    with _told(path):
        os.ftruncate(descriptor, content.size)


def _write_data(descriptor: int, piece: bytes, offset: int) -> None:
    """Write what is not zero, in blocks that lie side by side."""
    if piece.count(0) < _HOLE:  # no block of zeros can be in it
        write_at(descriptor, piece, offset)
        return
    start = None
    for at in range(0, len(piece), _HOLE):
        block = piece[at : at + _HOLE]
        is_zero = block == _ZEROS[: len(block)]
        if start is None and not is_zero:
            start = at
        elif start is not None and is_zero:
            write_at(descriptor, piece[start:at], offset + start)
            start = None
    if start is not None:
        write_at(descriptor, piece[start:], offset + start)


def _set_time(descriptor: int, modified_ns: int) -> None:
    """Set the time; one that the target cannot hold is left out."""
    try:
        os.utime(descriptor, ns=(modified_ns, modified_ns))
    except (OverflowError, OSError) as exc:
        log.info("A time of %d ns cannot be set: %s", modified_ns, exc)


def _there(name: bytes, directory: int) -> bool:
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode) != 0
    except FileNotFoundError:
        return False


def exists(path: Path) -> SinkError:
    """The error for what is there already."""
    return SinkError(
        f"{path} exists already.",
        remedy="Choose another target, or replace files with --force.",
        path=str(path),
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the system as SinkError."""
    try:
        yield
    except OSError as exc:
        raise SinkError(f"{path} cannot be written: {exc.strerror}.", path=str(path)) from exc
