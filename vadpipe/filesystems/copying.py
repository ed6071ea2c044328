"""A file or a tree of a file system into a directory of the target."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.errors import MoverError, SinkError

from .contract import Entry, FileSystem, Kind, Unreadable
from .target import Directory, encoded, exists, safe_name

_DEEPEST: Final = 200  # directories inside one another; each takes a descriptor, and frames of Python


@dataclass
class Copied:
    """What was written. `size`: bytes of files, holes among them; `data`: bytes that were read for them.

    The lists are pairs of a path in the volume and a text. `renamed`: the other name. `skipped`: devices, pipes and
    sockets. `failed`: why something is not there. `leading_out`: links that lead out of what was copied.
    """

    target: Path
    files: int = 0
    directories: int = 0
    links: int = 0
    streams: int = 0
    size: int = 0
    data: int = 0
    renamed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    leading_out: int = 0


def copy(
    files: FileSystem,
    entry: Entry,
    path: str,
    target: Path,
    *,
    force: bool = False,
    streams: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Copied:
    """Write a file, a link or a tree to `target`, or into it where it is a directory. Blocks.

    What cannot be read is told in the result, and the rest is written. What cannot be written ends it.

    Args:
        files: The file system.
        entry: What is copied.
        path: Its path in the volume.
        target: Where to: the new name, or a directory that takes it under its own name.
        force: Files that are there may be replaced; directories take what is new.
        streams: Write the streams of a file beside it, as `name:stream`.
        check: Is called between pieces, and may raise.

    Raises:
        SinkError: The target cannot be written, or is there already.
    """
    if target.is_dir():
        place, name = target, safe_name(PurePosixPath(path).name or files.label or "volume")
    else:
        place, name = target.parent, safe_name(target.name)
    if not place.is_dir():
        raise SinkError(f"{place} is no directory.", remedy="Make it, or name another target.")
    if not force and os.path.lexists(place / os.fsdecode(name)):
        raise exists(place / os.fsdecode(name))  # before anything is read
    work = _Copy(files, Copied(target), streams, check, path)
    with Directory.open(place, force=force) as directory:
        made = work.entry(directory, entry, name, PurePosixPath(path), ())
    work.copied.target = place / (made or name).decode("utf-8", "surrogateescape")
    return work.copied


class _Copy:
    """One copy. `top`: the path of what is copied."""

    def __init__(
        self, files: FileSystem, copied: Copied, streams: bool, check: Callable[[], None], top: str
    ) -> None:
        self.copied = copied
        self._files, self._streams, self._check = files, streams, check
        self._top = PurePosixPath(top)

    def entry(
        self,
        place: Directory,
        entry: Entry,
        name: bytes,
        path: PurePosixPath,
        way: tuple[object, ...],
    ) -> bytes | None:
        """Write one entry and what is in it; the name that it got, or None where it could not be read."""
        self._check()
        made = None
        try:
            if entry.unreadable:
                self.copied.failed.append((str(path), f"{entry.unreadable}."))
            elif entry.kind is Kind.SPECIAL:
                self.copied.skipped.append((str(path), "a device, a pipe or a socket"))
            elif entry.kind is Kind.DIRECTORY:
                made = self._directory(place, entry, name, path, way)
            elif entry.kind is Kind.LINK:
                made = self._link(place, entry, name, path)
            else:
                made = place.file(name, self._files.open(entry), entry, self._count)
                self.copied.files += 1
                self.copied.size += entry.size
        except SinkError:
            raise
        except MoverError as exc:
            self.copied.failed.append((str(path), str(exc)))
        if made is not None:
            if path != self._top and made != encoded(entry.name):
                self.copied.renamed.append((str(path), made.decode("utf-8", "replace")))
            if self._streams:
                self._write_streams(place, entry, made, path)
        return made

    def _directory(
        self,
        place: Directory,
        entry: Entry,
        name: bytes,
        path: PurePosixPath,
        way: tuple[object, ...],
    ) -> bytes:
        if entry.identity in way:
            raise Unreadable(f"Directory {path} contains itself.")
        if len(way) >= _DEEPEST:
            raise Unreadable(f"Directory {path} lies more than {_DEEPEST} levels deep.")
        entries = self._files.entries(entry)
        inner, made = place.directory(name)
        with inner:
            for each in entries:
                self.entry(
                    inner, each, safe_name(each.name), path / (each.name or "%"), (*way, entry.identity)
                )
            inner.finish(entry)
        self.copied.directories += 1
        return made

    def _link(self, place: Directory, entry: Entry, name: bytes, path: PurePosixPath) -> bytes:
        target = self._files.link(entry)
        made = place.link(name, target, entry.modified_ns)
        self.copied.links += 1
        if _leads_out(path, target, self._top):
            self.copied.leading_out += 1
        return made

    def _write_streams(self, place: Directory, entry: Entry, made: bytes, path: PurePosixPath) -> None:
        for stream in entry.streams:
            name = safe_name(f"{made.decode('utf-8', 'surrogateescape')}:{stream.name}")
            try:
                place.file(name, self._files.open(entry, stream.name), entry, self._count)
            except SinkError:
                raise
            except MoverError as exc:
                self.copied.failed.append((f"{path}:{stream.name}", str(exc)))
            else:
                self.copied.streams += 1
                self.copied.size += stream.size

    def _count(self, length: int) -> None:
        self.copied.data += length
        self._check()


def _leads_out(path: PurePosixPath, target: str, top: PurePosixPath) -> bool:
    """Whether a link at `path` leads out of the tree at `top`, as far as names tell."""
    if target.startswith("/") or target[1:2] == ":":
        return True
    depth = len(path.parent.parts) - len(top.parts)
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return True
    return False
