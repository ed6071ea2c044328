"""The share of the campaign's runs that read through `vadpipe.vddk`: the VM locked, its disks hot-added.

What goes wrong there happens inside the library, the lab's stand-in, which has knobs for it: variables of the
environment. They hold for one run: a process has one run at a time, and `surroundings` gives the variables back. A
moment is the nth call of one kind in one process of the library, so it is the same in every play of the seed; in
the stand-in's words "end:1", or "end:1+" when that call has had its effect.

A kill strikes while a call of the library hangs: the stand-in leaves a marker when it begins to, and whoever
started the run waits for that.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pipeline import Buffer, BufferPool, Extents
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.codes import CODES
from vadpipe.vddk.disk import Vddk, VddkDisk
from vadpipe.vsphere.journal import relocation_lock as relocation

from ..vcenter.state.outside import hot_added, relocation_lock

SHARE = 0.1
# Every counted call of a process that reads a disk or makes a call about the VM, and about how often it is made.
VDDK_CALLS: Mapping[str, int] = {
    "init": 1, "connect": 1, "open": 1, "info": 1, "query": 2, "read": 2, "wait": 1, "close": 1, "disconnect": 1,
    "cleanup": 1, "prepare": 1, "end": 1,
}  # fmt: skip
# Those of them that change something outside.
_EFFECTS = ("cleanup", "prepare", "end")
ACTIONS = ("fault", "crash", "hang")
ANOTHER = "another product"  # the identity of a lock that is not ours
VDDK_MOMENTS = (
    *(f"{call}:{nth}" for call, count in VDDK_CALLS.items() for nth in range(1, count + 1)),
    *(f"{call}:1+" for call in _EFFECTS),
)
# How long a call may hang: a process of the library starts in tenths of a second, on a busy machine too.
_HANGS_S = 2.0
_PATIENT_S = 20.0  # a call that hangs is repeated once; both must fit into ending.HANGS_AFTER_S
_LOCK_WITHIN_S = 0.3


@dataclass(frozen=True)
class VddkTrouble:
    """At this moment of a process: an error `code`, a crash, or no end of the call."""

    action: str
    moment: str
    code: int = 0

    @property
    def name(self) -> str:
        return f"vddk {self.action} {self.moment}"

    @property
    def knob(self) -> str:
        return f"{self.moment}:{self.code}" if self.action == "fault" else self.moment


@dataclass(frozen=True)
class VddkScenario:
    """What happens in and around the library.

    `once`: each trouble befalls only the first process that gets there. `killed`: when the run is killed, empty for
    never. `locked_by_another`: somebody else holds the VM's relocation lock, for ever.
    """

    troubles: tuple[VddkTrouble, ...]
    once: bool
    killed: str
    locked_by_another: bool

    @classmethod
    def drawn(cls, seed: str) -> VddkScenario | None:
        """None: this run does not read through VDDK."""
        chance = random.Random(f"{seed} vddk")
        if chance.random() >= SHARE:
            return None
        killed = chance.choice(VDDK_MOMENTS) if chance.random() < 0.25 else ""
        troubles = tuple(_trouble(chance) for _ in range(chance.choice((0, 1, 1, 2))))
        hangs = any(one.action == "hang" for one in troubles)  # every time that would be minutes of waiting
        once = bool(killed) or hangs or chance.random() < 0.5
        return cls(troubles, once, killed, chance.random() < 0.1)


def _trouble(chance: random.Random) -> VddkTrouble:
    action = chance.choice(ACTIONS)
    code = chance.choice(list(CODES)) if action == "fault" else 0
    return VddkTrouble(action, chance.choice(VDDK_MOMENTS), code)


@contextmanager
def surroundings(root: Path, scenario: VddkScenario | None, *, in_trouble: bool) -> Iterator[None]:
    """What the library finds around it, in trouble or in peace, until the end."""
    if scenario is None:
        yield
        return
    variables = {
        "VADPIPE_LAB_ROOT": str(root),
        "VADPIPE_VDDK_HOTADD": "1",
        "XDG_STATE_HOME": str(root / "state"),
    }
    if in_trouble:
        variables |= _knobs(scenario)
        if scenario.once:
            _markers(root).mkdir(exist_ok=True)
            variables["VADPIPE_VDDK_ONCE"] = str(_markers(root))
    with (
        patch.dict(os.environ, variables),
        patch.object(tempfile, "tempdir", str(root)),  # what a killed run forgets there goes with the lab
        patch.object(relocation, "LOCK_WITHIN_S", _LOCK_WITHIN_S),
    ):
        yield


def is_in_fatal_call(root: Path, scenario: VddkScenario) -> bool:
    """Whether the call hangs in which the run is to be killed."""
    marker = f"hang-{scenario.killed.replace(':', '-')}"
    return bool(scenario.killed) and (_markers(root) / marker).exists()


def _knobs(scenario: VddkScenario) -> dict[str, str]:
    troubles = list(scenario.troubles)
    if scenario.killed:
        troubles.append(VddkTrouble("hang", scenario.killed))
    knobs = {
        f"VADPIPE_VDDK_{action.upper()}": ",".join(one.knob for one in troubles if one.action == action)
        for action in ACTIONS
    }
    return {name: knob for name, knob in knobs.items() if knob}


def _markers(root: Path) -> Path:
    return root / "once"


def lock_by_another(root: Path, moref: str) -> None:
    """Lock the VM as another product would."""
    path = root / "locks" / moref
    path.parent.mkdir()
    path.write_text(ANOTHER)


def unlock_by_another(root: Path, moref: str) -> None:
    """End that lock. Until then nobody can tell it from ours, and the journal keeps an intent of ours."""
    (root / "locks" / moref).unlink()


def left_outside(root: Path, moref: str) -> dict[str, list[str]]:
    """What is left of ours: a sentence for each lock and hot-added disk, by what a report has to say of it."""
    holder = relocation_lock(root, moref)
    return {
        "could not be ended": [f"the lock of {holder!r} is left"] if holder not in (None, ANOTHER) else [],
        "hot-added": [f"{name} is left hot-added" for name in hot_added(root, moref)],
    }


@dataclass(frozen=True)
class CampaignVddk(Vddk):
    """VDDK, where `before_read` is called before each read, for what has to happen just then."""

    before_read: Callable[[], None] | None = None

    @asynccontextmanager
    async def _open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[VddkDisk]:
        async with super()._open(access, pool) as disk:
            read = disk.read

            async def after_the_moment(buffer: Buffer, offset: int, wanted: Extents) -> None:
                if self.before_read is not None:
                    self.before_read()
                await read(buffer, offset, wanted)

            with patch.object(disk, "read", after_the_moment):
                yield disk


def vddk_reader(
    libdir: Path, scenario: VddkScenario, before_read: Callable[[], None] | None = None
) -> CampaignVddk:
    """What reads the disks of such a run."""
    hangs = any(one.action == "hang" for one in scenario.troubles)
    timeout_s = _HANGS_S if hangs and not scenario.killed else _PATIENT_S
    return CampaignVddk(
        libdir,
        transports="hotadd:nbdssl",
        call_timeout_s=timeout_s,
        open_timeout_s=timeout_s,
        end_timeout_s=0.5,
        restarts=1,
        restart_pause_s=0.01,
        before_read=before_read,
    )
