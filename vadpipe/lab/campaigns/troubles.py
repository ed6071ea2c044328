"""What scenarios are drawn from: calls and tasks of the vSphere API, and what goes wrong at them.

Every run has one fault of its own, taken in turn from all kinds at all calls and in all tasks, so that a campaign
of some thousand runs meets each of them several times; what else happens beside it is drawn freely. A moment is the
nth call of one method, never a time, nor a count over all methods, whose order is that of threads.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from ..vcenter.faults.injection import Delay, Drop, Failure, Refusal
from ..vcenter.faults.kinds import FAULT_KINDS, fault_maker

EVENTS = ("restart", "expire", "cut")
MOVES = ("vmotion", "storage vmotion", "both vmotions")
READ = "read"  # of a disk: no call of the vSphere API

Moment = tuple[str, int]


@dataclass(frozen=True)
class Trouble:
    """One failure of a run: what happens at the `nth` call of `method`, or in the task that it starts."""

    name: str
    method: str
    failure: Failure | str
    nth: int
    in_task: bool = False
    after: bool = False


def moments(counts: Mapping[str, int]) -> tuple[Moment, ...]:
    """Each call as often as it is made: where something may strike."""
    return tuple((call, nth) for call, count in counts.items() for nth in range(1, count + 1))


@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of the vSphere API that a run makes, and what may go wrong at them.

    Args:
        counts: About how often each is made, counted in a run without trouble; those that only trouble leads to are
            made once.
        tasks: The calls that start tasks, and tasks that start by themselves.
        delays_s: How long a task may take.
        moves: What may move the VM.
    """

    counts: Mapping[str, int]
    tasks: tuple[str, ...]
    delays_s: tuple[float, ...]
    moves: tuple[str, ...] = ()

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        return moments(self.counts)

    def fault_in_turn(self, seed: int, number: int, chance: random.Random) -> Trouble:
        """The fault of run `number`."""
        turns = _turns(self, seed)
        method, in_task, kind = turns[number % len(turns)]
        count = self.counts.get(method, 1)
        nth = 1 if in_task and count == 1 else chance.randint(1, count)
        return Trouble(kind, method, fault_maker(kind), nth, in_task=in_task, after=chance.random() < 0.3)

    def trouble(self, chance: random.Random) -> Trouble:
        """Anything that may go wrong."""
        moved = ("move",) if self.moves else ()
        kind = chance.choice(("fault", "drop", "refusal", "event", *moved, "delay"))
        after = chance.random() < 0.3
        method, nth = chance.choice(self.moments)
        if kind == "fault":
            fault = chance.choice(FAULT_KINDS)
            return Trouble(fault, method, fault_maker(fault), nth, after=after)
        if kind == "delay":
            return Trouble(
                "hang", chance.choice(self.tasks), Delay(chance.choice(self.delays_s)), 1, in_task=True
            )
        if kind == "drop":
            drop = chance.choice(list(Drop))
            return Trouble(f"drop {drop.value}", method, drop, nth)
        if kind == "refusal":
            return Trouble("503", method, Refusal.UNAVAILABLE, nth)
        if kind == "move" and chance.random() < 0.3:
            return Trouble(move := chance.choice(self.moves), READ, move, 1)
        event = chance.choice(self.moves if kind == "move" else EVENTS)
        return Trouble(event, method, event, nth, after=after)


@cache
def _turns(calls: Calls, seed: int) -> tuple[tuple[str, bool, str], ...]:
    """Every kind of fault at every call and in every task, shuffled."""
    places = [*((call, False) for call in calls.counts), *((task, True) for task in calls.tasks)]
    turns = [(method, in_task, kind) for method, in_task in places for kind in FAULT_KINDS]
    random.Random(seed).shuffle(turns)
    return tuple(turns)
