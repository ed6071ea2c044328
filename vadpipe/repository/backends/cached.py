"""Copies of immutable objects on a local disk, so that an index in S3 is read there and not over the network.

A copy is the object and a checksum of every 64 KiB of it, so that rot of the local disk is not taken for damage of
the repository: such a copy is fetched again. Whoever reads proves the content. Anybody may delete copies, or the
directory, at any time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import xxhash

from pipeline import GiB, KiB, MiB
from vadpipe.files import TEMPORARY, create, temporary_beside, write_all

from .contract import Backend, Damage, ObjectMissing, Parts, Stored, Upload, checked_name
from .local import DIRECTORY_MODE
from .local_files import open_regular, read_range
from .wrappers import Forwarding

log = logging.getLogger(__name__)

LIMIT: Final = 8 * GiB  # an index has 40 bytes for a chunk, and its frames: about 200 million chunks

_PIECE: Final = 8 * MiB  # fetched together
_CHECKED: Final = 64 * KiB
_SLASH: Final = "+"  # no name has one
_OLD_S: Final = 24 * 3600.0  # of a temporary file whose process must be dead


class Cached(Forwarding):
    """Reads objects with certain prefixes from whole copies in a directory.

    What is deleted or replaced by somebody else stays readable here until the copy goes: cache only what is never
    replaced, and what nobody reads after it was deleted.
    """

    def __init__(
        self,
        inner: Backend,
        directory: Path | str,
        prefixes: Iterable[str] = ("index/",),
        limit: int = LIMIT,
    ) -> None:
        """
        Args:
            directory: Is made when it is missing; of one repository alone.
            prefixes: The names of which objects begin like this.
            limit: Bytes of all copies. The copies that were not used for the longest time go first.
        """
        super().__init__(inner)
        self.directory = Path(directory)
        self._prefixes = tuple(prefixes)
        self._limit = limit
        self._turn = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._sizes: dict[str, int] = {}
        self._used: set[str] = set()
        self._failed: set[str] = set()  # no copy of these could be kept

    def put(self, name: str, parts: Parts) -> None:
        self.inner.put(name, parts)
        self.drop(name)

    def begin(self, name: str) -> Upload:
        self.drop(name)
        return self.inner.begin(name)

    def replace(self, name: str, parts: Parts) -> None:
        self.inner.replace(name, parts)
        self.drop(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if not checked_name(name).startswith(self._prefixes):
            return self.inner.read(name, offset, length)
        size = self._sizes.get(name)
        if size is None:
            size = self._sizes[name] = self.inner.size(name)
        if size > self._limit or name in self._failed:
            return self.inner.read(name, offset, length)
        try:
            for _ in range(2):
                descriptor = self._copy(name, size)
                try:
                    return _read(descriptor, size, offset, length)
                except Damage as damage:
                    log.info("the copy of %s in %s is fetched again: %s", name, self.directory, damage)
                    with suppress(OSError):
                        self._path(name).unlink()
                finally:
                    os.close(descriptor)
            raise OSError("what is written there is read back otherwise")
        except OSError as exc:
            self._failed.add(name)
            log.warning("no copy of %s can be kept in %s (%s); the store is read", name, self.directory, exc)
            return self.inner.read(name, offset, length)

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._remember(self.inner.list(prefix))

    def _remember(self, listing: Iterator[Stored]) -> Iterator[Stored]:
        for found in listing:
            if found.name.startswith(self._prefixes):
                self._sizes[found.name] = found.size
            yield found

    def delete(self, names: Iterable[str]) -> None:
        kept = tuple(names)
        self.inner.delete(kept)
        for name in kept:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Remove the copy of an object, e.g. because its content is damaged. The next read makes another one."""
        if checked_name(name).startswith(self._prefixes):
            self._sizes.pop(name, None)
            with suppress(OSError):
                self._path(name).unlink()

    def drop_all(self) -> None:
        """Remove the copies of all objects: what is read from now on is what is stored now."""
        self._sizes.clear()
        with suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                if _SLASH in entry.name and TEMPORARY.fullmatch(entry.name) is None:
                    with suppress(OSError):
                        os.unlink(entry.path)

    def _path(self, name: str) -> Path:
        return self.directory / name.replace("/", _SLASH)

    def _copy(self, name: str, size: int) -> int:
        """A descriptor of a copy that has the right size. Raises OSError, and what reading the store raises."""
        descriptor = self._opened(name, size)
        if descriptor is None:
            with self._turn:
                fetching = self._fetching.setdefault(name, threading.Lock())
            with fetching:
                descriptor = self._opened(name, size)
                if descriptor is None:
                    descriptor = self._fetch(name, size)
        return descriptor

    def _opened(self, name: str, size: int) -> int | None:
        path = self._path(name)
        try:
            descriptor, found = open_regular(path)
        except (ObjectMissing, Damage):
            return None
        if found != _size_of_copy(size):
            os.close(descriptor)
            return None
        if name not in self._used:
            self._used.add(name)
            with suppress(OSError):
                os.utime(descriptor)
        return descriptor

    def _fetch(self, name: str, size: int) -> int:
        path = self._path(name)
        self.directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        descriptor = create(temporary)
        try:
            checks = []
            for offset in range(0, size, _PIECE):
                piece = memoryview(self.inner.read(name, offset, _PIECE))
                write_all(descriptor, [piece])
                checks += [_check(piece[low : low + _CHECKED]) for low in range(0, len(piece), _CHECKED)]
            write_all(descriptor, [b"".join(checks)])
            if os.fstat(descriptor).st_size != _size_of_copy(size):
                raise OSError("the object has another size than before")
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        with suppress(OSError):
            self._make_room(path)
        return descriptor

    def _make_room(self, kept: Path) -> None:
        """Remove the copies that were not used for the longest time, until the rest is below the limit."""
        copies = []
        now = time.time()
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if TEMPORARY.fullmatch(entry.name) is None:
                        copies.append((status.st_mtime, status.st_size, entry.path))
                    elif now - status.st_mtime > _OLD_S:
                        os.unlink(entry.path)
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self._limit:
                return
            if path != str(kept):
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size


def drop_copies(backend: Backend) -> None:
    """Remove the copies that this backend keeps, if it does: for whoever is to find damage in the store."""
    inner: Backend | None = backend
    while inner is not None:
        if isinstance(inner, Cached):
            inner.drop_all()
        inner = getattr(inner, "inner", None)


def _size_of_copy(size: int) -> int:
    return size + 8 * -(-size // _CHECKED)


def _check(piece: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_digest(piece)


def _read(descriptor: int, size: int, offset: int, length: int | None) -> bytes:
    """A range of the object, of a copy. Raises Damage where a checksum is wrong, OSError."""
    end = size if length is None else min(offset + length, size)
    if offset >= end:
        return b""
    low, high = offset // _CHECKED, -(-end // _CHECKED)
    whole = _size_of_copy(size)
    begin = low * _CHECKED
    content = read_range(descriptor, whole, begin, min(high * _CHECKED, size) - begin)
    checks = read_range(descriptor, whole, size + 8 * low, 8 * (high - low))
    pieces = memoryview(content)
    if any(
        _check(pieces[at * _CHECKED : (at + 1) * _CHECKED]) != checks[8 * at : 8 * at + 8]
        for at in range(high - low)
    ):
        raise Damage("its checksum is wrong")
    return content[offset - begin : end - begin]
