"""`python -m lab.campaign --runs N --seed S`: backups where everything fails, and what they leave behind.

Each run draws its own trouble from its own seed: faults at calls and in tasks, before and after their effect;
dropped connections, HTTP 503, expired sessions; restarts that forget sessions and tasks; tasks that take long;
consolidation that fails; SIGKILL. Then the lab is calm, and one more run has to succeed. After it: no snapshot of
ours, disks consolidated or named, no foreign snapshot touched, no point published that is not whole. Moments are
counted in calls, not in seconds: `--seed S --only N` draws run N again, though threads may order its calls anew.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import trio

from lab.campaign_kit import DirectoryPoint, DirectoryTarget, LabReader, path
from lab.campaign_scenario import CALLS_PER_RUN, Scenario
from lab.disks import LabDisk
from lab.vcenter import Event, LabVcenter
from lab.vcenter.injection import ANY
from pipeline import Job, JobReceipt, MiB, MoverError, Secret
from pipeline.errors import leaves
from stages import Journal, Vcenter, VcenterVm, VssManifest
from stages.vsphere import VsphereCapture

VM = "web01"
_HANGS_AFTER_S = 60.0


@dataclass
class Tally:
    """What the runs met and how they ended."""

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, scenario: Scenario, outcome: str, wrong: list[str]) -> None:
        self.runs += 1
        self.outcomes[outcome] += 1
        self.troubles.update(trouble.name for trouble in scenario.troubles)
        self.failures += [f"run {scenario.seed}: {sentence}" for sentence in wrong]


def job(root: Path, scenario: Scenario, server: Vcenter) -> Job[VsphereCapture, DirectoryPoint]:
    """The backup of the campaign's VM."""
    machine = VcenterVm(
        server,
        VM,
        reader=LabReader(root),
        quiesce=scenario.quiesce,
        pool_size=16 * MiB,
        journal=Journal(root / "journal"),
        enable_change_tracking=True,
        remove_within_s=5,
    )
    return Job(machine, path, DirectoryTarget(root / "points"), finish=[VssManifest()])


class Lab:
    """A vCenter with the VM of one scenario."""

    def __init__(self, root: Path, scenario: Scenario, identity: Path | None) -> None:
        root.mkdir(parents=True)
        for name in ("server.crt", "server.key") if identity else ():
            assert identity is not None
            shutil.copy2(identity / name, root / name)
        self.root = root
        self.scenario = scenario
        self.vcenter = LabVcenter(root, task_s=0.01)
        self.threads: list[threading.Thread] = []
        self.child: subprocess.Popen[bytes] | None = None
        directory = self.vcenter.datastore("datastore1") / VM
        chance = random.Random(scenario.seed)
        self.disks = [LabDisk.create(directory, f"disk{n}", 2 * MiB) for n in range(scenario.disks)]
        for disk in self.disks:
            disk.write(chance.randrange(1 << 20), chance.randbytes(100_000))
        self.moref = self.vcenter.register_vm(directory, VM, self.disks)
        self.foreign = [
            self.vcenter.take_snapshot(self.moref, f"foreign {n}") for n in range(scenario.foreign)
        ]
        self.roots = sorted(hashlib.sha256(disk.read(0, disk.capacity)).hexdigest() for disk in self.disks)

    def settings(self) -> Vcenter:
        vcenter = self.vcenter
        return server_settings(vcenter.address, vcenter.port, vcenter.thumbprint)

    def arm(self) -> None:
        """Set up everything that the scenario wants to go wrong."""
        for one in self.scenario.troubles:
            failure = self._event(one.failure) if isinstance(one.failure, str) else one.failure
            self.vcenter.inject(one.method, failure, one.nth, in_task=one.in_task, after=one.after)
        if self.scenario.killed:
            moment = random.Random(self.scenario.seed).randint(1, CALLS_PER_RUN)
            self.vcenter.inject(ANY, Event(self._kill), moment)

    def settle(self) -> None:
        """End the trouble, and wait until no host is at work any more."""
        self.vcenter.calm()
        for thread in self.threads:
            thread.join()
        while not self.vcenter.idle:
            time.sleep(0.005)

    def _event(self, name: str) -> Event:
        happen: dict[str, Callable[[], None]] = {
            "restart": partial(self._beside, partial(self.vcenter.restart, 0.05)),
            "expire": self.vcenter.expire_sessions,
            "cut": partial(self._beside, self.vcenter.drop_connections),
        }
        return Event(happen[name])

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
            self.child.send_signal(signal.SIGKILL)

    def left_ours(self) -> list[str]:
        """The morefs of our snapshots."""
        return [moref for moref, text in self.vcenter.snapshots(self.moref).items() if "[vadpipe:" in text]

    def wrongs(self) -> list[str]:
        """What is left that must not be, whatever the report says."""
        here = self.vcenter.snapshots(self.moref)
        found = [f"{moref} of ours is left" for moref in self.left_ours()]
        found += [f"the foreign {moref} is gone" for moref in self.foreign if moref not in here]
        points = DirectoryTarget(self.root / "points").points()
        found += [
            f"a point is not whole: {point}" for point in points if sorted(point.values()) != self.roots
        ]
        now = sorted(hashlib.sha256(disk.read(0, disk.capacity)).hexdigest() for disk in self.disks)
        return found + ([] if now == self.roots else ["the VM's own disks have changed"])


_EVENTS = threading.Lock()


def server_settings(host: str, port: int, thumbprint: str) -> Vcenter:
    return Vcenter(
        host,
        "backup",
        Secret.from_text("lab"),
        thumbprint=thumbprint,
        port=port,
        patience_s=2,
        keep_alive_s=0.2,
    )


def one_run(root: Path, seed: int, number: int, identity: Path | None, tally: Tally) -> None:
    """One run in trouble, one in peace, and what they left."""
    scenario = Scenario.drawn(seed, number)
    lab = Lab(root, scenario, identity)
    with lab.vcenter:
        lab.arm()
        wrong: list[str] = []
        if scenario.killed:
            outcome = _killed(lab, seed, number)
        else:
            outcome, wrong, told = _in_trouble(lab)
            lab.settle()
            if lab.left_ours() and "could not be removed" not in told:
                wrong.append(f"a snapshot is left, and nobody says so: {told}")
        lab.settle()
        wrong += _in_peace(lab)
        tally.add(scenario, outcome, wrong + lab.wrongs())


def _in_trouble(lab: Lab) -> tuple[str, list[str], str]:
    """How the run ended, what is wrong with how it ended, and what it said."""
    try:
        receipt = trio.run(_watched, lab)
    except BaseExceptionGroup as exc:
        errors = leaves(exc)
    except Exception as exc:
        errors = [exc]
    else:
        if receipt is None:
            return "hung", [f"the run did not end within {_HANGS_AFTER_S:.0f} s"], ""
        return ("attention" if receipt.attention else "done"), [], " ".join(receipt.attention)
    defects = [error for error in errors if not isinstance(error, MoverError)]
    wrong = [f"a {type(error).__name__} came out: {error}" for error in defects]
    return "failed", wrong, " ".join(str(error) for error in errors)


async def _watched(lab: Lab) -> JobReceipt | None:
    with trio.move_on_after(_HANGS_AFTER_S):
        return await job(lab.root, lab.scenario, lab.settings()).run()
    return None


def _killed(lab: Lab, seed: int, number: int) -> str:
    vcenter = lab.vcenter
    where = (str(lab.root), str(seed), str(number), vcenter.address, str(vcenter.port), vcenter.thumbprint)
    command = [sys.executable, "-m", "lab.campaign", "--child", *where]
    lab.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = lab.child.wait()
    return "killed" if code < 0 else "ended before the kill"


def _in_peace(lab: Lab) -> list[str]:
    """What is wrong with a run that nothing disturbs."""
    try:
        receipt = trio.run(_watched, lab)
    except Exception as exc:
        return [f"the clean run failed: {'; '.join(str(leaf) for leaf in leaves(exc))}"]
    if receipt is None:
        return ["the clean run hung"]
    told = " ".join([*receipt.attention, *receipt.remarks])
    if lab.vcenter.needs_consolidation(lab.moref) and "consolidation" not in told:
        return ["consolidation is needed, and nobody says so"]
    return [f"the clean run says: {sentence}" for sentence in receipt.attention]


def campaign(runs: range, seed: int, seconds: float = float("inf")) -> Tally:
    """These runs, or as many as begin within `seconds`."""
    tally, deadline = Tally(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="vadpipe-campaign-") as directory:
        place, identity = Path(directory), None
        for number in runs:
            if time.monotonic() > deadline:
                break
            root = place / str(number)
            one_run(root, seed, number, identity, tally)
            if identity is None:
                identity = place / "identity"
                root.rename(identity)
            else:
                shutil.rmtree(root)
    return tally


def _run_child(arguments: tuple[str, ...]) -> None:
    root, seed, number, host, port, thumbprint = arguments
    scenario = Scenario.drawn(int(seed), int(number))
    trio.run(job(Path(root), scenario, server_settings(host, int(port), thumbprint)).run)


@click.command()
@click.option("--runs", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=int, help="Play one run of this seed again.")
@click.option("--child", nargs=6, hidden=True)
def main(runs: int, seed: int, only: int | None, child: tuple[str, ...] | None) -> None:
    """Back up a VM of the lab again and again while everything fails, and check what is left."""
    if child:
        _run_child(child)
        return
    begun = time.monotonic()
    tally = campaign(range(runs) if only is None else range(only, only + 1), seed)
    click.echo(f"{tally.runs} runs in {time.monotonic() - begun:.0f} s, seed {seed}")
    for title, counts in (("outcomes", tally.outcomes), ("troubles", tally.troubles)):
        click.echo(f"{title}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    for failure in tally.failures:
        click.echo(f"WRONG: {failure}")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    main()
