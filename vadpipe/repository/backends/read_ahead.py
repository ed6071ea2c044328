"""Reading ahead, so that what lies side by side in an object is read with few requests: a frame has about 1 MiB, and a
request to a store costs as much time as 1 MiB or more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Final

from pipeline import MiB

from .contract import Backend, Parts, Upload, checked_name
from .wrappers import Forwarding

LONGEST: Final = 8 * MiB  # of one request
WINDOWS: Final = 4  # kept in memory: two workers in the packs of two disks

_Key = tuple[str, int]


class ReadAhead(Forwarding):
    """Reads more than was asked for where an object is read from the front to the back.

    The first range is read as it is. One that follows it, or begins shortly behind it, is read with more that comes
    after; twice as much each time, up to `longest`. So whoever jumps reads little in vain. Only for objects that are
    never replaced.
    """

    def __init__(
        self,
        inner: Backend,
        prefixes: Iterable[str] = ("packs/",),
        longest: int = LONGEST,
        windows: int = WINDOWS,
    ) -> None:
        """
        Args:
            prefixes: The names of which objects begin like this.
            longest: Bytes of one request; what is longer is read as it is asked for.
            windows: How many of these are kept in memory.
        """
        super().__init__(inner)
        self._prefixes = tuple(prefixes)
        self._longest = longest
        self._most = windows
        self._turn = threading.Lock()
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()
        self._reached: OrderedDict[str, tuple[int, int]] = OrderedDict()  # of each object: end, bytes read

    def put(self, name: str, parts: Parts) -> None:
        self.inner.put(name, parts)
        self._forget([name])

    def begin(self, name: str) -> Upload:
        self._forget([name])
        return self.inner.begin(name)

    def replace(self, name: str, parts: Parts) -> None:
        self.inner.replace(name, parts)
        self._forget([name])

    def delete(self, names: Iterable[str]) -> None:
        kept = tuple(names)
        self.inner.delete(kept)
        self._forget(kept)

    def close(self) -> None:
        with self._turn:
            self._windows.clear()
            self._reached.clear()
        self.inner.close()

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if not length or length > self._longest or not checked_name(name).startswith(self._prefixes):
            return self.inner.read(name, offset, length)
        with self._turn:
            window = self._holding(name, offset, length)
            ahead = self._ahead(name, offset, length) if window is None else 0
            if ahead:
                window = _Window(offset, ahead, self._holding(name, offset, 1))
                self._windows[name, offset] = window
                while len(self._windows) > self._most:
                    self._windows.popitem(last=False)
        if window is None:
            return self.inner.read(name, offset, length)
        if ahead:
            self._fetch(name, window)
        low = offset - window.offset
        return window.content.result()[low : low + length]

    def _holding(self, name: str, offset: int, length: int) -> _Window | None:
        """The window that has this range, or is going to have it."""
        for key, window in self._windows.items():
            if (
                key[0] == name
                and window.offset <= offset
                and offset + length <= window.offset + window.length
            ):
                self._windows.move_to_end(key)
                return window
        return None

    def _ahead(self, name: str, offset: int, length: int) -> int:
        """How many bytes to read from `offset` on, as this continues what was read before; 0: it does not."""
        end, before = self._reached.pop(name, (0, 0))
        follows = before > 0 and -before < offset - end <= length
        size = min(max(2 * before, 2 * length), self._longest) if follows else length
        self._reached[name] = (offset + size, size)
        while len(self._reached) > 4 * self._most:
            self._reached.popitem(last=False)
        return size if follows else 0

    def _fetch(self, name: str, window: _Window) -> None:
        try:
            head, before = b"", window.before
            window.before = None
            if before is not None:
                head = before.content.result()[window.offset - before.offset :]
            rest = self.inner.read(name, window.offset + len(head), window.length - len(head))
            window.content.set_result(head + rest)
        except BaseException as exc:
            self._forget([name])
            window.content.set_exception(exc)  # for the threads that wait for it, too

    def _forget(self, names: Iterable[str]) -> None:
        gone = {name for name in names if name.startswith(self._prefixes)}
        if gone:
            with self._turn:
                for key in [key for key in self._windows if key[0] in gone]:
                    del self._windows[key]
                for name in gone:
                    self._reached.pop(name, None)


class _Window:
    """A range of an object; `content` is shorter where the object ends before.

    Args:
        before: The window that has its first bytes already.
    """

    def __init__(self, offset: int, length: int, before: _Window | None) -> None:
        self.offset = offset
        self.length = length
        self.before = before
        self.content: Future[bytes] = Future()
