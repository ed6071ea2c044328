"""What one run of the restore campaign has to go through: drawn from its seed, all of it.

As in the campaign of backups (`campaign_scenario`), every run has one fault in turn from all kinds at all calls and
in all tasks, and what else happens is drawn freely. A moment is the nth call of one method, or of the writer of
disks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .campaign_scenario import EVENTS, Trouble
from .vcenter.faults.injection import Delay, Drop, Refusal
from .vcenter.faults.kinds import FAULT_KINDS, fault_maker

# Every call that a restore makes, and about how often, counted in a run without trouble.
CALLS: Mapping[str, int] = {
    "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "RetrievePropertiesEx": 11, "Fetch": 1,
    "CreateContainerView": 2, "DestroyView": 2, "HasPrivilegeOnEntities": 3, "FindByUuid": 1,
    "CreatePropertyCollector": 5, "CreateFilter": 5, "WaitForUpdatesEx": 9, "DestroyPropertyCollector": 5,
    "CreateVM_Task": 1, "ReconfigVM_Task": 3, "PowerOnVM_Task": 1, "Destroy_Task": 1, "/folder": 2,
    "ImportVApp": 1, "HttpNfcLeaseProgress": 2, "HttpNfcLeaseGetManifest": 1, "HttpNfcLeaseComplete": 1,
    "HttpNfcLeaseAbort": 1, "/nfc": 2,
}  # fmt: skip
TASKS = ("CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task", "Destroy_Task")
# Calls of the writer of disks: no calls of the vSphere API.
DISK_CALLS: Mapping[str, int] = {"open": 4, "write": 6, "flush": 2, "read": 6, "close": 4}
# What somebody else does to the new VM, or before it.
MEDDLING = ("takes the name", "switches it on", "renames it", "takes a snapshot", "deletes it")
_DELAYS_S = (0.05, 0.05, 0.5, 5.0)
_MOMENTS = tuple((method, nth) for method, count in CALLS.items() for nth in range(1, count + 1))
_DISK_MOMENTS = tuple((call, nth) for call, count in DISK_CALLS.items() for nth in range(1, count + 1))

DiskAction = Literal["fails", "loses its effect", "is full"]
DISK_ACTIONS: tuple[DiskAction, ...] = ("fails", "loses its effect", "is full")


@dataclass(frozen=True)
class DiskTrouble:
    """At the `nth` call of the writer: an error, bytes that never arrive, or a full datastore."""

    action: DiskAction
    call: str
    nth: int

    @property
    def name(self) -> str:
        return f"disk {self.call} {self.action}"


@dataclass(frozen=True)
class RestoreScenario:
    """Everything that the seed of a run decides.

    `killed`: at which call of the vSphere API or of the writer ("write", 2); None: at none. `meddling`: what
    somebody else does, and at which call of the API.
    """

    seed: str
    mode: Literal["copy", "replace"]
    via: Literal["vddk", "lease"]
    power_on: bool
    sampled: bool
    troubles: tuple[Trouble, ...]
    disk: tuple[DiskTrouble, ...]
    meddling: tuple[str, str, int] | None
    killed: tuple[str, int] | None

    @property
    def names(self) -> list[str]:
        """What each trouble is called."""
        meddling = [f"somebody {self.meddling[0]}"] if self.meddling else []
        return [one.name for one in self.troubles] + [one.name for one in self.disk] + meddling

    @classmethod
    def drawn(cls, seed: int, number: int) -> RestoreScenario:
        name = f"restore {seed}/{number}"
        chance = random.Random(name)
        others = tuple(_trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        disk = tuple(_disk_trouble(chance) for _ in range(chance.choice((0, 0, 0, 1, 1, 2))))
        meddling = (chance.choice(MEDDLING), *chance.choice(_MOMENTS)) if chance.random() < 0.15 else None
        killed = chance.choice(_MOMENTS + _DISK_MOMENTS) if chance.random() < 0.2 else None
        return cls(
            name,
            "replace" if chance.random() < 0.3 else "copy",
            "lease" if chance.random() < 0.3 else "vddk",
            chance.random() < 0.5,
            chance.random() < 0.2,
            (_fault_in_turn(seed, number, chance), *others),
            disk,
            meddling,
            killed,
        )


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
    nth = chance.randint(1, CALLS[method])
    return Trouble(kind, method, fault_maker(kind), nth, in_task=in_task, after=chance.random() < 0.3)


def _trouble(chance: random.Random) -> Trouble:
    kind = chance.choice(("fault", "drop", "refusal", "event", "delay"))
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
    event = chance.choice(EVENTS)
    return Trouble(event, method, event, nth, after=after)


def _disk_trouble(chance: random.Random) -> DiskTrouble:
    action = chance.choice(DISK_ACTIONS)
    call, nth = chance.choice(_DISK_MOMENTS)
    if action == "loses its effect":
        call, nth = "write", chance.randint(1, DISK_CALLS["write"])
    if action == "is full":
        call = chance.choice(("write", "flush"))
        nth = chance.randint(1, DISK_CALLS[call])
    return DiskTrouble(action, call, nth)
