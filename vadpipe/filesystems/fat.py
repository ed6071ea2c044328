"""FAT12, FAT16 and FAT32 by dissect.fat.

The library reads the boot sector and directories. Chains of clusters are followed here: version 3.13 of it takes a
cluster that lies before another one for the one behind it, and does not end in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any, Final

from dissect.fat import fat

from .contract import Content, Entry, Kind
from .sources import Runs, Source, file_of
from .translation import Translated, reading

_LAST: Final = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}  # and above: the end of a chain


class _Chains(fat.FAT):  # type: ignore[misc]  # a library without types
    """The table of clusters."""

    def runlist(self, cluster: int) -> Iterator[tuple[int, int]]:
        """First cluster, counted from the first with data, and number of clusters side by side."""
        start, count, total = cluster, 0, 0
        while True:
            if cluster < 2:
                raise ValueError(f"a chain leads to cluster {cluster}")
            if cluster != start + count:
                yield start - 2, count
                start, count = cluster, 0
            count += 1
            total += 1
            if total > self.entry_count:
                raise ValueError("a chain of clusters runs in a circle")
            following: Any = self.get(cluster)
            cluster = following
            if cluster >= _LAST[self.bits_per_entry]:
                yield start - 2, count
                return


class Fat:
    """A FAT file system. Its times have no zone, and are taken as UTC. Raises Unreadable, MoverError."""

    reader = "dissect.fat"
    notes: Sequence[str] = ()

    def __init__(self, source: Source, title: str) -> None:
        self._source, self._title = source, title
        with reading(source, f"The FAT of {title}"):
            self._fs = fat.FATFS(file_of(source))
            self._fs.fat = _Chains(self._fs.fat.fh, self._fs.type)
            self.label = str(self._fs.volume_label).replace("NO NAME", "").strip()
            self._data = self._fs.first_data_sector * self._fs.sector_size

    def root(self) -> Entry:
        return Entry("/", Kind.DIRECTORY, 0, None, None, "/", node=self._fs.root)

    def entries(self, directory: Entry) -> Sequence[Entry]:
        with reading(self._source, f"Directory {directory.name!r} of {self._title}"):
            return [self._entry(each) for each in self._rows(directory)]

    def find(self, directory: Entry, name: str) -> Entry | None:
        with reading(self._source, f"Directory {directory.name!r} of {self._title}"):
            for each in self._rows(directory):
                if name.upper() in (each.name.upper(), each.short_name.upper()):
                    return self._entry(each)
        return None

    def open(self, entry: Entry, stream: str = "") -> Content:
        what = f"File {entry.name!r} of {self._title}"
        with reading(self._source, what):
            node: Any = entry.node
            size = self._fs.cluster_size
            runs = [(self._data + start * size, count * size) for start, count in node.dataruns()]
            return Translated(Runs(self._source, runs, entry.size), self._source, what)

    def link(self, entry: Entry) -> str:
        raise AssertionError("FAT has no links")

    def _rows(self, directory: Entry) -> Iterator[Any]:
        node: Any = directory.node
        for each in node.iterdir():
            if not each.is_volume_id() and each.name not in (".", ".."):
                yield each

    def _entry(self, each: Any) -> Entry:  # noqa: ANN401 - of a library without types
        kind = Kind.DIRECTORY if each.is_directory() else Kind.FILE
        try:
            modified = int(each.mtime.replace(tzinfo=UTC).timestamp()) * 1_000_000_000
        except ValueError:
            modified = None
        size = 0 if kind is Kind.DIRECTORY else each.dirent.DIR_FileSize
        identity = each.cluster or (each.parent.path if each.parent else "", each.name)
        return Entry(each.name, kind, size, modified, None, identity, node=each)
