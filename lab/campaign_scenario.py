"""What one run of the campaign has to go through: drawn from its seed, all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lab.vcenter import Delay, Drop, Refusal
from lab.vcenter.fault_kinds import FAULT_KINDS, fault_maker
from lab.vcenter.injection import ANY, CONSOLIDATION, Failure
from stages import Quiesce

# Every call that a capture makes.
CALLS = (
    "RetrieveServiceContent", "Login", "Logout", "CurrentTime", "RetrievePropertiesEx", "CreateContainerView",
    "DestroyView", "FindByUuid", "CreatePropertyCollector", "CreateFilter", "WaitForUpdatesEx",
    "DestroyPropertyCollector", "SearchDatastore_Task", "CreateSnapshotEx_Task", "RemoveSnapshot_Task",
    "ReconfigVM_Task", "ConsolidateVMDisks_Task", "QueryEvents",
    "/folder",
)  # fmt: skip
TASKS = ("CreateSnapshotEx_Task", "RemoveSnapshot_Task", "ConsolidateVMDisks_Task", CONSOLIDATION)
# The last is longer than a removal may take in the campaign.
_DELAYS_S = (0.05, 0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 7.0)
CALLS_PER_RUN = 60  # about as many as a run makes


@dataclass(frozen=True)
class Trouble:
    """One failure of a run: what happens at the `nth` call of `method`."""

    name: str
    method: str
    failure: Failure | str
    nth: int
    in_task: bool = False
    after: bool = False


@dataclass(frozen=True)
class Scenario:
    """Everything that the seed of a run decides."""

    seed: str
    disks: int
    foreign: int
    quiesce: Quiesce
    troubles: tuple[Trouble, ...]
    killed: bool

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
        killed = chance.random() < 0.1
        troubles = tuple(_trouble(chance) for _ in range(chance.choice((1, 1, 2, 3, 4))))
        return cls(name, chance.choice((1, 2)), chance.choice((0, 0, 1, 2)), quiesce, troubles, killed)


def _trouble(chance: random.Random) -> Trouble:
    kind = chance.choice(("fault", "fault", "task", "task", "drop", "refusal", "event", "delay"))
    after = chance.random() < 0.3
    at = chance.randint(1, 3)
    if kind == "fault":
        fault = chance.choice(FAULT_KINDS)
        return Trouble(fault, chance.choice(CALLS), fault_maker(fault), at, after=after)
    if kind == "task":
        fault = chance.choice(FAULT_KINDS)
        return Trouble(fault, chance.choice(TASKS), fault_maker(fault), 1, in_task=True, after=after)
    if kind == "delay":
        return Trouble("hang", chance.choice(TASKS), Delay(chance.choice(_DELAYS_S)), 1, in_task=True)
    at = chance.randint(1, CALLS_PER_RUN)
    if kind == "drop":
        drop = chance.choice(list(Drop))
        return Trouble(f"drop {drop.value}", ANY, drop, at)
    if kind == "refusal":
        return Trouble("503", ANY, Refusal.UNAVAILABLE, at)
    event = chance.choice(("restart", "restart", "expire", "cut"))
    return Trouble(event, ANY, event, at, after=after)
