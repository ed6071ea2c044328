"""What killed runs left is removed, and nothing else."""

import signal
import subprocess
from dataclasses import replace

import pytest
from pyVmomi import vim

from tests.vadpipe.vsphere import lab_runs
from tests.vadpipe.vsphere.vsphere_kit import begin_snapshot, dead_intent, make_snapshot
from vadpipe.lab.vcenter.faults.injection import Delay
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.snapshot.tree import description_with, snapshots_of
from vadpipe.vsphere.vm.sweep import Outcome, look_ahead, sweep


def _holder(lab: LabVcenter, journal: Journal) -> subprocess.Popen[str]:
    """Another process that holds a snapshot of web01."""
    where = {**lab.description(), "journal": str(journal.directory)}
    process = lab_runs.start("hold", where, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def _morefs(session: VcenterSession) -> list[str]:
    vm = await find_vm(session, "web01")
    return [node.moref for node in await snapshots_of(session, vm.moref)]


@pytest.mark.slow
async def test_the_snapshot_of_a_killed_process_is_swept_and_that_of_a_live_one_is_not(
    lab, vcenter, journal, add_vm
):
    add_vm()
    process = _holder(lab, journal)
    try:
        async with vcenter.connect() as session:
            foreign = await make_snapshot(session, "theirs", "before the upgrade")
            (live,) = await sweep(session, journal)
            assert live.outcome is Outcome.IN_USE
            assert str(process.pid) in live.reason
            assert len(await _morefs(session)) == 2

            _end(process, signal.SIGKILL)
            (would,) = await look_ahead(session, journal)
            assert would.outcome is Outcome.WOULD_REMOVE
            assert len(await _morefs(session)) == 2

            (swept,) = await sweep(session, journal)
            assert swept.outcome is Outcome.REMOVED
            assert "vadpipe killed" in str(swept)
            assert await _morefs(session) == [foreign]
    finally:
        _end(process, signal.SIGKILL)
    assert journal.intents() == []


@pytest.mark.slow
async def test_an_interrupted_process_leaves_nothing_to_sweep(lab, vcenter, journal, add_vm):
    add_vm()
    _end(_holder(lab, journal), signal.SIGINT)
    assert journal.intents() == []
    async with vcenter.connect() as session:
        assert await _morefs(session) == []


async def test_an_intent_whose_snapshot_never_came_into_being_is_dropped_when_it_is_old(
    vcenter, journal, add_vm
):
    add_vm()
    async with vcenter.connect() as session:
        await dead_intent(session, journal)
        (looked,) = await look_ahead(session, journal)
        assert looked.outcome is Outcome.NOT_FOUND
        assert len(journal.intents()) == 1
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.NOT_FOUND
        (young,) = journal.intents()  # a host may still be making it
        journal.write(replace(young, created="2001-01-01T00:00:00+00:00"))
        (swept,) = await sweep(session, journal)
    assert swept.outcome is Outcome.NOT_FOUND
    assert journal.intents() == []


async def test_a_snapshot_is_ours_only_by_intent_and_token(vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        unknown = await make_snapshot(
            session, "theirs", description_with("0" * 32)
        )  # our mark, but no intent here
        intent = await dead_intent(session, journal)
        ours = await make_snapshot(session, "theirs", description_with(intent.token))
        named_alike = await make_snapshot(session, "theirs", f"vadpipe {intent.run} {intent.token}")
        (swept,) = await sweep(session, journal)
        assert swept.outcome is Outcome.REMOVED
        left = await _morefs(session)
    assert ours not in left
    assert left == [unknown, named_alike]


@pytest.mark.slow
async def test_a_snapshot_that_is_still_being_made_is_waited_for(tmp_path, vcenter, journal):
    with LabVcenter(tmp_path / "slow", task_s=0.5) as lab:
        lab.register_vm(lab.datastore("datastore1") / "web01", "web01", [])
        settings = replace(vcenter, port=lab.port, thumbprint=lab.thumbprint)
        async with settings.connect() as session:
            intent = await dead_intent(session, journal)
            await begin_snapshot(session, "x", description_with(intent.token))
            assert await _morefs(session) == []
            (swept,) = await sweep(session, journal)
            assert swept.outcome is Outcome.REMOVED
            assert await _morefs(session) == []


async def test_what_cannot_be_removed_stays_in_the_journal(lab, vcenter, journal, add_vm):
    add_vm()
    lab.inject(
        "RemoveSnapshot_Task",
        lambda: vim.fault.NoPermission(object=vim.VirtualMachine("vm-1"), privilegeId="X.Y"),
    )
    async with vcenter.connect() as session:
        intent = await dead_intent(session, journal)
        await make_snapshot(session, "theirs", description_with(intent.token))
        (swept,) = await sweep(session, journal)
    assert swept.outcome is Outcome.KEPT
    assert "X.Y" in swept.reason
    assert swept.as_dict()["outcome"] == "kept"
    assert journal.intents() == [intent]


async def test_intents_for_another_server_or_a_vanished_vm_are_kept(vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        intent = await dead_intent(session, journal)
        journal.write(replace(intent, token="1" * 32, server_id="another server"))
        journal.write(replace(intent, token="2" * 32, vm_uuid="no such VM"))
        outcomes = {swept.intent.token: swept.outcome for swept in await sweep(session, journal)}
    assert outcomes == {intent.token: Outcome.NOT_FOUND, "2" * 32: Outcome.KEPT}
    assert {kept.token for kept in journal.intents()} == {intent.token, "1" * 32, "2" * 32}


async def test_a_task_that_hangs_does_not_hold_up_the_sweep(lab, vcenter, journal, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        await dead_intent(session, journal)
        lab.inject("CreateSnapshot_Task", Delay(), in_task=True)
        await begin_snapshot(session, "theirs", "")
        (swept,) = await sweep(session, journal, within_s=0.1)
        assert (swept.outcome, swept.reason) == (Outcome.KEPT, "it was not dealt with in 0 s")
        lab.calm()
