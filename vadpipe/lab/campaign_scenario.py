"""What one run of the campaign has to go through: drawn from its seed, all of it.

Every run has one fault of its own, taken in turn from all kinds at all calls and in all tasks, so that a campaign
of some thousand runs meets each of them several times; what else happens beside it is drawn freely. A moment is the
nth call of one method, never a time, nor a count over all methods, whose order is that of threads.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from stages import Quiesce

from .campaign_vddk import VddkScenario
from .vcenter.faults.injection import CONSOLIDATION, Delay, Drop, Failure, Refusal
from .vcenter.faults.kinds import FAULT_KINDS, fault_maker

# Every call that a capture makes, and about how often: counted in a run without trouble; those that only trouble
# leads to are made once.
CALLS: Mapping[str, int] = {
    "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "CurrentTime": 1, "RetrievePropertiesEx": 22, "Fetch": 5,
    "CreateContainerView": 2, "DestroyView": 2, "HasPrivilegeOnEntities": 3, "FindByUuid": 1,
    "CreatePropertyCollector": 5, "CreateFilter": 5, "WaitForUpdatesEx": 8, "DestroyPropertyCollector": 5,
    "SearchDatastore_Task": 2, "CreateSnapshotEx_Task": 1, "RemoveSnapshot_Task": 1, "ReconfigVM_Task": 1,
    "ConsolidateVMDisks_Task": 1, "QueryEvents": 1, "/folder": 1,
}  # fmt: skip
TASKS = ("CreateSnapshotEx_Task", "RemoveSnapshot_Task", "ConsolidateVMDisks_Task", CONSOLIDATION)
EVENTS = ("restart", "expire", "cut")
MOVES = ("vmotion", "storage vmotion", "both vmotions")
READ = "read"  # of a disk: no call of the vSphere API
# The last is longer than a removal may take in the campaign.
_DELAYS_S = (0.05, 0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 7.0)
# Each call as often as it is made: where an event or a kill may strike.
_MOMENTS = tuple((method, nth) for method, count in CALLS.items() for nth in range(1, count + 1))


@dataclass(frozen=True)
class Trouble:
    """One failure of a run: what happens at the `nth` call of `method`, or in the task that it starts."""

    name: str
    method: str
    failure: Failure | str
    nth: int
    in_task: bool = False
    after: bool = False


@dataclass(frozen=True)
class Scenario:
    """Everything that the seed of a run decides.

    `killed`: at which call of the vSphere API, as (method, nth); None: at none. `vddk`: what happens in VDDK; None:
    the disks are read without it.
    """

    seed: str
    disks: int
    foreign: int
    quiesce: Quiesce
    troubles: tuple[Trouble, ...]
    killed: tuple[str, int] | None
    vddk: VddkScenario | None

    @classmethod
    def playable(cls, seed: int, number: int, libdir: Path | None) -> Scenario:
        """The same, all of it without VDDK where there is none."""
        drawn = cls.drawn(seed, number)
        return drawn if libdir else replace(drawn, vddk=None)

    @property
    def may_be_killed(self) -> bool:
        return bool(self.killed or (self.vddk and self.vddk.killed))

    @property
    def names(self) -> list[str]:
        """What each trouble is called."""
        in_vddk = self.vddk.troubles if self.vddk else ()
        return [one.name for one in self.troubles] + [one.name for one in in_vddk]

    @classmethod
    def drawn(cls, seed: int, number: int) -> Scenario:
        name = f"{seed}/{number}"
        chance = random.Random(name)
        quiesce = chance.choice(
            [
                Quiesce.none(),
                Quiesce.application(retries=1, retry_after_s=0),
                Quiesce.application(policy="try", retries=0),
                Quiesce.file_system(policy="try", retries=1, retry_after_s=0),
            ]
        )
        killed = chance.choice(_MOMENTS) if chance.random() < 0.1 else None
        others = tuple(_trouble(chance) for _ in range(chance.choice((0, 0, 1, 2, 3))))
        troubles = (_fault_in_turn(seed, number, chance), *others)
        disks, foreign = chance.choice((1, 2)), chance.choice((0, 0, 1, 2))
        return cls(name, disks, foreign, quiesce, troubles, killed, VddkScenario.drawn(name))


@cache
def _turns(seed: int) -> tuple[tuple[str, bool, str], ...]:
    """Every kind of fault at every call and in every task, shuffled."""
    places = [*((call, False) for call in CALLS), *((task, True) for task in TASKS)]
    turns = [(method, in_task, kind) for method, in_task in places for kind in FAULT_KINDS]
    random.Random(seed).shuffle(turns)
    return tuple(turns)


def _fault_in_turn(seed: int, number: int, chance: random.Random) -> Trouble:
    turns = _turns(seed)
    method, in_task, kind = turns[number % len(turns)]
    nth = 1 if in_task else chance.randint(1, CALLS[method])
    return Trouble(kind, method, fault_maker(kind), nth, in_task=in_task, after=chance.random() < 0.3)


def _trouble(chance: random.Random) -> Trouble:
    kind = chance.choice(("fault", "drop", "refusal", "event", "move", "delay"))
    after = chance.random() < 0.3
    method, nth = chance.choice(_MOMENTS)
    if kind == "fault":
        fault = chance.choice(FAULT_KINDS)
        return Trouble(fault, method, fault_maker(fault), nth, after=after)
    if kind == "delay":
        return Trouble("hang", chance.choice(TASKS), Delay(chance.choice(_DELAYS_S)), 1, in_task=True)
    if kind == "drop":
        drop = chance.choice(list(Drop))
        return Trouble(f"drop {drop.value}", method, drop, nth)
    if kind == "refusal":
        return Trouble("503", method, Refusal.UNAVAILABLE, nth)
    if kind == "move" and chance.random() < 0.3:
        return Trouble(move := chance.choice(MOVES), READ, move, 1)
    event = chance.choice(MOVES if kind == "move" else EVENTS)
    return Trouble(event, method, event, nth, after=after)
