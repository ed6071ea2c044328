"""What one run of the backups has to go through: drawn from its seed, all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from stages import Quiesce

from ..vcenter.faults.injection import CONSOLIDATION
from .troubles import MOVES, Calls, Moment, Trouble
from .vddk import VddkScenario

CALLS = Calls(
    {
        "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "CurrentTime": 1, "RetrievePropertiesEx": 22,
        "Fetch": 5, "CreateContainerView": 2, "DestroyView": 2, "HasPrivilegeOnEntities": 3, "FindByUuid": 1,
        "CreatePropertyCollector": 5, "CreateFilter": 5, "WaitForUpdatesEx": 8, "DestroyPropertyCollector": 5,
        "SearchDatastore_Task": 2, "CreateSnapshotEx_Task": 1, "RemoveSnapshot_Task": 1, "ReconfigVM_Task": 1,
        "ConsolidateVMDisks_Task": 1, "QueryEvents": 1, "/folder": 1,
    },
    tasks=("CreateSnapshotEx_Task", "RemoveSnapshot_Task", "ConsolidateVMDisks_Task", CONSOLIDATION),
    # The last is longer than a removal may take in the campaign.
    delays_s=(0.05, 0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 7.0),
    moves=MOVES,
)  # fmt: skip


@dataclass(frozen=True)
class BackupScenario:
    """Everything that the seed of a run decides.

    `killed`: at which call of the vSphere API; None: at none. `vddk`: what happens in VDDK; None: the disks are
    read without it.
    """

    seed: str
    disks: int
    foreign: int
    quiesce: Quiesce
    troubles: tuple[Trouble, ...]
    killed: Moment | None
    vddk: VddkScenario | None

    @classmethod
    def playable(cls, seed: int, number: int, libdir: Path | None) -> BackupScenario:
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
    def drawn(cls, seed: int, number: int) -> BackupScenario:
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
        killed = chance.choice(CALLS.moments) if chance.random() < 0.1 else None
        others = tuple(CALLS.trouble(chance) for _ in range(chance.choice((0, 0, 1, 2, 3))))
        troubles = (CALLS.fault_in_turn(seed, number, chance), *others)
        disks, foreign = chance.choice((1, 2)), chance.choice((0, 0, 1, 2))
        return cls(name, disks, foreign, quiesce, troubles, killed, VddkScenario.drawn(name))
