"""Objects in memory: for tests, and for programs that keep a repository as long as they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from .contract import ObjectExists, ObjectMissing, Parts, Stored, checked_name, checked_prefix


class MemoryBackend:
    """Objects in a dictionary. It ends with the object; what the process wrote is nowhere else."""

    def __init__(self, label: str = "memory") -> None:
        """
        Args:
            label: What `place` calls it.
        """
        self._label = label
        self._turn = threading.Lock()
        self._content: dict[str, tuple[bytes, float]] = {}

    def __repr__(self) -> str:
        return f"MemoryBackend({self._label!r})"

    def put(self, name: str, parts: Parts) -> None:
        content = b"".join(parts)
        with self._turn:
            if checked_name(name) in self._content:
                raise ObjectExists(self.place(name))
            self._content[name] = content, time.time()

    def begin(self, name: str) -> MemoryUpload:
        return MemoryUpload(self, checked_name(name))

    def replace(self, name: str, parts: Parts) -> None:
        content = b"".join(parts)
        with self._turn:
            self._content[checked_name(name)] = content, time.time()

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content, _ = self._stored(name)
        return content[offset : None if length is None else offset + length]

    def size(self, name: str) -> int:
        return len(self._stored(name)[0])

    def _stored(self, name: str) -> tuple[bytes, float]:
        with self._turn:
            try:
                return self._content[checked_name(name)]
            except KeyError:
                raise ObjectMissing(self.place(name)) from None

    def list(self, prefix: str) -> Iterator[Stored]:
        checked_prefix(prefix)
        with self._turn:
            found = sorted(item for item in self._content.items() if item[0].startswith(prefix))
        return iter([Stored(name, len(content), modified) for name, (content, modified) in found])

    def names(self, prefix: str) -> Sequence[str]:
        return [found.name for found in self.list(prefix)]

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._turn:
                self._content.pop(checked_name(name), None)

    def place(self, name: str = "") -> str:
        return f"{self._label}:{name}"

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryUpload:
    """An object of a MemoryBackend in the making."""

    def __init__(self, backend: MemoryBackend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._parts: list[bytes] = []

    def write(self, parts: Parts) -> None:
        self._parts.append(b"".join(parts))

    def finish(self) -> None:
        self._backend.put(self._name, self._parts)
        self._parts = []

    def abort(self) -> None:
        self._parts = []
