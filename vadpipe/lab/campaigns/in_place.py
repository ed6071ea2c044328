"""Restores over a VM where everything fails.

A VM with two disks was backed up, and its guest wrote on. In each run its point is restored over it while faults
strike at every call and in every task, connections break, the server restarts, disks fail or lose what was written,
and the run is killed. Whatever is left then: a VM that is not whole is off, marked, named by the journal, and no
change id of the point is good for it any more. What the next start does is done; then one more restore has to
succeed, and nothing of it is left.

`--seed S --only N` plays run N again.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from pipeline import MiB
from sinks.in_place import OverVm
from stages import Journal, Vcenter
from vadpipe.vsphere.journal.intents import IntentKind
from vadpipe.vsphere.vm.mark import SETTING
from vadpipe.vsphere.vm.sweep import Outcome, Swept, sweep

from ..certificate import load_or_create
from ..disks import LabDisk
from ..vcenter.state.inventory import VmState
from .disks import DiskCalls, DiskTrouble, LabWriter
from .ending import Ending, attempt, ending, restored, unclean
from .lab import CampaignLab, digest_of, server_settings
from .running import Ended, Tally, play
from .source import CAPACITY, VM, backed_up
from .troubles import Calls, Moment, Trouble, moments

CALLS = Calls(
    {
        "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "RetrievePropertiesEx": 16, "CreateContainerView": 1,
        "DestroyView": 1, "FindByUuid": 1, "CreatePropertyCollector": 6, "CreateFilter": 6, "WaitForUpdatesEx": 9,
        "DestroyPropertyCollector": 6, "ReconfigVM_Task": 4, "CreateSnapshotEx_Task": 1, "RemoveSnapshot_Task": 1,
    },
    tasks=("ReconfigVM_Task", "CreateSnapshotEx_Task", "RemoveSnapshot_Task"),
    delays_s=(0.05, 0.5, 5.0),
)  # fmt: skip
# Calls of the writer of disks: no calls of the vSphere API.
DISK_CALLS: Mapping[str, int] = {"open": 4, "read": 8, "write": 4, "flush": 2, "close": 4}
_DISK_MOMENTS = moments(DISK_CALLS)


def in_place(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time; None: two per core."""
    with tempfile.TemporaryDirectory(prefix="vadpipe-in-place-") as directory:
        identity = Path(directory)
        load_or_create(identity, "127.0.0.1")
        work = partial(one_run, identity, back_up(identity), seed)
        return play(work, lambda number: InPlaceScenario.drawn(seed, number).names, runs, jobs)


@dataclass(frozen=True)
class InPlaceScenario:
    """Everything that the seed of a run decides. `killed`: at which call of the API or of the writer."""

    seed: str
    troubles: tuple[Trouble, ...]
    disk: tuple[DiskTrouble, ...]
    killed: Moment | None

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.troubles] + [one.name for one in self.disk]

    @classmethod
    def drawn(cls, seed: int, number: int) -> InPlaceScenario:
        name = f"in place {seed}/{number}"
        chance = random.Random(name)
        first = CALLS.fault_in_turn(seed, number, chance)
        others = tuple(CALLS.trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        disk = tuple(_disk_trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        killed = chance.choice(CALLS.moments + _DISK_MOMENTS) if chance.random() < 0.35 else None
        return cls(name, (first, *others), disk, killed)


def _disk_trouble(chance: random.Random) -> DiskTrouble:
    if chance.random() < 0.3:
        return DiskTrouble("loses its effect", "write", chance.randint(1, DISK_CALLS["write"]))
    return DiskTrouble("fails", *chance.choice(_DISK_MOMENTS))


@dataclass(frozen=True)
class Backed:
    """A lab as it was after the backup and the guest's later writes, its repository, and the digests of its disks.

    `tracking`: the identity of change tracking in the point, by disk.
    """

    source: Path
    repository: Path
    then: list[str]
    later: list[str]
    tracking: list[str]


def back_up(directory: Path) -> Backed:
    """Back the VM up, let its guest write on, and shut it down."""
    with backed_up(directory, change_tracking=True) as source:
        for disk in source.disks:
            disk.write(64 * 1024, bytes(range(250)) * 400)
            disk.write(1 * MiB, bytes(range(250)) * 400)  # where the point has zeros
            disk.write(2 * MiB + 64 * 1024, bytes(20_000))
            disk.write(CAPACITY - 512, b"later".ljust(512))
        source.lab.vcenter.change(source.moref, power="poweredOff")
        tracking = [(disk.change_id or "").partition("/")[0] for disk in source.disks]
        later = [digest_of(disk) for disk in source.disks]
        return Backed(source.lab.root, source.repository, source.digests, later, tracking)


class InPlaceLab(CampaignLab):
    """A vCenter with the VM, off, as `source` has it."""

    def __init__(self, root: Path, source: Path) -> None:
        shutil.copytree(source, root)
        super().__init__(root)

    @property
    def vm(self) -> VmState:
        return next(vm for vm in self.vcenter.vms if vm.name == VM)

    def disks(self) -> list[LabDisk]:
        return [*self.vcenter.disks(self.vm.moref)]

    def content_now(self) -> list[str]:
        return [digest_of(disk) for disk in self.disks()]

    def target(self, calls: DiskCalls) -> OverVm:
        return over(self.root, self.settings(), calls)


def over(root: Path, server: Vcenter, calls: DiskCalls) -> OverVm:
    return OverVm(server, writer=LabWriter(root, calls), allow=True, journal=Journal(root / "journal"))


def one_run(identity: Path, backed: Backed, seed: int, number: int) -> Ended:
    """One run in trouble, what the next start does, and one in peace."""
    scenario = InPlaceScenario.drawn(seed, number)
    killed = scenario.killed
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = InPlaceLab(Path(directory, "lab"), backed.source)
        with lab.vcenter:
            lab.arm(scenario.troubles, killed if killed and killed[0] in CALLS.counts else None)
            if killed:
                ended = lab.run_killed(_in_child, lab.root, backed, seed, number, lab.address)
            else:
                ended = _in_trouble(lab, backed, scenario)
            lab.settle()
            wrong = ended.wrong + _state(lab, backed, done=ended.outcome in ("done", "attention"))
            wrong += _next_start(lab, backed)
            wrong += _in_peace(lab, backed)
    return Ended(number, ended.outcome, wrong)


def _in_trouble(lab: InPlaceLab, backed: Backed, scenario: InPlaceScenario) -> Ending:
    result = attempt(partial(restored, backed.repository, lab.target(DiskCalls(scenario.disk))))
    ended = ending(result)
    begun = not isinstance(result, list) and result.failures
    if begun and not any(saying in ended.told for saying in ("run the same restore again", "was written")):
        return replace(ended, wrong=[*ended.wrong, f"nobody says what the VM is now: {ended.told}"])
    return ended


def _in_child(root: Path, backed: Backed, seed: int, number: int, address: tuple[str, int, str]) -> None:
    scenario = InPlaceScenario.drawn(seed, number)
    into = over(root, server_settings(*address), DiskCalls(scenario.disk, scenario.killed))
    trio.run(restored, backed.repository, into)


def _state(lab: InPlaceLab, backed: Backed, *, done: bool) -> list[str]:
    """What is wrong with the VM now, whatever happened to it."""
    wrong, now = [], lab.content_now()
    if lab.vm.power != "poweredOff":
        wrong.append("the VM is on")
    if done and now != backed.then:
        wrong.append("it is done, and the disks are not those of the point")
    if now != backed.later:
        named = [one for one in lab.journal.intents() if one.kind is IntentKind.ROLLBACK]
        if now != backed.then and not named:
            wrong.append("the VM is mixed, and the journal does not name it")
        if now != backed.then and SETTING not in lab.vm.extra_config:
            wrong.append("the VM is mixed, and it is not marked")
        for disk, tracking in zip(lab.disks(), backed.tracking, strict=True):
            if (disk.change_id or "").partition("/")[0] == tracking:
                wrong.append(f"a change id of the point is still good for {disk.name}")
    return wrong


def _next_start(lab: InPlaceLab, backed: Backed) -> list[str]:
    """What is wrong after the next start of vadpipe, when nobody else is at work any more."""

    async def start() -> list[Swept]:
        for intent in lab.journal.intents():  # what they announced may no longer be on its way
            lab.journal.write(replace(intent, created="2001-01-01T00:00:00+00:00"))
        async with lab.settings().connect() as session:
            return await sweep(session, lab.journal)

    swept = trio.run(start)
    wrong = _state(lab, backed, done=False)
    kept = [one for one in swept if one.outcome is Outcome.KEPT]
    if lab.content_now() not in (backed.then, backed.later) and not kept:
        wrong.append("the VM is mixed, and the next start does not say so")
    wrong += [f"kept: {one}" for one in kept if one.intent.kind is not IntentKind.ROLLBACK]
    if not kept:
        wrong += _clean(lab)
    return wrong


def _clean(lab: InPlaceLab) -> list[str]:
    """What of a restore is left, where nothing may be."""
    wrong = [f"the journal still names the {intent.title}" for intent in lab.journal.intents()]
    wrong += [f"{path.name} is left" for path in lab.journal.directory.glob("*.rollback.json")]
    if SETTING in lab.vm.extra_config:
        wrong.append("the VM is still marked")
    if lab.vm.snapshots:
        wrong.append("a snapshot is left")
    if not lab.vm.change_tracking:
        wrong.append("change tracking was on before, and is off")
    return wrong


def _in_peace(lab: InPlaceLab, backed: Backed) -> list[str]:
    """What is wrong with a restore that nothing disturbs."""
    wrong = unclean(attempt(partial(restored, backed.repository, lab.target(DiskCalls()))))
    return wrong + _state(lab, backed, done=True) + _clean(lab)
