"""`python -m vadpipe.lab.restore_campaign --runs N --seed S`: restores where everything fails, and what they leave.

A VM with two disks was backed up. Each run restores its point into a new VM while faults strike at every call and
in every task, connections break, the server restarts, disks fail, fill up or lose what was written, somebody else
meddles with the new VM, and the run is killed. Then the lab is calm, and what the next start does is done. After it
there is either a VM that is whole, or nothing of ours: no VM, no file, no intent. A VM that is not whole is never
switched on by vadpipe, and one that somebody uses is kept and named. Then one more restore has to succeed.

`--seed S --only N` plays run N again.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
import numpy as np
import trio

from pipeline import (
    Buffer,
    BufferPool,
    ChangedAreas,
    ChangeTrackingInvalid,
    Disk,
    DiskReceipt,
    Extents,
    Job,
    MiB,
    MoverError,
    Pipeline,
    SourceError,
)
from pipeline.errors import leaves
from sinks import IntoRepository, Point, Repository, open_repository
from sinks.new_vm import NewVm
from sinks.restoring import RestoreReceipt, restore
from stages import (
    AllocatedExtents,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    DiskAccess,
    Journal,
    MarkZeros,
    Quiesce,
    ReadSpans,
    Vcenter,
    VcenterVm,
    Zstd,
)
from vadpipe.vsphere.vm.new import TOKEN
from vadpipe.vsphere.vm.sweep import Outcome, sweep

from .campaign_kit import LabReader
from .campaign_lab import server_settings
from .certificate import load_or_create
from .disks import LabDisk
from .restore_scenario import CALLS, DiskTrouble, RestoreScenario
from .vcenter.faults.injection import Event
from .vcenter.server import LabVcenter
from .vcenter.state.inventory import VmState
from .vmdk_chain import opened_chain

VM, NEW = "web01", "web01-restored"
CAPACITY = 6 * MiB + 512
_HANGS_AFTER_S = 60.0
_JOBS_PER_CORE = 2
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
_EVENTS = threading.Lock()


# The writer of disks: the lab's own files, without a child process.


@dataclass
class DiskCalls:
    """The calls of the writer in one run, and what happens at which of them."""

    troubles: Sequence[DiskTrouble] = ()
    on_call: Callable[[str, int], None] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def happen(self, call: str, subject: str) -> bool:
        """Count the call; returns whether its effect is lost. Raises SourceError where it fails."""
        self.counts[call] += 1
        nth = self.counts[call]
        if self.on_call is not None:
            self.on_call(call, nth)
        lost = False
        for one in self.troubles:
            if (one.call, one.nth) == (call, nth):
                if one.action == "loses its effect":
                    lost = True
                else:
                    why = "there is no space left" if one.action == "is full" else "the lab was told to fail"
                    raise SourceError(f"{subject}: {call} failed: {why}.", disk=subject)
        return lost


@dataclass(frozen=True)
class LabWriter:
    """Opens disks below a lab directory's datastores, for writing too; a `DiskWriter` of the restore."""

    root: Path
    calls: DiskCalls = field(default_factory=DiskCalls)

    @asynccontextmanager
    async def open(
        self, access: DiskAccess, pool: BufferPool | None = None, *, write: bool = False
    ) -> AsyncIterator[LabWritableDisk]:
        await trio.lowlevel.checkpoint()
        self.calls.happen("open", access.path)
        datastore, _, path = access.path.removeprefix("[").partition("] ")
        place = self.root / "datastores" / datastore / path
        if not place.exists():
            raise SourceError(f"{access.path} does not exist.", disk=access.path)
        disk = LabDisk.load(place.parent, place.stem)
        yield LabWritableDisk(disk, access.path, pool or BufferPool(), self.calls)
        self.calls.happen("close", access.path)


class LabWritableDisk:
    """One of the lab's disks, open for writing: a `pipeline.WritableDisk`."""

    change_id: None = None

    def __init__(self, disk: LabDisk, key: str, pool: BufferPool, calls: DiskCalls) -> None:
        self._disk = disk
        self._calls = calls
        self.key = self.label = key
        self.pool = pool
        self.capacity = disk.capacity

    async def allocated(self, offset: int, length: int) -> Extents:
        await trio.lowlevel.checkpoint()
        with opened_chain(self._disk.chain) as chain:
            return chain.allocated(offset, length)

    async def changed(self, since: str, offset: int) -> ChangedAreas:
        raise ChangeTrackingInvalid(f"{self.key} has no change tracking.")

    async def read(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        self._calls.happen("read", self.key)
        for start, length in wanted:
            content = np.frombuffer(self._disk.read(start, length), np.uint8)
            buffer.array[start - offset : start - offset + length] = content

    async def write(self, buffer: Buffer, offset: int, wanted: Extents) -> None:
        await trio.lowlevel.checkpoint()
        if not self._calls.happen("write", self.key):
            for start, length in wanted:
                self._disk.write(start, buffer.memory[start - offset : start - offset + length])

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self._calls.happen("flush", self.key)


# The lab of one run.


class RestoreLab:
    """A vCenter to restore into, with a VM of somebody else's, and everything armed that the scenario wants."""

    def __init__(self, root: Path, scenario: RestoreScenario, identity: Path) -> None:
        root.mkdir(parents=True)
        for name in ("server.crt", "server.key"):
            shutil.copy2(identity / name, root / name)
        self.root = root
        self.scenario = scenario
        self.vcenter = LabVcenter(root, task_s=0.01)
        self.vcenter.boot.delay_s = 0.01
        self.threads: list[threading.Thread] = []
        self.child: BaseProcess | None = None
        self.child_started = threading.Event()
        self.meddled: list[str] = []
        directory = self.vcenter.datastore("datastore1") / "db01"
        self.foreign = self.vcenter.register_vm(
            directory, "db01", [LabDisk.create(directory, "db01", 1 * MiB)], power="poweredOff"
        )
        self.others = {self.foreign}

    def settings(self) -> Vcenter:
        vcenter = self.vcenter
        return server_settings(vcenter.address, vcenter.port, vcenter.thumbprint)

    def arm(self) -> None:
        """Set up everything that the scenario wants to go wrong."""
        scenario = self.scenario
        for one in scenario.troubles:
            failure = self._event(one.failure) if isinstance(one.failure, str) else one.failure
            self.vcenter.inject(one.method, failure, one.nth, in_task=one.in_task, after=one.after)
        if scenario.meddling:
            what, method, nth = scenario.meddling
            self.vcenter.inject(method, Event(partial(self._meddle, what)), nth)
        if scenario.killed and scenario.killed[0] in CALLS:
            method, nth = scenario.killed
            self.vcenter.inject(method, Event(self._kill), nth)

    def settle(self) -> None:
        """End the trouble, and wait until no host is at work any more."""
        self.vcenter.calm()
        for thread in self.threads:
            thread.join()
        while not self.vcenter.idle:
            time.sleep(0.005)

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

    def _event(self, name: str) -> Event:
        happen: dict[str, Callable[[], None]] = {
            "restart": partial(self._beside, partial(self.vcenter.restart, 0.05)),
            "expire": self.vcenter.expire_sessions,
            "cut": partial(self._beside, self.vcenter.drop_connections),
        }
        return Event(happen[name])

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
            self.vcenter.unregister_vm(ours[0].moref)
            shutil.rmtree(self.vcenter.datastore(ours[0].datastore) / ours[0].directory)
        elif what == "switches it on":
            self.vcenter.change(ours[0].moref, power="poweredOn")
        elif what == "renames it":
            self.vcenter.change(ours[0].moref, name="somebody's")
        else:
            self.vcenter.take_snapshot(ours[0].moref, "somebody's")
        self.meddled.append(what)

    def _beside(self, work: Callable[[], None]) -> None:
        """In another thread: the one that answers a call cannot end itself."""
        thread = threading.Thread(target=self._one_at_a_time, args=(work,))
        self.threads.append(thread)
        thread.start()

    def _one_at_a_time(self, work: Callable[[], None]) -> None:
        with _EVENTS:
            work()

    def _kill(self) -> None:
        if self.child is not None:
            self.child_started.wait()
            self.child.kill()


def digest_of(disk: LabDisk) -> str:
    return hashlib.sha256(disk.read(0, disk.capacity)).hexdigest()


# What is restored: one point for all runs.


@dataclass(frozen=True)
class Backed:
    """A repository with a point of the VM, and the digests of its disks."""

    repository: Path
    digests: list[str]


def back_up(directory: Path, identity: Path) -> Backed:
    """Make the VM with two disks, and back it up."""
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
            disk.write(CAPACITY - 512, b"the very end".ljust(512, b"."))
            disks.append(disk)
        vcenter.register_vm(place, VM, disks)
        machine = VcenterVm(
            server_settings(vcenter.address, vcenter.port, vcenter.thumbprint),
            VM,
            reader=LabReader(root),
            quiesce=Quiesce.none(),
            journal=Journal(root / "journal"),
            preflight=None,
            lock_relocation=False,
        )

        def path(disk: Disk, point: Point) -> Pipeline[DiskReceipt]:
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

        trio.run(Job(machine, path, into=repository).run)
        return Backed(repository.path, [digest_of(disk) for disk in disks])


# One run.


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what is wrong with that or with what it left."""

    number: int
    outcome: str
    wrong: list[str]


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


async def restored(repository: Path, into: NewVm) -> RestoreReceipt | None:
    """The receipt of a restore; None when it hangs."""
    with trio.move_on_after(_HANGS_AFTER_S):
        async with open_repository(repository) as reader:
            return await restore(reader, reader.points[-1], into)
    return None


def one_run(identity: Path, backed: Backed, seed: int, number: int) -> Ended:
    """One run in trouble, what the next start does, and one in peace."""
    scenario = RestoreScenario.drawn(seed, number)
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = RestoreLab(Path(directory, "lab"), scenario, identity)
        with lab.vcenter:
            lab.arm()
            if scenario.killed:
                outcome, wrong, told = _killed(lab, backed, seed, number)
            else:
                outcome, wrong, told = _outcome(lab, backed)
            lab.settle()
            wrong += _unfinished(lab, backed, told, killed=bool(scenario.killed))
            told += trio.run(_next_start, lab)
            wrong += _left(lab, backed, told)
            wrong += _in_peace(lab, backed)
    return Ended(number, outcome, wrong)


def _outcome(lab: RestoreLab, backed: Backed) -> tuple[str, list[str], str]:
    """How a run ended, what is wrong with how it ended, and what it said."""
    into = target(lab.root, lab.scenario, lab.settings(), DiskCalls(lab.scenario.disk))
    try:
        receipt = trio.run(restored, backed.repository, into)
    except BaseExceptionGroup as exc:
        errors = leaves(exc)
    except Exception as exc:
        errors = [exc]
    else:
        if receipt is None:
            return "hung", [f"the run did not end within {_HANGS_AFTER_S:.0f} s"], ""
        said = " ".join([*receipt.remarks, *receipt.attention])
        if not receipt.failures:
            gone = not lab.ours and "deletes it" not in lab.meddled
            return (
                ("attention" if receipt.attention else "done"),
                ["it is done, and no VM is there"] * gone,
                said,
            )
        errors = [leaf for failure in receipt.failures for leaf in leaves(failure)]
    defects = [error for error in errors if not isinstance(error, MoverError)]
    wrong = [f"a {type(error).__name__} came out: {error}" for error in defects]
    notes = [note for error in errors for note in getattr(error, "__notes__", ())]
    return "failed", wrong, " ".join([*map(str, errors), *notes])


def _killed(lab: RestoreLab, backed: Backed, seed: int, number: int) -> tuple[str, list[str], str]:
    vcenter = lab.vcenter
    where = (lab.root, backed, seed, number, vcenter.address, vcenter.port, vcenter.thumbprint)
    lab.child = PROCESSES.Process(target=_run_child, args=where)
    lab.child.start()
    lab.child_started.set()
    lab.child.join(_HANGS_AFTER_S)
    if lab.child.exitcode is None:
        lab.child.kill()
        lab.child.join()
        return "hung", [f"the child did not end within {_HANGS_AFTER_S:.0f} s"], ""
    return ("killed" if lab.child.exitcode < 0 else "ended before the kill"), [], ""


def _run_child(
    root: Path, backed: Backed, seed: int, number: int, host: str, port: int, thumbprint: str
) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - how it fails is not asked here
    scenario = RestoreScenario.drawn(seed, number)

    def die(call: str, nth: int) -> None:
        if scenario.killed == (call, nth):
            os.kill(os.getpid(), signal.SIGKILL)

    into = target(root, scenario, server_settings(host, port, thumbprint), DiskCalls(scenario.disk, die))
    trio.run(restored, backed.repository, into)


def _is_whole(lab: RestoreLab, backed: Backed, vm: VmState) -> bool:
    """Whether a VM has what the point has. What a sample did not read may differ, as the report says."""
    content = lab.content(vm)
    lossy = lab.scenario.sampled and any(one.action == "loses its effect" for one in lab.scenario.disk)
    return len(content) == len(backed.digests) if lossy else content == backed.digests


def _unfinished(lab: RestoreLab, backed: Backed, told: str, *, killed: bool) -> list[str]:
    """What is wrong right after the run: a VM that is on or left without a word, and is not whole."""
    wrong = []
    for vm in lab.ours:
        if _is_whole(lab, backed, vm):
            continue
        if vm.power != "poweredOff" and "switches it on" not in lab.meddled:
            wrong.append("a VM that is not whole is on")
        if not killed and "could not be destroyed" not in told and "is kept" not in told:
            wrong.append(f"a VM that is not whole is left, and nobody says so: {told}")
    return wrong


async def _next_start(lab: RestoreLab) -> str:
    """What the next start of vadpipe does when nobody else is at work any more; what it says."""
    journal = Journal(lab.root / "journal")
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
    waiting = Journal(lab.root / "journal").intents()
    if waiting and not (lab.meddled and lab.ours):
        wrong += [f"the journal still names the {intent.title}" for intent in waiting]
    return wrong


def _in_peace(lab: RestoreLab, backed: Backed) -> list[str]:
    """What is wrong with a restore that nothing disturbs."""
    name = f"{NEW}-2"
    into = replace(
        target(lab.root, lab.scenario, lab.settings(), DiskCalls(), name), mode="copy", prove="all"
    )
    try:
        receipt = trio.run(restored, backed.repository, into)
    except Exception as exc:
        return [f"the clean restore failed: {'; '.join(str(leaf) for leaf in leaves(exc))}"]
    if receipt is None:
        return ["the clean restore hung"]
    wrong = [f"the clean restore failed: {failure}" for failure in receipt.failures]
    wrong += [f"the clean restore says: {sentence}" for sentence in receipt.attention]
    made = [vm for vm in lab.ours if vm.name == name]
    if [lab.content(vm) for vm in made] != [backed.digests]:
        wrong.append("the clean restore has other bytes")
    return wrong


# The campaign.


@dataclass
class Tally:
    """What the runs met and how they ended."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, seed: int, ended: Ended) -> None:
        scenario = RestoreScenario.drawn(seed, ended.number)
        self.runs += 1
        self.outcomes[ended.outcome] += 1
        self.troubles.update(scenario.names)
        self.failures += [f"run {ended.number}: {sentence}" for sentence in ended.wrong]


def restore_campaign(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time, each in one of as many processes; None: for all cores."""
    tally = Tally()
    count = min(jobs or _JOBS_PER_CORE * (os.cpu_count() or 1), len(runs))
    with tempfile.TemporaryDirectory(prefix="vadpipe-restores-") as directory:
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
    """Restore a point into a new VM of the lab while everything fails, and check what is left."""
    begun = time.monotonic()
    logging.getLogger("vadpipe").addHandler(logging.NullHandler())
    tally = restore_campaign(range(runs) if only is None else [only], seed, jobs)
    click.echo(f"{tally.runs} restores in {time.monotonic() - begun:.0f} s, seed {seed}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
