"""Faults on demand: the n-th call of a method fails, or its connection breaks before or after the work."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pyVmomi import vmodl


class Drop(enum.Enum):
    """Break the client's connection: BEFORE the call had any effect, or AFTER, so that only its answer is lost."""

    BEFORE = "before"
    AFTER = "after"


FaultMaker = Callable[[], vmodl.MethodFault]


class ConnectionDroppedError(Exception):
    """Close the connection without an answer."""


@dataclass
class _Injection:
    method: str
    failure: FaultMaker | Drop
    in_task: bool
    calls_left: int


class Injections:
    """The failures that wait for their call, and the count of all calls by method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Injection] = []
        self.calls: Counter[str] = Counter()

    def add(self, method: str, failure: FaultMaker | Drop, nth: int = 1, *, in_task: bool = False) -> None:
        """Let the `nth` call of `method` from now on fail; with `in_task` the task that it starts."""
        if in_task and isinstance(failure, Drop):
            raise ValueError("A task has no connection to drop; give a fault.")
        with self._lock:
            self._waiting.append(_Injection(method, failure, in_task, nth))

    def before_call(self, method: str) -> Drop | None:
        """Count a call. Raises what is due for it; Drop.AFTER is returned, for the end of the call."""
        with self._lock:
            self.calls[method] += 1
        failure = self._due(method, in_task=False)
        if failure is Drop.BEFORE:
            raise ConnectionDroppedError
        return self._raised(failure)

    def before_task_work(self, method: str) -> None:
        """Raises the fault that is due for the task which `method` started."""
        self._raised(self._due(method, in_task=True))

    def _due(self, method: str, *, in_task: bool) -> FaultMaker | Drop | None:
        with self._lock:
            due = None
            for injection in [one for one in self._waiting if (one.method, one.in_task) == (method, in_task)]:
                injection.calls_left -= 1
                if injection.calls_left == 0:
                    due = injection
                    self._waiting.remove(injection)
            return due.failure if due else None

    @staticmethod
    def _raised(failure: FaultMaker | Drop | None) -> Drop | None:
        if failure is None or isinstance(failure, Drop):
            return failure
        raise failure()
