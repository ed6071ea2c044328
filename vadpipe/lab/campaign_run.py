"""One run of the campaign: in trouble, then in peace, and what is wrong with what it left."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from pipeline import Job, JobReceipt, MiB, MoverError
from pipeline.errors import leaves
from stages import Journal, Vcenter, VcenterVm, VssManifest
from stages.preflight import Preflight
from vadpipe.vsphere.vm.capture import VsphereCapture
from vadpipe.vsphere.vm.disk import DiskReader
from vadpipe.vsphere.vm.sweep import Outcome, sweep

from .campaign_kit import DirectoryPoint, DirectoryTarget, path
from .campaign_lab import VM, Lab, disk_reader, server_settings
from .campaign_scenario import Scenario
from .campaign_vddk import is_in_fatal_call, left_outside, surroundings, unlock_by_another

_HANGS_AFTER_S = 60.0
# Forked from a process that has everything imported: a start takes milliseconds, and no thread is copied.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what is wrong with that or with what it left."""

    number: int
    outcome: str
    wrong: list[str]


def job(
    root: Path, scenario: Scenario, server: Vcenter, reader: DiskReader
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
    scenario = Scenario.playable(seed, number, libdir)
    with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=identity) as directory:
        lab = Lab(Path(directory, "lab"), scenario, identity, libdir)
        with lab.vcenter:
            lab.arm()
            outcome, wrong = _killed(lab, seed, number) if scenario.may_be_killed else _in_trouble(lab)
            lab.settle()
            with surroundings(lab.root, scenario.vddk, in_trouble=False):
                wrong = wrong + _in_peace(lab) + lab.wrongs() + trio.run(_unsettled, lab)
    return Ended(number, outcome, wrong)


def _in_trouble(lab: Lab) -> tuple[str, list[str]]:
    """How the run ended, and what is wrong with how it ended."""
    with surroundings(lab.root, lab.scenario.vddk, in_trouble=True):
        outcome, wrong, told = _outcome(lab)
    lab.settle()
    if lab.left_ours() and "could not be removed" not in told:
        wrong = [*wrong, f"a snapshot is left, and nobody says so: {told}"]
    for saying, left in left_outside(lab.root, lab.moref).items():
        wrong = wrong + [f"{one}, and nobody says so: {told}" for one in left if saying not in told]
    return outcome, wrong


def _outcome(lab: Lab) -> tuple[str, list[str], str]:
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
        return await job(lab.root, lab.scenario, lab.settings(), lab.reader()).run()
    return None


def _killed(lab: Lab, seed: int, number: int) -> tuple[str, list[str]]:
    vcenter = lab.vcenter
    where = (lab.root, lab.libdir, seed, number, vcenter.address, vcenter.port, vcenter.thumbprint)
    lab.child = PROCESSES.Process(target=_run_child, args=where)
    lab.child.start()
    lab.child_started.set()
    deadline = time.monotonic() + _HANGS_AFTER_S
    while lab.child.is_alive() and time.monotonic() < deadline:
        if lab.scenario.vddk and is_in_fatal_call(lab.root, lab.scenario.vddk):
            lab.child.kill()
        lab.child.join(0.02 if lab.scenario.vddk else _HANGS_AFTER_S)
    if lab.child.exitcode is None:
        lab.child.kill()
        lab.child.join()
        return "hung", [f"the child did not end within {_HANGS_AFTER_S:.0f} s"]
    return ("killed" if lab.child.exitcode < 0 else "ended before the kill"), []


def _run_child(
    root: Path, libdir: Path | None, seed: int, number: int, host: str, port: int, thumbprint: str
) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - how it fails is not asked here
    scenario = Scenario.playable(seed, number, libdir)
    reader = disk_reader(root, scenario, libdir)
    with surroundings(root, scenario.vddk, in_trouble=True):
        trio.run(job(root, scenario, server_settings(host, port, thumbprint), reader).run)


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
    attention = receipt.attention
    if lab.scenario.vddk and lab.scenario.vddk.locked_by_another:
        attention = [one for one in attention if "somebody else kept it locked" not in one]
    return [f"the clean run says: {sentence}" for sentence in attention]


async def _unsettled(lab: Lab) -> list[str]:
    """What the journal still names, when its intents are old and nobody else has anything, and is not nothing."""
    if lab.scenario.vddk and lab.scenario.vddk.locked_by_another:
        unlock_by_another(lab.root, lab.moref)
    journal = Journal(lab.root / "journal")
    if not (waiting := journal.intents()):
        return []
    for intent in waiting:  # what they announced may no longer be on its way
        journal.write(replace(intent, created="2001-01-01T00:00:00+00:00"))
    async with lab.settings().connect() as session:
        swept = await sweep(session, journal)
    nothing = (Outcome.NOT_FOUND, Outcome.NOTHING_TO_UNDO)
    wrong = [f"the journal knew of more: {one}" for one in swept if one.outcome not in nothing]
    return wrong + [f"the journal still names the {intent.title}" for intent in journal.intents()]
