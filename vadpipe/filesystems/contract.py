"""What a reader of a file system gives: entries of directories, and the contents of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from pipeline.errors import ConfigError, SourceError


class Kind(Enum):
    """What an entry of a directory is. SPECIAL: a device, a pipe or a socket."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"


@dataclass(frozen=True)
class Stream:
    """A further stream of data of a file, as NTFS has them. Bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Entry:
    """An entry of a directory.

    `size` is in bytes, `modified_ns` since 1970 in UTC; None: not known. `mode`: permissions, where the file
    system has such. `identity` is equal for names of one file. `unreadable`: why its content cannot be read; empty:
    it can. `node` belongs to the reader.
    """

    name: str
    kind: Kind
    size: int
    modified_ns: int | None
    mode: int | None
    identity: object
    streams: Sequence[Stream] = ()
    unreadable: str = ""
    node: object = field(default=None, repr=False, compare=False)


class Content(Protocol):
    """The bytes of a file or of a stream."""

    @property
    def size(self) -> int: ...
    def extents(self) -> Sequence[tuple[int, int]]:
        """Offset and length of what is not known to be zero, ascending."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The range, which lies inside the file. Raises MoverError."""
        ...


class FileSystem(Protocol):
    """A file system, read-only. The methods block, are for one thread at a time, and raise MoverError.

    `reader`: which library reads it. `notes`: what people should know before they trust what they see.
    """

    @property
    def label(self) -> str: ...
    @property
    def reader(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def root(self) -> Entry: ...
    def entries(self, directory: Entry) -> Sequence[Entry]:
        """What is in a directory, without `.` and `..`."""
        ...

    def find(self, directory: Entry, name: str) -> Entry | None:
        """The entry of that name, as the file system compares names."""
        ...

    def open(self, entry: Entry, stream: str = "") -> Content:
        """The content of a file, or one of its streams."""
        ...

    def link(self, entry: Entry) -> str:
        """Where a symbolic link leads, with slashes."""
        ...


class Unreadable(SourceError):
    """A volume, a directory or a file of a point cannot be read as what it is."""


class NotThere(ConfigError):
    """A path leads to nothing."""


_MOST_LINKS: Final = 40  # as Linux has it (MAXSYMLINKS)


def resolve(files: FileSystem, path: str) -> Entry:
    """The entry that a path leads to. Links are followed inside the volume, the last one too.

    Raises:
        NotThere: There is none.
        Unreadable: Links lead in a circle, or what is on the way cannot be read.
    """
    left = [part for part in path.split("/") if part not in ("", ".")]
    way = [files.root()]
    links = 0
    while left:
        name = left.pop(0)
        if name == "..":
            way = way[:-1] or way
            continue
        if way[-1].kind is not Kind.DIRECTORY:
            raise NotThere(f"{path} leads through {way[-1].name}, which is no directory.")
        found = files.find(way[-1], name)
        if found is None:
            raise NotThere(
                f"There is no {path} on the volume.", remedy="`vadpipe files ... list` shows what is."
            )
        if found.kind is Kind.LINK:
            links += 1
            if links > _MOST_LINKS:
                raise Unreadable(f"{path} leads through more than {_MOST_LINKS} symbolic links.")
            target = files.link(found)
            if target.startswith("/"):
                way = way[:1]
            left = [*(part for part in target.split("/") if part not in ("", ".")), *left]
            continue
        way.append(found)
    return way[-1]
