"""What one run of the restores into a new VM has to go through: drawn from its seed, all of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .disks import DiskAction, DiskTrouble
from .troubles import Calls, Moment, Trouble, moments

CALLS = Calls(
    {
        "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "RetrievePropertiesEx": 11, "Fetch": 1,
        "CreateContainerView": 2, "DestroyView": 2, "HasPrivilegeOnEntities": 3, "FindByUuid": 1,
        "CreatePropertyCollector": 5, "CreateFilter": 5, "WaitForUpdatesEx": 9, "DestroyPropertyCollector": 5,
        "CreateVM_Task": 1, "ReconfigVM_Task": 3, "PowerOnVM_Task": 1, "Destroy_Task": 1, "/folder": 2,
        "ImportVApp": 1, "HttpNfcLeaseProgress": 2, "HttpNfcLeaseGetManifest": 1, "HttpNfcLeaseComplete": 1,
        "HttpNfcLeaseAbort": 1, "/nfc": 2,
    },
    tasks=("CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task", "Destroy_Task"),
    delays_s=(0.05, 0.05, 0.5, 5.0),
)  # fmt: skip
# Calls of the writer of disks: no calls of the vSphere API.
DISK_CALLS: Mapping[str, int] = {"open": 4, "write": 6, "flush": 2, "read": 6, "close": 4}
DISK_ACTIONS: tuple[DiskAction, ...] = ("fails", "loses its effect", "is full")
# What somebody else does to the new VM, or before it.
MEDDLING = ("takes the name", "switches it on", "renames it", "takes a snapshot", "deletes it")
_DISK_MOMENTS = moments(DISK_CALLS)


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
    killed: Moment | None

    @property
    def names(self) -> list[str]:
        """What each trouble is called."""
        meddling = [f"somebody {self.meddling[0]}"] if self.meddling else []
        return [one.name for one in self.troubles] + [one.name for one in self.disk] + meddling

    @classmethod
    def drawn(cls, seed: int, number: int) -> RestoreScenario:
        name = f"restore {seed}/{number}"
        chance = random.Random(name)
        others = tuple(CALLS.trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        disk = tuple(_disk_trouble(chance) for _ in range(chance.choice((0, 0, 0, 1, 1, 2))))
        meddling = (
            (chance.choice(MEDDLING), *chance.choice(CALLS.moments)) if chance.random() < 0.15 else None
        )
        killed = chance.choice(CALLS.moments + _DISK_MOMENTS) if chance.random() < 0.2 else None
        return cls(
            name,
            "replace" if chance.random() < 0.3 else "copy",
            "lease" if chance.random() < 0.3 else "vddk",
            chance.random() < 0.5,
            chance.random() < 0.2,
            (CALLS.fault_in_turn(seed, number, chance), *others),
            disk,
            meddling,
            killed,
        )


def _disk_trouble(chance: random.Random) -> DiskTrouble:
    action = chance.choice(DISK_ACTIONS)
    call, nth = chance.choice(_DISK_MOMENTS)
    if action == "loses its effect":
        call, nth = "write", chance.randint(1, DISK_CALLS["write"])
    if action == "is full":
        call = chance.choice(("write", "flush"))
        nth = chance.randint(1, DISK_CALLS[call])
    return DiskTrouble(action, call, nth)
