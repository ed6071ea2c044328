"""A directory as a backend: the name of an object is its path.

An object is written into `tmp/`, flushed, and linked to its name, which fails when the name is taken. The writer
holds a lock (`flock`) on the temporary file, and the kernel lets go of it when the process dies. So a temporary
file whose lock can be taken was left by a dead writer, and `sweep` removes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

from pipeline import SinkError
from vadpipe.files import create, flush_directory, publish, write_all

from .contract import Damage, ObjectExists, Parts, Stored, checked_name, checked_prefix, having_names
from .local_files import open_regular, read_range, sink_error, sink_errors, take_name, unreadable, what_it_is

log = logging.getLogger(__name__)

DIRECTORY_MODE: Final = 0o700
FOREIGN_AGE_S: Final = (
    7 * 24 * 3600.0
)  # the same patience as for the runs of other hosts (docs/repository.md)

_TMP: Final = "tmp"
_TEMPORARY: Final = re.compile("[0-9a-f]{32}")  # whatever else lies there is not ours

_Entries = Sequence[os.DirEntry[str]]
_name_of: Final[Callable[[os.DirEntry[str]], str]] = attrgetter("name")

# What flock says where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LocalBackend:
    """Objects as files below the directory `root`, which is made with the first object. No I/O in constructing."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._turn = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._durable: set[Path] = set()

    def __repr__(self) -> str:
        return f"LocalBackend({str(self.root)!r})"

    def put(self, name: str, parts: Parts) -> None:
        self._write(name, parts, replace=False)

    def begin(self, name: str) -> LocalUpload:
        return LocalUpload(self, checked_name(name))

    def replace(self, name: str, parts: Parts) -> None:
        self._write(name, parts, replace=True)

    def _write(self, name: str, parts: Parts, *, replace: bool) -> None:
        upload = LocalUpload(self, checked_name(name), replace=replace)
        try:
            upload.write(parts)
            upload.finish()
        finally:
            upload.abort()

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = f"{self.root}/{checked_name(name)}"  # joining a Path took a third of a small read
        descriptor, size = open_regular(path)
        try:
            return read_range(descriptor, size, offset, length)
        except OSError as exc:
            raise unreadable(path, exc) from exc
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        path = self._path(name)
        try:
            found = os.lstat(path)
        except OSError as exc:
            raise unreadable(path, exc) from exc
        if not stat.S_ISREG(found.st_mode):
            raise Damage(what_it_is(found.st_mode))
        return found.st_size

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._stored(self._below(*_begin_of(prefix)))

    def names(self, prefix: str) -> Sequence[str]:
        directory, start = _begin_of(prefix)
        flat = self._files(directory, start)
        if flat is not None:
            return [directory + name for name in having_names(directory, flat)]
        found = self._below(directory, start)
        return [f"{below}{entry.name}" for below, entries in found for entry in entries]

    def _files(self, directory: str, start: str) -> Sequence[str] | None:
        """The names in a directory that begin with `start`, ascending; None where some are directories, or there is
        an error to be told. The points of a VM are thousands of names: nothing is kept of an entry but its name."""
        names: list[str] = []
        if directory.partition("/")[0] == _TMP:
            return names
        try:
            with os.scandir(self.root / directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        return None
                    names.append(entry.name)
        except OSError:
            return None
        names.sort()
        return [name for name in names if name.startswith(start)] if start else names

    def _stored(self, found: Iterator[tuple[str, _Entries]]) -> Iterator[Stored]:
        for directory, entries in found:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    raise sink_error(self.root / directory / entry.name, "list", exc) from exc
                yield Stored(f"{directory}{entry.name}", status.st_size, status.st_mtime)

    def _below(self, directory: str, start: str) -> Iterator[tuple[str, _Entries]]:
        """The objects of a directory whose names there begin with `start`: directories with entries, ascending.

        What is no object, e.g. a link, is listed too: whoever reads it is told so, and nothing vanishes silently.
        """
        if directory.partition("/")[0] == _TMP:
            return
        path = self.root / directory
        try:
            with os.scandir(path) as entries:
                found = (
                    [entry for entry in entries if entry.name.startswith(start)] if start else list(entries)
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise sink_error(path, "list", exc) from exc
        names = list(map(_name_of, found))
        if (allowed := having_names(directory, names)) is not names:
            kept = set(allowed)  # not `lost+found`, `tmp`, nor what somebody else keeps there
            found = [entry for entry in found if entry.name in kept]
        directories = {entry.name for entry in found if entry.is_dir(follow_symlinks=False)}
        if not directories:
            yield directory, sorted(found, key=_name_of)
            return
        found.sort(key=lambda entry: entry.name + "/" * (entry.name in directories))
        for is_directory, run in groupby(found, lambda entry: entry.name in directories):
            if is_directory:
                for entry in run:
                    yield from self._below(f"{directory}{entry.name}/", "")
            else:
                yield directory, list(run)

    def delete(self, names: Iterable[str]) -> None:
        parents: set[Path] = set()
        path = self.root
        try:
            for name in names:
                path = self._path(name)
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                    parents.add(path.parent)
        except OSError as exc:
            raise sink_error(path, "remove", exc) from exc
        finally:
            for parent in parents:
                with sink_errors(parent, "flush"), suppress(FileNotFoundError):
                    flush_directory(parent)

    def place(self, name: str = "") -> str:
        return str(self.root / name)

    def close(self) -> None:
        """Nothing is kept open."""

    def check_writable(self) -> None:
        """Make and remove a temporary file. Raises SinkError."""
        with sink_errors(self.root, "write to"):
            self._time()

    def sweep(self, foreign_age_s: float = FOREIGN_AGE_S) -> Sequence[str]:
        """Remove the temporary files of dead writers.

        Args:
            foreign_age_s: Where locks are not shared between hosts, a file is removed when nobody wrote to it for
                so long, in seconds by the clock of the file system.

        Returns:
            The names of the removed files, ascending.

        Raises:
            SinkError
        """
        directory = self.root / _TMP
        removed: list[str] = []
        with sink_errors(directory, "sweep"):
            try:
                names = sorted(filter(_TEMPORARY.fullmatch, os.listdir(directory)))
            except FileNotFoundError:
                return removed
            if not names:
                return removed
            private = local_locks(self.root) is not None
            now = self._time() if private else 0.0
            older = now - foreign_age_s if private else None
            removed.extend(name for name in names if _remove_if_dead(directory / name, older))
            if removed:
                flush_directory(directory)
                log.info("removed %d temporary files of dead writers from %s", len(removed), directory)
        return removed

    def _time(self) -> float:
        """Now, by the clock of the file system."""
        path, descriptor = self.temporary()
        try:
            return os.fstat(descriptor).st_mtime
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def temporary(self) -> tuple[Path, int]:
        """A locked temporary file and its descriptor. Raises OSError, SinkError."""
        directory = self.root / _TMP
        self.make_directory(directory)
        while True:
            path = directory / secrets.token_hex(16)
            try:
                descriptor = create(path)
            except FileNotFoundError:
                self.make_directory(directory, again=True)
                descriptor = create(path)
            try:
                if _lock(descriptor) is not False and _is_at(descriptor, path):
                    return path, descriptor
            except BaseException:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            os.close(descriptor)  # a sweep found it before it was locked, and removes it

    def make_directory(self, directory: Path, *, again: bool = False) -> None:
        """Make a directory below the root, or the root, durable. Another writer may make it at the same time.

        One that is there is flushed too: whoever made it may not have done that yet.

        Args:
            again: Somebody removed it since.

        Raises:
            OSError
            SinkError: The root is another directory than before, e.g. because its file system was unmounted.
        """
        if directory in self._durable and not again:
            return
        with self._turn:
            if self._identity is None:
                self._make_root()
                self._identity = _identity(self.root)
            elif _identity(self.root) != self._identity:
                raise SinkError(
                    f"{self.root} is not the directory any more that it was.",
                    remedy="Check that its file system is mounted, then run again. Nothing was published.",
                    path=str(self.root),
                )
            missing = [
                parent for parent in (directory, *directory.parents) if parent.is_relative_to(self.root)
            ]
            for parent in reversed(missing):
                if parent != self.root and (again or parent not in self._durable):
                    parent.mkdir(DIRECTORY_MODE, exist_ok=True)
                    flush_directory(parent.parent)
                self._durable.add(parent)

    def _make_root(self) -> None:
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(DIRECTORY_MODE, exist_ok=True)
            flush_directory(path.parent)

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)


class LocalUpload:
    """An object of a LocalBackend in the making: a locked file in `tmp/`."""

    def __init__(self, backend: LocalBackend, name: str, *, replace: bool = False) -> None:
        """Raises SinkError."""
        self._backend = backend
        self._final = backend.root / name
        self._replace = replace
        self._descriptor = -1
        with sink_errors(self._final, "write"):
            self._temporary, self._descriptor = backend.temporary()

    def write(self, parts: Parts) -> None:
        with sink_errors(self._final, "write"):
            write_all(self._descriptor, parts)

    def finish(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as exc:
            error = sink_error(self._final, "write", exc)
            error.transient = (
                False  # the kernel may have dropped what it could not write: flushed again, it says yes
            )
            raise error from exc
        with sink_errors(self._final, "write"):
            self._backend.make_directory(self._final.parent)
            try:
                self._publish()
            except FileNotFoundError:
                self._backend.make_directory(self._final.parent, again=True)
                self._publish()
            self._close()

    def _publish(self) -> None:
        try:
            if self._replace:
                publish(self._temporary, self._final, replace=True)
            else:
                take_name(self._temporary, self._final)
        except FileExistsError as exc:
            raise ObjectExists(str(self._final)) from exc

    def abort(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):  # what stays is swept
                self._temporary.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _begin_of(prefix: str) -> tuple[str, str]:
    """The directory that a prefix names, with its slash, and how the names there begin."""
    directory, slash, start = checked_prefix(prefix).rpartition("/")
    return directory + slash, start


def local_locks(root: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The mount option because of which locks on `root` are not shared between hosts, if there is one."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
        place = root.resolve()
    except OSError:
        return None
    over = [line for line in lines if len(line) > 3 and place.is_relative_to(_unescaped(line[1]))]
    if not over:
        return None
    _, _, kind, options, *_ = max(over, key=lambda line: len(line[1]))
    private = {"nolock", "local_lock=all", "local_lock=flock", "nobrl"}
    found = private.intersection(options.split(",")) if kind.startswith(("nfs", "cifs", "smb")) else set()
    return min(found, default=None)


def _unescaped(name: str) -> str:
    """A path as /proc/mounts writes it."""
    return name.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _remove_if_dead(path: Path, older: float | None) -> bool:
    """Remove a temporary file, unless its writer may live.

    Args:
        older: Locks prove nothing here; what was written to before this time is removed. None: locks are proof.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False  # its writer ended, or another sweep was faster
    except OSError as exc:
        log.warning("%s was left in place: %s. Remove it, when nobody writes to it", path, exc.strerror)
        return False
    try:
        locked = _lock(descriptor)
        if locked is False or not _is_at(descriptor, path):
            return False
        if locked is None and older is None:
            log.warning("%s was left in place: its file system has no locks", path)
            return False
        if older is not None and os.fstat(descriptor).st_mtime >= older:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Take the lock of a file; false: somebody holds it. None: there are no locks on its file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one with this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _identity(directory: Path) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_dev, status.st_ino
