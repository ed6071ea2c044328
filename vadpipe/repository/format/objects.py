"""The objects of a repository: what they are called, and reading them exactly.

Every object that a run writes is named after the run. So what a dead run left is found by name, without a journal.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from pipeline import KiB, MiB

from ..backends.contract import Backend, ObjectMissing, Stored
from ..backends.contract import Damage as Damage

RUN_ID_SIZE = 8
PACK_ID_SIZE = RUN_ID_SIZE + 4

CONFIG: Final = "config.json"
PACKS: Final = "packs/"
INDEX: Final = "index/"
POINTS: Final = "points/"
HOLDS: Final = "holds/"
FORGOTTEN: Final = "forgotten/"
REMOVALS: Final = "removals/"
RUNS: Final = "runs/"

# An object that took the name of a segment or of a point of a run that was ended, and the id of the run that ended
# it.
ENDED: Final = b"VADENDED"

# What an object of its kind can have at most; a reader takes no larger one into memory.
LARGEST_POINT: Final = 64 * MiB
LARGEST_LIST: Final = 64 * MiB  # removals, forgotten points
LARGEST_SMALL: Final = 64 * KiB  # every other JSON document

_RUN_ID = re.compile(r"[0-9a-f]{16}")


class Missing(Damage):
    """There is no such object."""

    def __init__(self) -> None:
        super().__init__("it is missing")


class Objects:
    """The objects of one repository, by name.

    Args:
        backend: Where they are.
        version: The version of the repository's format; it decides where packs lie.
    """

    def __init__(self, backend: Backend, version: int = 2) -> None:
        self.backend = backend
        self.version = version

    def __repr__(self) -> str:
        return f"Objects({self.backend.place()!r})"

    def pack(self, pack_id: str) -> str:
        """The first two digits, which are those of the run, so that the packs of a run lie together.

        In format 1 the last two: the packs of one run were spread over 256 directories.
        """
        digits = pack_id[:2] if self.version > 1 else pack_id[-2:]
        return f"{PACKS}{digits}/{pack_id}.pack"

    def packs_of(self, run_id: str) -> Iterator[Stored]:
        """The packs that a run of format 2 wrote."""
        return self.backend.list(f"{PACKS}{run_id[:2]}/{run_id}")

    def place(self, name: str = "") -> str:
        """What a person calls an object."""
        return self.backend.place(name)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of an object. Raises Damage, also where it ends before; SinkError."""
        try:
            content = self.backend.read(name, offset, length)
        except ObjectMissing as missing:
            raise Missing from missing
        if len(content) != length:
            raise Damage("it is cut off")
        return content

    def read_whole(self, name: str, limit: int) -> bytes:
        """A small object. Raises Damage, also when it has more than `limit` bytes; SinkError."""
        try:
            content = self.backend.read(name, 0, limit + 1)
        except ObjectMissing as missing:
            raise Missing from missing
        if len(content) > limit:
            raise Damage(f"it has more than {limit} bytes, and no object of its kind has")
        return content

    def size(self, name: str) -> int:
        """Bytes of an object. Raises Damage, SinkError."""
        try:
            return self.backend.size(name)
        except ObjectMissing as missing:
            raise Missing from missing

    def exists(self, name: str) -> bool:
        """Whether an object is there. Raises SinkError."""
        try:
            self.backend.size(name)
        except ObjectMissing:
            return False
        except Damage:
            return True
        return True


class ReadAhead(Objects):
    """The objects, the begins of which stay in memory once they were read: a small object takes one request.

    For objects that are never changed, and for several threads at once.
    """

    def __init__(self, objects: Objects, size: int, most: int = 32) -> None:
        """
        Args:
            size: Bytes of a begin.
            most: How many begins are kept, of the objects that were read from their begin last.
        """
        super().__init__(objects.backend, objects.version)
        self._ahead = size
        self._most = most
        self._begin: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, length: int) -> bytes:
        begin = self._read_ahead(name) if offset + length <= self._ahead else None
        if begin is None or offset + length > len(begin):
            return super().read(name, offset, length)
        return begin[offset : offset + length]

    def size(self, name: str) -> int:
        begin = self._read_ahead(name)
        return super().size(name) if begin is None or len(begin) == self._ahead else len(begin)

    def _read_ahead(self, name: str) -> bytes | None:
        """The begin of an object; None where it cannot be read."""
        if (kept := self._begin.get(name)) is not None:
            return kept
        try:
            begin = self.backend.read(name, 0, self._ahead)
        except (ObjectMissing, Damage):  # whoever reads on is told what it is
            return None
        with self._lock:
            while len(self._begin) >= self._most:
                del self._begin[next(iter(self._begin))]
            self._begin[name] = begin
        return begin


def pack_id(run_id: str, number: int) -> str:
    """Pack or segment `number` of a run."""
    return f"{run_id}{number:08x}"


def segment_name(run_id: str, number: int) -> str:
    return f"{INDEX}{run_id}{number:08x}.idx"


def run_name(run_id: str) -> str:
    return f"{RUNS}{run_id}.json"


def point_name(directory: str, point_id: str) -> str:
    """Of a point of the machine that has this directory."""
    return f"{POINTS}{directory}/{point_id}.json"


def hold_name(directory: str, point_id: str) -> str:
    return f"{HOLDS}{directory}/{point_id}.json"


def removal_name(run_id: str) -> str:
    return f"{REMOVALS}{run_id}.json"


def waiting_name(run_id: str) -> str:
    """The runs that may not know of the removal of this run."""
    return f"{REMOVALS}{run_id}-waiting.json"


def stem(name: str) -> str:
    """The last part of a name without its ending: an id, for most objects."""
    return name.rpartition("/")[2].partition(".")[0]


def run_of(name: str) -> str | None:
    """The id of the run that wrote an object, if its name begins with one."""
    found = _RUN_ID.match(name.rpartition("/")[2])
    return found.group() if found else None


@lru_cache(256)
def machine_directory(uuid: str) -> str:
    """A VM's UUID as a part of a name. UUIDs come from configuration files: none may name another directory."""
    name = quote(uuid, safe="")
    return name.replace(".", "%2E") if name.strip(".") == "" else name
