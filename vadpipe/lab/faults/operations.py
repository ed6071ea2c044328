"""File operations as they were recorded, and the states that a crash of the machine may leave.

The model is that of POSIX, harsher than any one file system: what was not flushed may be there, may be missing, or
may be there in part, each operation by itself. What a process wrote is certain once `fsync` of the file returned; a
name that was made, moved or removed is certain once `fsync` of its directory returned. A write may be torn at any
byte, and a hole that a lost write leaves reads as zeros.
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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

    def write(self, root: Path, shared: SharedFiles | None = None) -> None:
        """Make the state in the empty directory `root`.

        Args:
            shared: Links files to these copies where it can: for programs that change no file in place.
        """
        for directory in self.directories:
            os.mkdir(f"{root}/{directory}", mode=0o700)
        for path, content in self.files.items():
            copy = None if shared is None else shared.copy_of(content)
            if copy is None:
                Path(f"{root}/{path}").write_bytes(content)
            else:
                os.link(copy, f"{root}/{path}")

    def key(self) -> int:
        """Equal for equal states of one process."""
        return hash((self.directories, tuple(self.files.items())))

    @classmethod
    def of(cls, root: Path) -> State:
        """What is in a directory now."""
        paths = sorted(root.rglob("*"))
        return cls(
            tuple(str(path.relative_to(root)) for path in paths if path.is_dir()),
            {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()},
        )


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
        self._settled = dict(self._settled_from())

    def _settled_from(self) -> Iterator[tuple[int, tuple[float, bytes]]]:
        """For each file the moment from which on its content is certain, and that content."""
        contents: dict[int, bytearray] = {}
        moments: dict[int, float] = {}
        for place, operation in enumerate(self.operations):
            match operation.kind:
                case "c":
                    contents[operation.file], moments[operation.file] = bytearray(), place + 1
                case "w" | "t":
                    _apply(contents[operation.file], operation)
                    moments[operation.file] = max(
                        moments[operation.file], place + 1, self._certain[place] + 1
                    )
        for file, content in contents.items():
            yield file, (moments[file], bytes(content))

    @property
    def settled(self) -> list[bytes]:
        """The contents that files have at last; a state has these very objects."""
        return [content for _, content in self._settled.values()]

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
        contents: dict[int, bytes | bytearray] = {}
        for place, operation in enumerate(self.operations[:moment]):
            if operation.kind in (WRITE, TRUNCATE):
                content = contents[operation.file]
                if isinstance(content, bytearray) and (kept := keep(place, operation)):
                    _apply(content, kept)
                continue
            kept = keep(place, operation)
            file = truth.get(operation.path, operation.file)
            match operation.kind:
                case "c":
                    truth[operation.path] = operation.file
                    settled, content = self._settled[operation.file]
                    contents[operation.file] = content if settled <= moment else bytearray()
                    if kept:
                        names[operation.path] = operation.file
                case "m":
                    truth[operation.path] = _DIRECTORY
                    if kept:
                        names[operation.path] = _DIRECTORY
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


class SharedFiles:
    """Copies of the contents that files have at last, in a directory; each is written when it is needed first."""

    def __init__(self, record: Record, directory: Path) -> None:
        self._known = {id(content) for content in record.settled}
        self._directory = directory
        self._written: dict[int, Path] = {}

    def copy_of(self, content: bytes) -> Path | None:
        """The copy of a content; None for one that is of one state only."""
        key = id(content)
        if key not in self._known:
            return None
        if key not in self._written:
            copy = self._directory / str(len(self._written))
            copy.write_bytes(content)
            self._written[key] = copy
        return self._written[key]


def _apply(content: bytearray, operation: Operation) -> None:
    """A write or a change of the size."""
    if operation.kind == TRUNCATE:
        content[:] = content[: operation.offset].ljust(operation.offset, b"\0")
        return
    end = operation.offset + len(operation.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[operation.offset : end] = operation.data


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _reachable(names: dict[str, int], contents: Mapping[int, bytes | bytearray]) -> State:
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
