"""Chosen versions of the objects in a bucket, as a backend that is only read: the repository as it was written.

Whoever looks at a bucket after somebody overwrote or deleted objects reads through this. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from pipeline import SinkError

from .administration import S3Administration, Version
from .contract import ObjectMissing, Parts, Stored, checked_name, checked_prefix


class VersionsBackend:
    """These versions and nothing else.

    Args:
        administration: Of the bucket; it stays open.
        versions: Names, and the version that is read.
    """

    def __init__(self, administration: S3Administration, versions: Mapping[str, Version]) -> None:
        self._administration = administration
        self._versions = versions

    def __repr__(self) -> str:
        return f"VersionsBackend({str(self._administration.location)!r})"

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        version = self._version(name)
        if offset >= version.size:
            return b""
        return self._administration.read(name, version.version_id, offset, length)

    def size(self, name: str) -> int:
        return self._version(name).size

    def list(self, prefix: str) -> Iterator[Stored]:
        checked_prefix(prefix)
        found = sorted(name for name in self._versions if name.startswith(prefix))
        return iter(
            [Stored(name, self._versions[name].size, self._versions[name].modified) for name in found]
        )

    def names(self, prefix: str) -> Sequence[str]:
        return [found.name for found in self.list(prefix)]

    def _version(self, name: str) -> Version:
        try:
            return self._versions[checked_name(name)]
        except KeyError:
            raise ObjectMissing(self.place(name)) from None

    def put(self, name: str, parts: Parts) -> None:
        self._refuse(name)

    def begin(self, name: str) -> NoReturn:
        self._refuse(name)

    def replace(self, name: str, parts: Parts) -> None:
        self._refuse(name)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise SinkError(
            f"{self.place(name)} is not written: versions of objects are only read.",
            remedy="Put the versions back first: vadpipe object-lock restore.",
        )

    def place(self, name: str = "") -> str:
        location = self._administration.location
        return location.place(name) if name else str(location)

    def close(self) -> None:
        """There is nothing to let go of."""
