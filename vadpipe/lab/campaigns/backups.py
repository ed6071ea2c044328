"""Backups where everything fails, and what they leave behind.

Each run draws its own trouble from its own seed: faults at calls and in tasks, before and after their effect;
dropped connections, HTTP 503, expired sessions; restarts that forget sessions and tasks; tasks that take long;
consolidation that fails; the VM moved to another host and to another datastore; SIGKILL. One in ten reads through
VDDK, the lab's stand-in, whose calls fail, crash and hang. Then the lab is calm, and one more run has to succeed.
After it: no snapshot, relocation lock or hot-added disk of ours, disks consolidated or named, no snapshot or lock
of others touched, no point published that is not whole, and nothing in the journal that is not over.

`--seed S --only N` plays run N again: the same failures at the same calls of the same methods. A run makes the
calls of one method one after the other, so this is exact, but for two things that the clock decides: how often a
wait for a task is answered (WaitForUpdatesEx), and how often a call is repeated while the server is away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from pipeline import Job, MiB
from stages import Journal, Vcenter, VcenterVm, VssManifest
from stages.preflight import Preflight
from vadpipe.vsphere.vm.capture import VsphereCapture
from vadpipe.vsphere.vm.disk import DiskReader
from vadpipe.vsphere.vm.sweep import Outcome, sweep

from ..certificate import load_or_create
from ..vddk_build import CompilerMissing, build_vddk
from .backups_lab import VM, BackupLab, disk_reader
from .backups_scenario import BackupScenario
from .ending import Ending, attempt, failed
from .lab import new_root, server_settings
from .points import DirectoryPoint, DirectoryTarget, path
from .running import Ended, Tally, play
from .vddk import is_in_fatal_call, left_outside, surroundings, unlock_by_another


def backups(runs: Sequence[int], seed: int, jobs: int | None = None) -> Tally:
    """These runs, `jobs` at a time; None: two per core. Facts: how many read through VDDK, or why none did."""
    through: int | str = len(through_vddk(runs, seed))
    with tempfile.TemporaryDirectory(prefix="vadpipe-backups-") as directory:
        load_or_create(Path(directory), "127.0.0.1")
        libdir: Path | None = None
        try:
            if through:
                libdir = build_vddk(Path(directory, "vddk"))
        except CompilerMissing as exc:
            through = f"0, because {exc}"
        work = partial(one_run, Path(directory), libdir, seed)
        tally = play(work, lambda number: BackupScenario.drawn(seed, number).names, runs, jobs)
    tally.facts["through VDDK"] = through
    return tally


def through_vddk(runs: Sequence[int], seed: int) -> Sequence[int]:
    """Those of the runs that read through VDDK."""
    return [number for number in runs if BackupScenario.drawn(seed, number).vddk]


def job(
    root: Path, scenario: BackupScenario, server: Vcenter, reader: DiskReader
) -> Job[VsphereCapture, DirectoryPoint]:
    """The backup of the campaign's VM."""
    machine = VcenterVm(
        server,
        VM,
        reader=reader,
        quiesce=scenario.quiesce,
        pool_size=16 * MiB,
        journal=Journal(root / "journal"),
        enable_change_tracking=True,
        remove_within_s=5,
        preflight=Preflight(probe_hosts=False),  # the lab's hosts have no names
    )
    return Job(machine, path, DirectoryTarget(root / "points"), finish=[VssManifest()])


def one_run(identity: Path, libdir: Path | None, seed: int, number: int) -> Ended:
    """One run in trouble, one in peace, and what they left. `libdir`: where VDDK is, None for nowhere."""
    scenario = BackupScenario.playable(seed, number, libdir)
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = BackupLab(new_root(Path(directory, "lab"), identity), scenario, libdir)
        with lab.vcenter:
            lab.arm(scenario.troubles, scenario.killed)
            ended = _killed(lab, seed, number) if scenario.may_be_killed else _in_trouble(lab)
            lab.settle()
            with surroundings(lab.root, scenario.vddk, in_trouble=False):
                wrong = ended.wrong + _in_peace(lab) + lab.wrongs() + trio.run(_unsettled, lab)
    return Ended(number, ended.outcome, wrong)


def _in_trouble(lab: BackupLab) -> Ending:
    """How the run ended, and what is wrong with how it ended."""
    with surroundings(lab.root, lab.scenario.vddk, in_trouble=True):
        result = attempt(job(lab.root, lab.scenario, lab.settings(), lab.reader()).run)
    if isinstance(result, list):
        ended = failed(result)
    else:
        ended = Ending("attention" if result.attention else "done", [], " ".join(result.attention))
    lab.settle()
    wrong = [*ended.wrong]
    if lab.left_ours() and "could not be removed" not in ended.told:
        wrong.append(f"a snapshot is left, and nobody says so: {ended.told}")
    for saying, left in left_outside(lab.root, lab.moref).items():
        wrong += [f"{one}, and nobody says so: {ended.told}" for one in left if saying not in ended.told]
    return replace(ended, wrong=wrong)


def _killed(lab: BackupLab, seed: int, number: int) -> Ending:
    vddk = lab.scenario.vddk
    fatal = partial(is_in_fatal_call, lab.root, vddk) if vddk else None
    return lab.run_killed(_in_child, lab.root, lab.libdir, seed, number, lab.address, fatal=fatal)


def _in_child(root: Path, libdir: Path | None, seed: int, number: int, address: tuple[str, int, str]) -> None:
    scenario = BackupScenario.playable(seed, number, libdir)
    reader = disk_reader(root, scenario, libdir)
    with surroundings(root, scenario.vddk, in_trouble=True):
        trio.run(job(root, scenario, server_settings(*address), reader).run)


def _in_peace(lab: BackupLab) -> list[str]:
    """What is wrong with a run that nothing disturbs."""
    receipt = attempt(job(lab.root, lab.scenario, lab.settings(), lab.reader()).run)
    if isinstance(receipt, list):
        return [f"the clean run failed: {'; '.join(map(str, receipt))}"]
    told = " ".join([*receipt.attention, *receipt.remarks])
    if lab.vcenter.needs_consolidation(lab.moref) and "consolidation" not in told:
        return ["consolidation is needed, and nobody says so"]
    attention = receipt.attention
    if lab.scenario.vddk and lab.scenario.vddk.locked_by_another:
        attention = [one for one in attention if "somebody else kept it locked" not in one]
    return [f"the clean run says: {sentence}" for sentence in attention]


async def _unsettled(lab: BackupLab) -> list[str]:
    """What the journal still names, when its intents are old and nobody else has anything, and is not nothing."""
    if lab.scenario.vddk and lab.scenario.vddk.locked_by_another:
        unlock_by_another(lab.root, lab.moref)
    journal = lab.journal
    if not (waiting := journal.intents()):
        return []
    for intent in waiting:  # what they announced may no longer be on its way
        journal.write(replace(intent, created="2001-01-01T00:00:00+00:00"))
    async with lab.settings().connect() as session:
        swept = await sweep(session, journal)
    nothing = (Outcome.NOT_FOUND, Outcome.NOTHING_TO_UNDO)
    wrong = [f"the journal knew of more: {one}" for one in swept if one.outcome not in nothing]
    return wrong + [f"the journal still names the {intent.title}" for intent in journal.intents()]
