"""Restores into a new VM where everything fails, and what they leave behind.

A VM with two disks was backed up. Each run restores its point into a new VM while faults strike at every call and
in every task, connections break, the server restarts, disks fail, fill up or lose what was written, somebody else
meddles with the new VM, and the run is killed. Then the lab is calm, and what the next start does is done. After it
there is either a VM that is whole, or nothing of ours: no VM, no file, no intent. A VM that is not whole is never
switched on by vadpipe, and one that somebody uses is kept and named. Then one more restore has to succeed.

`--seed S --only N` plays run N again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from pipeline import MiB
from sinks.new_vm import NewVm
from stages import Journal, Vcenter
from vadpipe.vsphere.vm.new import TOKEN
from vadpipe.vsphere.vm.sweep import Outcome, sweep

from ..certificate import load_or_create
from ..disks import LabDisk
from ..vcenter.faults.injection import Event
from ..vcenter.state.inventory import VmState
from .disks import DiskCalls, LabWriter
from .ending import Ending, attempt, ending, restored, unclean
from .lab import CampaignLab, digest_of, new_root, server_settings
from .restores_scenario import CALLS, RestoreScenario
from .running import Ended, Tally, play
from .source import backed_up

NEW = "web01-restored"


def restores(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time; None: two per core."""
    with tempfile.TemporaryDirectory(prefix="vadpipe-restores-") as directory:
        identity = Path(directory)
        load_or_create(identity, "127.0.0.1")
        with backed_up(identity) as source:
            backed = Backed(source.repository, source.digests)
        work = partial(one_run, identity, backed, seed)
        return play(work, lambda number: RestoreScenario.drawn(seed, number).names, runs, jobs)


@dataclass(frozen=True)
class Backed:
    """A repository with a point of the VM, and the digests of its disks."""

    repository: Path
    digests: list[str]


class RestoreLab(CampaignLab):
    """A vCenter to restore into, with a VM of somebody else's."""

    def __init__(self, root: Path, scenario: RestoreScenario) -> None:
        super().__init__(root)
        self.scenario = scenario
        self.vcenter.boot.delay_s = 0.01
        self.meddled: list[str] = []
        directory = self.vcenter.datastore("datastore1") / "db01"
        self.foreign = self.vcenter.register_vm(
            directory, "db01", [LabDisk.create(directory, "db01", 1 * MiB)], power="poweredOff"
        )
        self.others = {self.foreign}

    def arm_all(self) -> None:
        """Set up everything that the scenario wants to go wrong."""
        killed = self.scenario.killed
        self.arm(self.scenario.troubles, killed if killed and killed[0] in CALLS.counts else None)
        if self.scenario.meddling:
            what, method, nth = self.scenario.meddling
            self.vcenter.inject(method, Event(partial(self._meddle, what)), nth)

    @property
    def ours(self) -> list[VmState]:
        """The VMs that restores made."""
        return [vm for vm in self.vcenter.vms if TOKEN in vm.extra_config]

    def content(self, vm: VmState) -> list[str]:
        """The digests of the disks of a VM."""
        return [digest_of(disk) for disk in self.vcenter.disks(vm.moref)]

    def directories(self) -> set[str]:
        """The directories in all datastores."""
        stores = (self.root / "datastores").iterdir()
        return {place.name for store in stores for place in store.iterdir() if not place.name.startswith(".")}

    def _meddle(self, what: str) -> None:
        """What somebody else does to the new VM; nothing where there is none yet."""
        ours = self.ours
        if what == "takes the name":
            if ours:
                return
            directory = self.vcenter.datastore("datastore1") / "taken"
            self.others.add(self.vcenter.register_vm(directory, NEW, [], power="poweredOff"))
        elif not ours:
            return
        elif what == "deletes it":
            self.vcenter.delete_vm(ours[0].moref)
        elif what == "switches it on":
            self.vcenter.change(ours[0].moref, power="poweredOn")
        elif what == "renames it":
            self.vcenter.change(ours[0].moref, name="somebody's")
        else:
            self.vcenter.take_snapshot(ours[0].moref, "somebody's")
        self.meddled.append(what)


def target(
    root: Path, scenario: RestoreScenario, server: Vcenter, calls: DiskCalls, name: str = NEW
) -> NewVm:
    return NewVm(
        server,
        writer=LabWriter(root, calls),
        name=name,
        mode=scenario.mode,
        via=scenario.via,
        power_on=scenario.power_on,
        prove="20%" if scenario.sampled else "all",
        heartbeat_within_s=2.0,
        journal=Journal(root / "journal"),
    )


def one_run(identity: Path, backed: Backed, seed: int, number: int) -> Ended:
    """One run in trouble, what the next start does, and one in peace."""
    scenario = RestoreScenario.drawn(seed, number)
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = RestoreLab(new_root(Path(directory, "lab"), identity), scenario)
        with lab.vcenter:
            lab.arm_all()
            if scenario.killed:
                ended = lab.run_killed(_in_child, lab.root, backed, seed, number, lab.address)
            else:
                ended = _in_trouble(lab, backed)
            lab.settle()
            wrong = ended.wrong + _unfinished(lab, backed, ended.told, killed=bool(scenario.killed))
            told = ended.told + trio.run(_next_start, lab)
            wrong += _left(lab, backed, told) + _in_peace(lab, backed)
    return Ended(number, ended.outcome, wrong)


def _in_trouble(lab: RestoreLab, backed: Backed) -> Ending:
    into = target(lab.root, lab.scenario, lab.settings(), DiskCalls(lab.scenario.disk))
    ended = ending(attempt(partial(restored, backed.repository, into)))
    if ended.outcome in ("done", "attention") and not lab.ours and "deletes it" not in lab.meddled:
        return replace(ended, wrong=["it is done, and no VM is there"])
    return ended


def _in_child(root: Path, backed: Backed, seed: int, number: int, address: tuple[str, int, str]) -> None:
    scenario = RestoreScenario.drawn(seed, number)
    into = target(root, scenario, server_settings(*address), DiskCalls(scenario.disk, scenario.killed))
    trio.run(restored, backed.repository, into)


def _is_whole(lab: RestoreLab, backed: Backed, vm: VmState) -> bool:
    """Whether a VM has what the point has. What a sample did not read may differ, as the report says."""
    content = lab.content(vm)
    lossy = lab.scenario.sampled and any(one.action == "loses its effect" for one in lab.scenario.disk)
    return len(content) == len(backed.digests) if lossy else content == backed.digests


# What a report says of a VM that is left and not whole.
_TELLING = ("could not be destroyed", "is kept", "was created is not known")


def _unfinished(lab: RestoreLab, backed: Backed, told: str, *, killed: bool) -> list[str]:
    """What is wrong right after the run: a VM that is on or left without a word, and is not whole."""
    wrong = []
    for vm in lab.ours:
        if _is_whole(lab, backed, vm):
            continue
        if vm.power != "poweredOff" and "switches it on" not in lab.meddled:
            wrong.append("a VM that is not whole is on")
        if not killed and not any(words in told for words in _TELLING):
            wrong.append(f"a VM that is not whole is left, and nobody says so: {told}")
    return wrong


async def _next_start(lab: RestoreLab) -> str:
    """What the next start of vadpipe does when nobody else is at work any more; what it says."""
    journal = lab.journal
    for intent in journal.intents():  # what they announced may no longer be on its way
        journal.write(replace(intent, created="2001-01-01T00:00:00+00:00"))
    async with lab.settings().connect() as session:
        swept = await sweep(session, journal)
    return " ".join(str(one) for one in swept if one.outcome is Outcome.KEPT)


def _left(lab: RestoreLab, backed: Backed, told: str) -> list[str]:
    """What is left that must not be."""
    wrong, kept = [], {"db01", "taken"}
    for vm in lab.ours:
        kept.add(Path(vm.directory).name)
        if _is_whole(lab, backed, vm):
            continue
        if not lab.meddled:
            wrong.append(f"a VM that is not whole is left: {told}")
        elif lab.scenario.meddling and vm.name not in told and NEW not in told:
            wrong.append(f"a VM that somebody uses is left, and nobody names it: {told}")
    wrong += [f"the directory {name} is left" for name in sorted(lab.directories() - kept)]
    there = {vm.moref for vm in lab.vcenter.vms}
    wrong += [f"{moref} of somebody else's is gone" for moref in lab.others - there]
    waiting = lab.journal.intents()
    if waiting and not (lab.meddled and lab.ours):
        wrong += [f"the journal still names the {intent.title}" for intent in waiting]
    return wrong


def _in_peace(lab: RestoreLab, backed: Backed) -> list[str]:
    """What is wrong with a restore that nothing disturbs."""
    name = f"{NEW}-2"
    into = replace(
        target(lab.root, lab.scenario, lab.settings(), DiskCalls(), name), mode="copy", prove="all"
    )
    wrong = unclean(attempt(partial(restored, backed.repository, into)))
    made = [vm for vm in lab.ours if vm.name == name]
    if not wrong and [lab.content(vm) for vm in made] != [backed.digests]:
        wrong.append("the clean restore has other bytes")
    return wrong
