"""Backends around a backend: each adds one thing, passes the same suite, and can be combined with the others.

Retrying   repeats what failed for a passing reason       Throttled   limits bytes per second
Delayed    adds latency, for tests                        Faulty      fails as planned, for tests

`cached.Cached` keeps copies of immutable objects on a local disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from xxhash import xxh3_128

from pipeline import SinkError

from .contract import Backend, ObjectExists, ObjectMissing, Parts, Stored, Upload

log = logging.getLogger(__name__)

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
ATTEMPTS: Final = 6  # 15.5 s of waiting: a gateway that is restarted is back

T = TypeVar("T")


class Forwarding:
    """A backend that hands everything to another one. Wrappers replace what they change."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    def put(self, name: str, parts: Parts) -> None:
        self.inner.put(name, parts)

    def begin(self, name: str) -> Upload:
        return self.inner.begin(name)

    def replace(self, name: str, parts: Parts) -> None:
        self.inner.replace(name, parts)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.read(name, offset, length)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[Stored]:
        return self.inner.list(prefix)

    def names(self, prefix: str) -> Sequence[str]:
        return self.inner.names(prefix)

    def delete(self, names: Iterable[str]) -> None:
        self.inner.delete(names)

    def place(self, name: str = "") -> str:
        return self.inner.place(name)

    def close(self) -> None:
        self.inner.close()

    # What only some backends need. The others have nothing to do.

    def probe_conditional(self) -> bool:
        """As of S3Backend; a backend without it keeps the promise."""
        probe: Callable[[], bool] = getattr(self.inner, "probe_conditional", lambda: True)
        return probe()

    def write_unconditionally(self) -> None:
        """As of S3Backend."""
        getattr(self.inner, "write_unconditionally", lambda: None)()

    def check_writable(self) -> None:
        """As of LocalBackend."""
        getattr(self.inner, "check_writable", lambda: None)()

    def sweep(self) -> Sequence[str]:
        """As of LocalBackend."""
        sweep: Callable[[], Sequence[str]] = getattr(self.inner, "sweep", lambda: ())
        return sweep()


class Retrying(Forwarding):
    """Another attempt for what failed with a transient error, after a growing wait.

    A name that is taken at the second attempt may have been taken by the first one: the object is read back and
    compared.
    """

    def __init__(
        self, inner: Backend, attempts: int = ATTEMPTS, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        """
        Args:
            attempts: How often a call is made at most.
            sleep: Waits for seconds.
        """
        super().__init__(inner)
        self._attempts = attempts
        self._sleep = sleep

    def put(self, name: str, parts: Parts) -> None:
        def same() -> bool:
            content = self.inner.read(name)
            return content == b"".join(parts)

        self.create(f"writing {name}", lambda: self.inner.put(name, parts), same)

    def begin(self, name: str) -> Upload:
        return _RetryingUpload(self, name, self.call(f"writing {name}", lambda: self.inner.begin(name)))

    def replace(self, name: str, parts: Parts) -> None:
        self.call(f"writing {name}", lambda: self.inner.replace(name, parts))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.call(f"reading {name}", lambda: self.inner.read(name, offset, length))

    def size(self, name: str) -> int:
        return self.call(f"reading {name}", lambda: self.inner.size(name))

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._list(prefix, self.inner.list(prefix))

    def names(self, prefix: str) -> Sequence[str]:
        return self.call(f"listing {prefix}", lambda: self.inner.names(prefix))

    def _list(self, prefix: str, listing: Iterator[Stored]) -> Iterator[Stored]:
        last = ""  # a name is never empty
        again = False

        def following() -> Stored | None:
            nonlocal listing, again
            if again:
                listing = self.inner.list(prefix)
            again = True  # what raised is at its end
            found = next((found for found in listing if found.name > last), None)
            again = False
            return found

        while (found := self.call(f"listing {prefix}", following)) is not None:
            last = found.name
            yield found

    def delete(self, names: Iterable[str]) -> None:
        kept = tuple(names)
        self.call(f"removing {len(kept)} objects", lambda: self.inner.delete(kept))

    def probe_conditional(self) -> bool:
        return self.call("trying conditional writes", super().probe_conditional)

    def create(self, doing: str, create: Callable[[], None], same: Callable[[], bool]) -> None:
        """Call `create`, which takes a name; `same` tells whether the object there has the content of this one."""
        repeated = False

        def attempt() -> None:
            nonlocal repeated
            try:
                create()
            except ObjectExists:
                if not repeated or not _is_true(same):
                    raise
            except SinkError:
                repeated = True
                raise

        self.call(doing, attempt)

    def call(self, doing: str, call: Callable[[], T]) -> T:
        """Make the call until it succeeds or fails for good."""
        for attempt in range(1, self._attempts):
            try:
                return call()
            except SinkError as error:
                if not error.transient:
                    raise
                wait = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
                place = self.place()
                log.info(
                    "%s in %s: attempt %d of %d failed, another one in %.1f s: %s",
                    doing,
                    place,
                    attempt,
                    self._attempts,
                    wait,
                    error.problem,
                )
                self._sleep(wait)
        return call()


class _RetryingUpload:
    """Repeats `finish`. The inner upload keeps what was written; here is its checksum, in case the name is taken.

    A checksum is enough: only the own run writes this name, and digests prove the content when it is read.
    """

    def __init__(self, backend: Retrying, name: str, upload: Upload) -> None:
        self._backend = backend
        self._name = name
        self._upload = upload
        self._sum = xxh3_128()
        self._size = 0

    def write(self, parts: Parts) -> None:
        self._upload.write(parts)
        for part in parts:
            self._sum.update(part)
            self._size += memoryview(part).nbytes

    def finish(self) -> None:
        self._backend.create(f"writing {self._name}", self._upload.finish, self._same)

    def _same(self) -> bool:
        inner = self._backend.inner
        if inner.size(self._name) != self._size:
            return False
        stored = xxh3_128()
        piece = 8 << 20
        for offset in range(0, self._size, piece):
            stored.update(inner.read(self._name, offset, piece))
        return stored.digest() == self._sum.digest()

    def abort(self) -> None:
        self._upload.abort()


def _is_true(same: Callable[[], bool]) -> bool:
    try:
        return same()
    except ObjectMissing:
        return False


class Clock(Protocol):
    """Time that passes and can be waited for; the module `time` is one."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class Throttled(Forwarding):
    """At most so many bytes per second, of all calls together, written and read."""

    def __init__(self, inner: Backend, bytes_per_second: float, clock: Clock = time) -> None:
        super().__init__(inner)
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._turn = threading.Lock()
        self._free = 0.0  # when everything is through that was let through

    def put(self, name: str, parts: Parts) -> None:
        self.pass_on(parts)
        self.inner.put(name, parts)

    def begin(self, name: str) -> Upload:
        return _ThrottledUpload(self, self.inner.begin(name))

    def replace(self, name: str, parts: Parts) -> None:
        self.pass_on(parts)
        self.inner.replace(name, parts)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = self.inner.read(name, offset, length)
        self.pass_on([content])
        return content

    def pass_on(self, parts: Parts) -> None:
        """Wait until these bytes may be through."""
        duration = sum(memoryview(part).nbytes for part in parts) / self._bytes_per_second
        with self._turn:
            now = self._clock.monotonic()
            self._free = max(now, self._free) + duration
            wait = self._free - now
        if wait > 0:
            self._clock.sleep(wait)


class _ThrottledUpload:
    def __init__(self, backend: Throttled, upload: Upload) -> None:
        self._backend = backend
        self._upload = upload

    def write(self, parts: Parts) -> None:
        self._backend.pass_on(parts)
        self._upload.write(parts)

    def finish(self) -> None:
        self._upload.finish()

    def abort(self) -> None:
        self._upload.abort()


def lost_connection() -> SinkError:
    """A transient error of a store."""
    error = SinkError("The connection to the store was lost.", remedy="Run again.")
    error.transient = True
    return error


@dataclass(frozen=True)
class Fault:
    """One call that fails.

    Args:
        method: Of Backend, or `write` and `finish` of its uploads.
        call: Which call of this method, from 1; the calls of all uploads count together.
        after: Whether it has its effect before it fails. A listing fails after its first object then.
        error: Makes the error; by default, of a connection that was lost.
    """

    method: str
    call: int = 1
    after: bool = False
    error: Callable[[], Exception] = lost_connection


class Faulty(Forwarding):
    """Fails as planned. `calls` counts the calls of each method."""

    def __init__(self, inner: Backend, plan: Iterable[Fault] = ()) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self._plan = {(fault.method, fault.call): fault for fault in plan}
        self._turn = threading.Lock()

    def put(self, name: str, parts: Parts) -> None:
        self.run("put", lambda: self.inner.put(name, parts))

    def begin(self, name: str) -> Upload:
        return _FaultyUpload(self, self.run("begin", lambda: self.inner.begin(name)))

    def replace(self, name: str, parts: Parts) -> None:
        self.run("replace", lambda: self.inner.replace(name, parts))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.run("read", lambda: self.inner.read(name, offset, length))

    def size(self, name: str) -> int:
        return self.run("size", lambda: self.inner.size(name))

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._list(self.inner.list(prefix))

    def names(self, prefix: str) -> Sequence[str]:
        return self.run("list", lambda: self.inner.names(prefix))  # a listing, to whoever plans a fault

    def _list(self, listing: Iterator[Stored]) -> Iterator[Stored]:
        fault = self._planned("list")
        if fault is not None and not fault.after:
            raise fault.error()
        for found in listing:
            yield found
            if fault is not None:
                raise fault.error()

    def delete(self, names: Iterable[str]) -> None:
        self.run("delete", lambda: self.inner.delete(names))

    def run(self, method: str, call: Callable[[], T]) -> T:
        """Make the call, or fail before or after it."""
        fault = self._planned(method)
        if fault is not None and not fault.after:
            raise fault.error()
        result = call()
        if fault is not None:
            raise fault.error()
        return result

    def _planned(self, method: str) -> Fault | None:
        with self._turn:
            self.calls[method] += 1
            return self._plan.get((method, self.calls[method]))


class _FaultyUpload:
    def __init__(self, backend: Faulty, upload: Upload) -> None:
        self._backend = backend
        self._upload = upload

    def write(self, parts: Parts) -> None:
        self._backend.run("write", lambda: self._upload.write(parts))

    def finish(self) -> None:
        self._backend.run("finish", self._upload.finish)

    def abort(self) -> None:
        self._upload.abort()


class Delayed(Forwarding):
    """Each call takes so much longer; of an upload, its end."""

    def __init__(
        self, inner: Backend, latency_s: float, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        super().__init__(inner)
        self._latency_s = latency_s
        self._sleep = sleep

    def wait(self) -> None:
        self._sleep(self._latency_s)

    def put(self, name: str, parts: Parts) -> None:
        self.wait()
        self.inner.put(name, parts)

    def begin(self, name: str) -> Upload:
        return _DelayedUpload(self, self.inner.begin(name))

    def replace(self, name: str, parts: Parts) -> None:
        self.wait()
        self.inner.replace(name, parts)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.wait()
        return self.inner.read(name, offset, length)

    def size(self, name: str) -> int:
        self.wait()
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[Stored]:
        self.wait()
        return self.inner.list(prefix)

    def names(self, prefix: str) -> Sequence[str]:
        self.wait()
        return self.inner.names(prefix)

    def delete(self, names: Iterable[str]) -> None:
        self.wait()
        self.inner.delete(names)


class _DelayedUpload:
    def __init__(self, backend: Delayed, upload: Upload) -> None:
        self._backend = backend
        self._upload = upload

    def write(self, parts: Parts) -> None:
        self._upload.write(parts)

    def finish(self) -> None:
        self._backend.wait()
        self._upload.finish()

    def abort(self) -> None:
        self._upload.abort()
