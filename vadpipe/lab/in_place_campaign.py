"""`python -m vadpipe.lab.in_place_campaign --runs N --seed S`: restores over a VM where everything fails.

A VM with two disks was backed up, and its guest wrote on. In each run its point is restored over it while faults
strike at every call and in every task, connections break, the server restarts, disks fail or lose what was written,
and the run is killed. Whatever is left then: a VM that is not whole is off, marked, named by the journal, and no
change id of the point is good for it any more. What the next start does is done; then one more restore has to
succeed, and nothing of it is left.

`--seed S --only N` plays run N again.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import click
import numpy as np
import trio

from pipeline import ContractError, Disk, DiskReceipt, Job, MiB, MoverError, Pipeline
from pipeline.errors import leaves
from sinks import IntoRepository, Point, Repository, open_repository
from sinks.in_place import OverVm
from sinks.restoring import RestoreReceipt, restore
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    Journal,
    MarkZeros,
    Quiesce,
    ReadSpans,
    Vcenter,
    VcenterVm,
    Zstd,
)
from vadpipe.vsphere.journal.intents import IntentKind
from vadpipe.vsphere.vm.mark import SETTING
from vadpipe.vsphere.vm.sweep import Outcome, Swept, sweep

from .campaign_kit import LabReader
from .campaign_lab import server_settings
from .campaign_scenario import EVENTS, Trouble
from .certificate import load_or_create
from .disks import LabDisk
from .restore_campaign import PROCESSES, DiskCalls, LabWriter, RestoreLab, digest_of
from .restore_scenario import DiskTrouble
from .vcenter.faults.injection import Delay, Drop, Event, Refusal
from .vcenter.faults.kinds import FAULT_KINDS, fault_maker
from .vcenter.server import LabVcenter
from .vcenter.state.inventory import VmState

VM = "web01"
CAPACITY = 6 * MiB + 512
_HANGS_AFTER_S = 60.0
_JOBS_PER_CORE = 2

# Every call that a restore over a VM makes, and about how often, counted in a run without trouble.
CALLS: Mapping[str, int] = {
    "RetrieveServiceContent": 1, "Login": 1, "Logout": 1, "RetrievePropertiesEx": 16, "CreateContainerView": 1,
    "DestroyView": 1, "FindByUuid": 1, "CreatePropertyCollector": 6, "CreateFilter": 6, "WaitForUpdatesEx": 9,
    "DestroyPropertyCollector": 6, "ReconfigVM_Task": 4, "CreateSnapshotEx_Task": 1, "RemoveSnapshot_Task": 1,
}  # fmt: skip
TASKS = ("ReconfigVM_Task", "CreateSnapshotEx_Task", "RemoveSnapshot_Task")
DISK_CALLS: Mapping[str, int] = {"open": 4, "read": 8, "write": 4, "flush": 2, "close": 4}
_MOMENTS = tuple((call, nth) for call, count in CALLS.items() for nth in range(1, count + 1))
_DISK_MOMENTS = tuple((call, nth) for call, count in DISK_CALLS.items() for nth in range(1, count + 1))


@dataclass(frozen=True)
class InPlaceScenario:
    """Everything that the seed of a run decides. `killed`: at which call of the API or of the writer."""

    seed: str
    troubles: tuple[Trouble, ...]
    disk: tuple[DiskTrouble, ...]
    killed: tuple[str, int] | None

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.troubles] + [one.name for one in self.disk]

    @classmethod
    def drawn(cls, seed: int, number: int) -> InPlaceScenario:
        name = f"in place {seed}/{number}"
        chance = random.Random(name)
        turns = _turns(seed)
        method, in_task, kind = turns[number % len(turns)]
        nth, after = chance.randint(1, CALLS[method]), chance.random() < 0.3
        first = Trouble(kind, method, fault_maker(kind), nth, in_task=in_task, after=after)
        others = tuple(_trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        disk = tuple(_disk_trouble(chance) for _ in range(chance.choice((0, 0, 1, 2))))
        killed = chance.choice(_MOMENTS + _DISK_MOMENTS) if chance.random() < 0.35 else None
        return cls(name, (first, *others), disk, killed)


@cache
def _turns(seed: int) -> tuple[tuple[str, bool, str], ...]:
    """Every kind of fault at every call and in every task, shuffled."""
    places = [*((call, False) for call in CALLS), *((task, True) for task in TASKS)]
    turns = [(method, in_task, kind) for method, in_task in places for kind in FAULT_KINDS]
    random.Random(seed).shuffle(turns)
    return tuple(turns)


def _trouble(chance: random.Random) -> Trouble:
    kind = chance.choice(("fault", "drop", "refusal", "event", "delay"))
    after = chance.random() < 0.3
    method, nth = chance.choice(_MOMENTS)
    if kind == "fault":
        fault = chance.choice(FAULT_KINDS)
        return Trouble(fault, method, fault_maker(fault), nth, after=after)
    if kind == "delay":
        return Trouble("hang", chance.choice(TASKS), Delay(chance.choice((0.05, 0.5, 5.0))), 1, in_task=True)
    if kind == "drop":
        drop = chance.choice(list(Drop))
        return Trouble(f"drop {drop.value}", method, drop, nth)
    if kind == "refusal":
        return Trouble("503", method, Refusal.UNAVAILABLE, nth)
    event = chance.choice(EVENTS)
    return Trouble(event, method, event, nth, after=after)


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


class InPlaceLab(RestoreLab):
    """A vCenter with the VM, off, and everything armed that the scenario wants."""

    def __init__(self, root: Path, scenario: InPlaceScenario, source: Path) -> None:
        shutil.copytree(source, root)
        self.root = root
        self.in_place = scenario
        self.vcenter = LabVcenter(root, task_s=0.01)
        self.threads = []
        self.child = None
        self.child_started = threading.Event()

    @property
    def vm(self) -> VmState:
        return next(vm for vm in self.vcenter.vms if vm.name == VM)

    @property
    def journal(self) -> Journal:
        return Journal(self.root / "journal")

    def disks(self) -> list[LabDisk]:
        return [*self.vcenter.disks(self.vm.moref)]

    def content_now(self) -> list[str]:
        return self.content(self.vm)

    def target(self, calls: DiskCalls) -> OverVm:
        return over(self.root, self.settings(), calls)

    def arm(self) -> None:
        scenario = self.in_place
        for one in scenario.troubles:
            failure = self._event(one.failure) if isinstance(one.failure, str) else one.failure
            self.vcenter.inject(one.method, failure, one.nth, in_task=one.in_task, after=one.after)
        if scenario.killed and scenario.killed[0] in CALLS:
            self.vcenter.inject(scenario.killed[0], Event(self._kill), scenario.killed[1])


def over(root: Path, server: Vcenter, calls: DiskCalls) -> OverVm:
    return OverVm(server, writer=LabWriter(root, calls), allow=True, journal=Journal(root / "journal"))


def back_up(directory: Path, identity: Path) -> Backed:
    """Make the VM with two disks, back it up, let its guest write on, and shut it down."""
    root = directory / "source"
    root.mkdir()
    for name in ("server.crt", "server.key"):
        shutil.copy2(identity / name, root / name)
    repository = Repository(directory / "repository")
    repository.init()
    with LabVcenter(root, task_s=0.01) as vcenter:
        place = vcenter.datastore("datastore1") / VM
        chance, disks = np.random.default_rng(0), []
        for number in range(2):
            disk = LabDisk.create(place, f"{VM}_{number}", CAPACITY)
            disk.write(0, chance.bytes(1 * MiB))
            disk.write(4 * MiB + 4096, chance.bytes(1 * MiB))
            disks.append(disk)
        moref = vcenter.register_vm(place, VM, disks, change_tracking=True)
        machine = VcenterVm(
            server_settings(vcenter.address, vcenter.port, vcenter.thumbprint),
            VM,
            reader=LabReader(root),
            quiesce=Quiesce.none(),
            journal=Journal(root / "journal"),
            preflight=None,
            lock_relocation=False,
        )
        trio.run(Job(machine, _path, into=repository).run)
        then = [digest_of(disk) for disk in disks]
        for disk in disks:
            disk.write(64 * 1024, chance.bytes(100_000))
            disk.write(2 * MiB, chance.bytes(100_000))  # where the point has zeros
            disk.write(5 * MiB, bytes(20_000))
            disk.write(CAPACITY - 512, b"later".ljust(512))
        vcenter.change(moref, power="poweredOff")
        tracking = [(disk.change_id or "").partition("/")[0] for disk in disks]
        return Backed(root, repository.path, then, [digest_of(disk) for disk in disks], tracking)


def _path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
    return (
        AllocatedExtents(disk)
        | ReadSpans(disk)
        | MarkZeros()
        | CutChunks()
        | Digest(point)
        | Dedupe(point)
        | Compress(Zstd(level=1))
        | IntoRepository(point, disk)
    )


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what is wrong with that or with what it left."""

    number: int
    outcome: str
    wrong: list[str]


async def restored(repository: Path, into: OverVm) -> RestoreReceipt | None:
    """The receipt of a restore; None when it hangs."""
    with trio.move_on_after(_HANGS_AFTER_S):
        async with open_repository(repository) as reader:
            return await restore(reader, reader.points[-1], into)
    return None


def one_run(identity: Path, backed: Backed, seed: int, number: int) -> Ended:
    """One run in trouble, what the next start does, and one in peace."""
    logging.getLogger("vadpipe").addHandler(logging.NullHandler())  # also in a process of its own
    scenario = InPlaceScenario.drawn(seed, number)
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = InPlaceLab(Path(directory, "lab"), scenario, backed.source)
        with lab.vcenter:
            lab.arm()
            if scenario.killed:
                outcome, wrong = _killed(lab, backed, seed, number)
            else:
                outcome, wrong = _outcome(lab, backed)
            lab.settle()
            wrong += _state(lab, backed, done=outcome == "done")
            wrong += _next_start(lab, backed)
            wrong += _in_peace(lab, backed)
    return Ended(number, outcome, wrong)


def _outcome(lab: InPlaceLab, backed: Backed) -> tuple[str, list[str]]:
    """How a run ended, and what is wrong with how it ended."""
    try:
        receipt = trio.run(restored, backed.repository, lab.target(DiskCalls(lab.in_place.disk)))
    except BaseExceptionGroup as exc:
        errors = leaves(exc)
    except Exception as exc:
        errors = [exc]
    else:
        if receipt is None:
            return "hung", [f"the run did not end within {_HANGS_AFTER_S:.0f} s"]
        if not receipt.failures:
            return "done", []
        errors = [leaf for failure in receipt.failures for leaf in leaves(failure)]
        notes = [note for error in errors for note in getattr(error, "__notes__", ())]
        told = any("run the same restore again" in note or "was written" in note for note in notes)
        if not told:
            return "failed", [f"nobody says what the VM is now: {errors} {notes}"]
    defects = [one for one in errors if not isinstance(one, MoverError) or isinstance(one, ContractError)]
    return "failed", [f"a {type(error).__name__} came out: {error}" for error in defects]


def _killed(lab: InPlaceLab, backed: Backed, seed: int, number: int) -> tuple[str, list[str]]:
    vcenter = lab.vcenter
    where = (lab.root, backed, seed, number, vcenter.address, vcenter.port, vcenter.thumbprint)
    lab.child = PROCESSES.Process(target=_run_child, args=where)
    lab.child.start()
    lab.child_started.set()
    lab.child.join(_HANGS_AFTER_S)
    if lab.child.exitcode is None:
        lab.child.kill()
        lab.child.join()
        return "hung", [f"the child did not end within {_HANGS_AFTER_S:.0f} s"]
    return ("killed" if lab.child.exitcode < 0 else "ended before the kill"), []


def _run_child(
    root: Path, backed: Backed, seed: int, number: int, host: str, port: int, thumbprint: str
) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - how it fails is not asked here
    scenario = InPlaceScenario.drawn(seed, number)

    def die(call: str, nth: int) -> None:
        if scenario.killed == (call, nth):
            os.kill(os.getpid(), signal.SIGKILL)

    into = over(root, server_settings(host, port, thumbprint), DiskCalls(scenario.disk, die))
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
    try:
        receipt = trio.run(restored, backed.repository, lab.target(DiskCalls()))
    except Exception as exc:
        return [f"the clean restore failed: {'; '.join(str(leaf) for leaf in leaves(exc))}"]
    if receipt is None:
        return ["the clean restore hung"]
    wrong = [f"the clean restore failed: {failure}" for failure in receipt.failures]
    wrong += [f"the clean restore says: {sentence}" for sentence in receipt.attention]
    return wrong + _state(lab, backed, done=True) + _clean(lab)


@dataclass
class Tally:
    """What the runs met and how they ended."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, seed: int, ended: Ended) -> None:
        self.runs += 1
        self.outcomes[ended.outcome] += 1
        self.troubles.update(InPlaceScenario.drawn(seed, ended.number).names)
        self.failures += [f"run {ended.number}: {sentence}" for sentence in ended.wrong]


def in_place_campaign(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time, each in one of as many processes; None: for all cores."""
    tally = Tally()
    count = min(jobs or _JOBS_PER_CORE * (os.cpu_count() or 1), len(runs))
    with tempfile.TemporaryDirectory(prefix="vadpipe-in-place-") as directory:
        identity = Path(directory)
        load_or_create(identity, "127.0.0.1")
        work = partial(one_run, identity, back_up(identity, identity), seed)
        if count == 1:
            for number in runs:
                tally.add(seed, work(number))
            return tally
        with ProcessPoolExecutor(count, mp_context=PROCESSES) as pool:
            for ended in pool.map(work, runs):
                tally.add(seed, ended)
    return tally


@click.command()
@click.option("--runs", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=int, help="Play one run of this seed again.")
@click.option("--jobs", type=int, help="Runs at a time; two per core by default.")
def main(runs: int, seed: int, only: int | None, jobs: int | None) -> None:
    """Restore a point over its VM in the lab while everything fails, and check what is left."""
    begun = time.monotonic()
    tally = in_place_campaign(range(runs) if only is None else [only], seed, jobs)
    click.echo(f"{tally.runs} restores in place in {time.monotonic() - begun:.0f} s, seed {seed}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
