"""Failures on demand: at the n-th call of a method, or by chance with a seed, at the call or in the task it starts.

What can happen is a fault, a broken connection, the answer of a proxy whose service is not there, a delay, a task
that hangs, or an event of the test's own such as a restart of the server. A failure comes before the work, so that
it has no effect, or after it, so that only its answer is lost or wrong.
"""

from __future__ import annotations

import enum
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyVmomi import vmodl

ANY = "*"  # every method
CONSOLIDATION = "consolidation"  # the work on disks, when the snapshot has left the tree already


class Drop(enum.Enum):
    """Break the client's connection: BEFORE the call had any effect, or AFTER, so that only its answer is lost."""

    BEFORE = "before"
    AFTER = "after"


class Refusal(enum.Enum):
    """HTTP 503, as the proxy in front of a vCenter answers while the services behind it start."""

    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Delay:
    """Let it take longer; for ever by default, until the server stops, is restarted, or lets go."""

    seconds: float = math.inf


@dataclass(frozen=True)
class Event:
    """Something that happens at this moment, e.g. a restart or a kill. It runs in the thread of the call."""

    happen: Callable[[], None]


FaultMaker = Callable[[], vmodl.MethodFault]
Failure = FaultMaker | Drop | Refusal | Delay | Event


class ConnectionDroppedError(Exception):
    """Close the connection without an answer."""


class ServiceUnavailableError(Exception):
    """Answer with HTTP 503."""


@dataclass
class _Injection:
    """`calls_left` until it is due once; with a `chance` it may be due at every call."""

    method: str
    failure: Failure
    in_task: bool
    after: bool
    calls_left: int
    chance: float | None


class Injections:
    """The failures that wait for their call, and the count of all calls by method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Injection] = []
        self._random = random.Random(0)
        self._let_go = threading.Event()
        self.calls: Counter[str] = Counter()

    def seed(self, seed: int) -> None:
        """Begin the row of chances anew."""
        self._random = random.Random(seed)

    def add(
        self,
        method: str,
        failure: Failure,
        nth: int = 1,
        *,
        in_task: bool = False,
        after: bool = False,
        chance: float | None = None,
    ) -> None:
        """Let the `nth` call of `method` from now on fail, or each with a `chance`; see `LabVcenter.inject`."""
        if in_task and isinstance(failure, Drop | Refusal):
            raise ValueError("A task has no connection; give a fault, a delay or an event.")
        after |= failure is Drop.AFTER
        with self._lock:
            self._waiting.append(_Injection(method, failure, in_task, after, nth, chance))

    def clear(self) -> None:
        """Forget what has not happened yet, and end every delay."""
        with self._lock:
            self._waiting.clear()
        self.let_go()

    def let_go(self) -> None:
        """End the delays that are running now."""
        self._let_go.set()
        self._let_go = threading.Event()

    def before_call(self, method: str) -> list[Failure]:
        """Count a call. Raises what is due before its work; returns what is due after it, for `happen`."""
        with self._lock:
            self.calls[method] += 1
        due = list(self._due(method, in_task=False))
        self.happen([one.failure for one in due if not one.after])
        return [one.failure for one in due if one.after]

    def before_task_work(self, method: str) -> list[Failure]:
        """Raises the fault that is due for the task which `method` started; returns what is due after its work."""
        due = list(self._due(method, in_task=True))
        self.happen([one.failure for one in due if not one.after])
        return [one.failure for one in due if one.after]

    def happen(self, failures: list[Failure]) -> None:
        """Let them happen, the raising one last."""
        raising: FaultMaker | Drop | Refusal | None = None
        for failure in failures:
            if isinstance(failure, Delay):
                self._let_go.wait(None if math.isinf(failure.seconds) else failure.seconds)
            elif isinstance(failure, Event):
                failure.happen()
            else:
                raising = failure
        if isinstance(raising, Drop):
            raise ConnectionDroppedError
        if isinstance(raising, Refusal):
            raise ServiceUnavailableError
        if raising is not None:
            raise raising()

    def _due(self, method: str, *, in_task: bool) -> Iterator[_Injection]:
        with self._lock:
            for one in list(self._waiting):
                if one.in_task != in_task or one.method not in (method, ANY):
                    continue
                if one.chance is not None:
                    if self._random.random() < one.chance:
                        yield one
                    continue
                one.calls_left -= 1
                if one.calls_left == 0:
                    self._waiting.remove(one)
                    yield one
