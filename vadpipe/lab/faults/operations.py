"""File operations as they were recorded, and the states that a crash of the machine may leave.

The model is that of POSIX, harsher than any one file system: what was not flushed may be there, may be missing, or
may be there in part, each operation by itself. What a process wrote is certain once `fsync` of the file returned; a
name that was made, moved or removed is certain once `fsync` of its directory returned. A write may be torn at any
byte, and a hole that a lost write leaves reads as zeros.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

_HEAD: Final = struct.Struct("=cQQIII")

CREATE, WRITE, TRUNCATE, FLUSH, RENAME, UNLINK, MKDIR, RMDIR, LINK, MARK = "cwtfrumdl!"

_DIRECTORY: Final = -1


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operation.

    `file` is a number that no other file of the record has; `offset` is in bytes, and for TRUNCATE the new size.
    Paths are relative to the recorded directory; `second` is the new name of RENAME and LINK.
    """

    kind: str
    file: int
    offset: int
    path: str
    second: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class State:
    """Directories, and files with their content, by path."""

    directories: tuple[str, ...]
    files: dict[str, bytes]

    def write(self, root: Path) -> None:
        """Make the state in the empty directory `root`."""
        for directory in self.directories:
            (root / directory).mkdir(mode=0o700)
        for path, content in self.files.items():
            (root / path).write_bytes(content)

    def key(self) -> int:
        """Equal for equal states of one process."""
        return hash((self.directories, tuple(self.files.items())))


def read_log(path: Path) -> list[Operation]:
    """The operations that recorder.c wrote. Numbers of files are made distinct: the kernel gives an inode's number
    to another file once the first is gone."""
    content = path.read_bytes()
    found: list[Operation] = []
    number: dict[int, int] = {}
    place = 0
    while place < len(content):
        kind, inode, offset, *lengths = _HEAD.unpack_from(content, place)
        place += _HEAD.size
        parts = []
        for length in lengths:
            parts.append(content[place : place + length])
            place += length
        name = kind.decode()
        if name == CREATE:
            number[inode] = len(found)
        file = number.get(inode, int(inode))
        found.append(Operation(name, file, offset, parts[0].decode(), parts[1].decode(), parts[2]))
    return found


class Record:
    """A record from an empty directory on, and what a crash may leave at each of its moments."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self._certain = list(self._certain_from())

    def _certain_from(self) -> Iterator[float]:
        """For each operation the place of the flush that makes it certain; infinity where none does."""
        flushed: dict[int | str, int] = {}
        certain = [math.inf] * len(self.operations)
        for place in range(len(self.operations) - 1, -1, -1):
            operation = self.operations[place]
            match operation.kind:
                case "f":
                    flushed[operation.file] = flushed[f"/{operation.path}"] = place
                case "w" | "t":
                    certain[place] = flushed.get(operation.file, math.inf)
                case _:
                    parents = [_parent(name) for name in (operation.path, operation.second) if name]
                    certain[place] = min(flushed.get(f"/{parent}", math.inf) for parent in parents or ["."])
        return iter(certain)

    def marks_before(self, moment: int) -> list[str]:
        """What the recorded program said before operation number `moment`."""
        return [operation.path for operation in self.operations[:moment] if operation.kind == MARK]

    def everything(self, moment: int) -> State:
        """The state when the process died before operation `moment`, and the machine did not."""
        return self._built(moment, lambda place, operation: operation)

    def certain(self, moment: int) -> State:
        """The state when nothing survived but what had to."""
        return self._built(
            moment, lambda place, operation: operation if self._certain[place] < moment else None
        )

    def drawn(self, moment: int, draw: random.Random) -> State:
        """One of the states in between. Half of them lose names only from some moment on, as a journal does."""
        last_name = draw.randrange(moment + 1) if draw.random() < 0.5 else None
        share = draw.random()

        def keep(place: int, operation: Operation) -> Operation | None:
            if self._certain[place] < moment:
                return operation
            if operation.kind in (WRITE, TRUNCATE):
                if draw.random() < share:
                    return operation
                if operation.data and draw.random() < 0.5:
                    return replace(operation, data=operation.data[: draw.randrange(len(operation.data))])
                return None
            kept = draw.random() < share if last_name is None else place < last_name
            return operation if kept else None

        return self._built(moment, keep)

    def _built(self, moment: int, keep: Callable[[int, Operation], Operation | None]) -> State:
        truth: dict[str, int] = {}  # the names as they were, to know which file a name meant
        names: dict[str, int] = {}  # the names as the crash leaves them
        contents: dict[int, bytearray] = {}
        for place, operation in enumerate(self.operations[:moment]):
            kept = keep(place, operation)
            file = truth.get(operation.path, operation.file)
            match operation.kind:
                case "c":
                    truth[operation.path] = operation.file
                    contents[operation.file] = bytearray()
                    if kept:
                        names[operation.path] = operation.file
                case "m":
                    truth[operation.path] = _DIRECTORY
                    if kept:
                        names[operation.path] = _DIRECTORY
                case "w" if kept:
                    _write(contents[operation.file], kept)
                case "t" if kept:
                    size = operation.offset
                    content = contents[operation.file]
                    content[:] = content[:size].ljust(size, b"\0")
                case "r":
                    truth[operation.second] = truth.pop(operation.path)
                    if kept:
                        if names.get(operation.path) == file:
                            del names[operation.path]
                        names[operation.second] = file
                case "l":
                    truth[operation.second] = file
                    if kept:
                        names[operation.second] = file
                case "u" | "d":
                    del truth[operation.path]
                    if kept and names.get(operation.path) == file:
                        del names[operation.path]
        return _reachable(names, contents)


def _write(content: bytearray, operation: Operation) -> None:
    end = operation.offset + len(operation.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[operation.offset : end] = operation.data


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _reachable(names: dict[str, int], contents: dict[int, bytearray]) -> State:
    directories: set[str] = set()
    for path in sorted(path for path, file in names.items() if file == _DIRECTORY):
        if _parent(path) in directories or not _parent(path):
            directories.add(path)
    files = {
        path: bytes(contents[file])
        for path, file in sorted(names.items())
        if file != _DIRECTORY and (not _parent(path) or _parent(path) in directories)
    }
    return State(tuple(sorted(directories)), files)
