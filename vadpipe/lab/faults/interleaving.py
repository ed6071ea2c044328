"""Actors whose operations on a store are interleaved one by one, as a seed draws it.

Each actor runs real code on a thread of its own. Only one thread runs at a time: every call of the store first
gives the turn away, and the scheduler draws who gets it. So a schedule is a function of its seed, and every order
of operations can come up. An actor stands for a process of some host: it may be killed before any operation, or be
stopped and wake up when all others have ended.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, ParamSpec, TypeVar
from unittest.mock import patch

import trio

from pipeline import SinkError
from vadpipe.repository import runs as _runs
from vadpipe.repository.backends.contract import ObjectExists, ObjectMissing, Parts, Stored
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format import config as _config
from vadpipe.repository.format import packs as _packs

P = ParamSpec("P")
R = TypeVar("R")

# A schedule has some 400 operations; one that has this many runs in a circle.
MOST_STEPS: Final = 20_000


class Killed(BaseException):
    """The process of an actor is gone. What it calls after this has no effect."""


@dataclass
class Process:
    """What a run tells of the process it runs in, and whether that process is there.

    `host`, `boot`, `namespace`: as in `runs/`; `pid` is unique among all processes of a schedule.
    """

    pid: int
    host: str = "host a"
    boot: str = "boot 1"
    namespace: str = "pid:[1]"
    there: bool = True
    alive: set[str] = field(default_factory=set)  # what `runs` keeps per process

    def fields(self) -> dict[str, object]:
        return {
            "host": self.host,
            "name": self.host,
            "boot": self.boot,
            "pid_namespace": self.namespace,
            "pid": self.pid,
            "started": str(self.pid),
        }


class Actor:
    """A process that does `work`. `error` is what ended it, if that was no kill."""

    def __init__(self, name: str, process: Process, work: Callable[[], None]) -> None:
        """
        Args:
            work: It uses the store of the schedule.
        """
        self.name = name
        self.process = process
        self.steps = 0
        self.killed_at = 0  # before this operation, counted from 1; 0: never
        self.stopped_at = 0  # likewise; it wakes up when nobody else can go on
        self.fault_at = 0  # this operation fails
        self.fault_has_effect = False  # the store did it, and the answer was lost
        self.dead = self.stopped = self.done = False
        self.error: BaseException | None = None
        self.gate = threading.Semaphore(0)
        self.work = work


_here = threading.local()


def here() -> Actor | None:
    """The actor whose thread this is."""
    return getattr(_here, "actor", None)


# Who goes next, of those who can: called with the one whose turn it was, and the number of the step.
Choice = Callable[[Actor, Sequence[Actor], int], Actor]


def uniform(draw: random.Random) -> Choice:
    """Anybody, each time."""
    return lambda _, ready, __: draw.choice(ready)


def in_bursts(draw: random.Random, staying: float) -> Choice:
    """Whoever has the turn keeps it with a probability; then anybody."""

    def choose(now: Actor, ready: Sequence[Actor], step: int) -> Actor:
        return now if now in ready and draw.random() < staying else draw.choice(ready)

    return choose


def by_priority(draw: random.Random, actors: Sequence[Actor], preemptions: int, steps: int) -> Choice:
    """Who comes first in a drawn order runs to its end, but for a few moments at which it becomes the last.

    Source: Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs (ASPLOS 2010).
    """
    order = draw.sample(actors, len(actors))
    moments = {draw.randrange(1, steps) for _ in range(preemptions)}

    def choose(now: Actor, ready: Sequence[Actor], step: int) -> Actor:
        if step in moments:
            order.remove(now)
            order.append(now)
        return next(actor for actor in order if actor in ready)

    return choose


class Interleaving:
    """Plays actors. `trace` is what they did, one line per operation, when it is kept."""

    def __init__(self, actors: Sequence[Actor], choice: Choice, *, keep_trace: bool = False) -> None:
        self.actors = actors
        self.step = 0
        self.trace: list[str] | None = [] if keep_trace else None
        self.at_step: dict[int, Callable[[], None]] = {}  # what happens then: a clock jumps
        self._choice = choice
        self._finished = threading.Semaphore(0)

    def play(self) -> None:
        """Until all actors have ended."""
        threads = [threading.Thread(target=self._run, args=(actor,)) for actor in self.actors]
        for thread in threads:
            thread.start()
        self._next(self.actors[0]).gate.release()
        self._finished.acquire()
        for thread in threads:
            thread.join()

    def _run(self, actor: Actor) -> None:
        _here.actor = actor
        actor.gate.acquire()
        try:
            actor.work()
        except Killed:
            actor.process.there = False
        except BaseException as error:
            actor.error = error
        actor.done = True
        if all(each.done for each in self.actors):
            self._finished.release()
        else:
            self._next(actor).gate.release()

    def turn(self, operation: str, name: str) -> bool:
        """Wait for the turn to do this. Returns whether the answer gets lost.

        Raises Killed, and SinkError for a fault.
        """
        actor = here()
        if actor is None:
            return False
        if actor.dead:
            raise Killed
        chosen = self._next(actor)
        if chosen is not actor:
            chosen.gate.release()
            actor.gate.acquire()
        actor.steps += 1
        self.step += 1
        if self.step in self.at_step:
            self.at_step[self.step]()
        if actor.steps == actor.stopped_at:
            actor.stopped = True
            self._next(actor).gate.release()
            actor.gate.acquire()
        if actor.steps == actor.killed_at or self.step > MOST_STEPS:
            actor.dead = True
            raise Killed
        if self.trace is not None:
            self.trace.append(f"{self.step:4} {actor.name:10} {operation:8} {name}")
        if actor.steps == actor.fault_at:
            if not actor.fault_has_effect:
                raise SinkError("The store does not answer.")
            return True
        return False

    def _next(self, actor: Actor) -> Actor:
        ready = [each for each in self.actors if not each.done and not each.stopped]
        if not ready:
            for each in self.actors:
                each.stopped = False
            ready = [each for each in self.actors if not each.done]
        return ready[0] if len(ready) == 1 else self._choice(actor, ready, self.step)


class ScheduledBackend(MemoryBackend):
    """A store whose every operation waits for its turn. `clock` is its time in seconds; a listing comes in pages.

    A thread that is no actor's never waits.
    """

    def __init__(self, content: Mapping[str, tuple[bytes, float]], page: int = 1000) -> None:
        """
        Args:
            content: Name, bytes and time of what is there.
            page: Names in a page of a listing. What happens between two pages may be listed or not.
        """
        super().__init__("lab")
        self._content = dict(content)
        self._page = page
        self.clock = 1.8e9
        self.interleaving: Interleaving | None = None
        self.on_put: Callable[[str], None] | None = None  # hears of objects before they are there

    def content(self) -> dict[str, tuple[bytes, float]]:
        """Name, bytes and time of everything."""
        return dict(self._content)

    def has(self, prefix: str) -> bool:
        """Whether there is an object whose name begins with this. It does not wait for a turn."""
        return any(name.startswith(prefix) for name in self._content)

    def _wait(self, operation: str, name: str) -> bool:
        return self.interleaving is not None and self.interleaving.turn(operation, name)

    # Names are not checked, and nothing is locked: one thread runs at a time.

    def put(self, name: str, parts: Parts) -> None:
        lost = self._wait("put", name)
        if name in self._content:
            raise ObjectExists(name)
        if self.on_put is not None:
            self.on_put(name)
        self._content[name] = b"".join(parts), self.clock
        _answer(lost)

    def replace(self, name: str, parts: Parts) -> None:
        lost = self._wait("replace", name)
        self._content[name] = b"".join(parts), self.clock
        _answer(lost)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        # An object does not change, so its columns may be read at once: what counts is whether it is there.
        if offset == 0 or name.endswith(".pack"):
            _answer(self._wait("read", name))
        return self._there(name)[offset : None if length is None else offset + length]

    def size(self, name: str) -> int:
        _answer(self._wait("size", name))
        return len(self._there(name))

    def _there(self, name: str) -> bytes:
        try:
            return self._content[name][0]
        except KeyError:
            raise ObjectMissing(name) from None

    def list(self, prefix: str) -> Iterator[Stored]:
        after = ""
        while True:
            _answer(self._wait("list", prefix))
            names = sorted(name for name in self._content if name.startswith(prefix) and name > after)
            page = [
                Stored(name, len(self._content[name][0]), self._content[name][1])
                for name in names[: self._page]
            ]
            yield from page
            if len(page) == len(names):
                return
            after = page[-1].name

    def names(self, prefix: str) -> Sequence[str]:
        return [found.name for found in self.list(prefix)]

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            lost = self._wait("delete", name)
            self._content.pop(name, None)
            _answer(lost)


def _answer(lost: bool) -> None:
    if lost:
        raise SinkError("The store did not answer in time.")


class _AliveHere:
    """The runs of the process of this thread's actor that have not ended."""

    def __init__(self, others: set[str]) -> None:
        self._others = others

    def _set(self) -> set[str]:
        actor = here()
        return self._others if actor is None else actor.process.alive

    def add(self, run_id: str) -> None:
        self._set().add(run_id)

    def discard(self, run_id: str) -> None:
        self._set().discard(run_id)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._set()


class _SameThread:
    """An executor that has done what it was given when `submit` returns."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, call: Callable[P, R], *args: P.args, **named: P.kwargs) -> Future[R]:
        done: Future[R] = Future()
        try:
            done.set_result(call(*args, **named))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait: bool = True) -> None: ...


async def _run_sync(call: Callable[..., R], *args: object, **_: object) -> R:
    return call(*args)


@lru_cache(4096)
def _unsealed(content: bytes, key: bytes) -> dict[str, object]:
    return _UNSEAL(content, key)


def _unseal(content: bytes, key: bytes) -> dict[str, object]:
    """What was proved before is not proved again: that takes a third of the time of a schedule."""
    return dict(_unsealed(content, key))


_UNSEAL: Final = _config.unseal


@contextmanager
def processes(table: Mapping[int, Process], maintenance: Process) -> Iterator[None]:
    """Let the repository's code see these processes, by pid, and keep to the thread that calls it.

    Args:
        table: All processes.
        maintenance: That of a thread that is no actor's.
    """

    def this_process() -> dict[str, object]:
        actor = here()
        return (maintenance if actor is None else actor.process).fields()

    def exists(pid: int) -> bool:
        return pid in table and table[pid].there

    with ExitStack() as stack:
        for module, name, value in (
            (_runs, "_alive", _AliveHere(maintenance.alive)),
            (_runs, "_this_process", this_process),
            (_runs, "_exists", exists),
            (_runs, "_started", str),
            (_packs, "ThreadPoolExecutor", _SameThread),
            (_config, "unseal", _unseal),
            (trio.to_thread, "run_sync", _run_sync),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield
