"""Events: what stages and resources have to say while they run, as plain facts.

An event goes to whoever observes the running task: progress bars, the lines of --events, the report of a job.
Without an observer it goes nowhere. Events are for people and tools; no decision of the mover hangs on one.

Each event says where it happened: `run`, `job` and `disk`, as far as it happened inside one. The kinds of a run:
run started, job started, disk started, extents, disk finished, published, job finished or job failed, run finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something that happened. `facts` hold JSON values only; `at` is Unix time in seconds."""

    kind: str
    facts: Mapping[str, object]
    at: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, object]:
        return {"at": round(self.at, 3), "event": self.kind, **self.facts}


Observer = Callable[[Event], None]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_place: ContextVar[Mapping[str, str]] = ContextVar("place", default={})  # noqa: B039  # never changed in place


def emit(kind: str, **facts: object) -> None:
    """Tell the observer of this task. Only from the event loop's thread."""
    observer = _observer.get()
    if observer is not None:
        observer(Event(kind, {**_place.get(), **facts}))


def place() -> Mapping[str, str]:
    """Where this task is at work: its `run`, `job` and `disk`, as far as there are any."""
    return _place.get()


@contextmanager
def within(**parts: str) -> Iterator[None]:
    """Inside the block, and in tasks and threads started there, events carry these too: `run`, `job` or `disk`."""
    token = _place.set({**_place.get(), **parts})
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Inside the block, and in tasks started there, events go to `observer` and to the one around it."""
    outer = _observer.get()

    def both(event: Event) -> None:
        observer(event)
        if outer is not None:
            outer(event)

    token = _observer.set(both)
    try:
        yield
    finally:
        _observer.reset(token)
