"""Waiting for tasks: result, error, cancellation at once, and sessions that end in the middle."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from pyVmomi import vim

from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.vcenter.faults.injection import Delay
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import ObjectGone, SnapshotError
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import find_vm


@pytest.fixture
def slow_lab(tmp_path: Path) -> Iterator[LabVcenter]:
    """Tasks take a minute, unless the server stops."""
    with LabVcenter(tmp_path / "slow", task_s=60) as running:
        running.register_vm(running.datastore("datastore1") / "web01", "web01", [])
        yield running


@asynccontextmanager
async def _task(vcenter: Vcenter) -> AsyncIterator[tuple[VcenterSession, vim.Task]]:
    async with vcenter.connect() as session:
        subject = (await find_vm(session, "web01")).reference(session)
        task = await session.call(
            "CreateSnapshot_Task", lambda: subject.CreateSnapshot("a", "", False, False), changes=True
        )
        yield session, task


async def test_a_wait_returns_the_result_of_the_task(vcenter, add_vm):
    add_vm()
    async with _task(vcenter) as (session, task):
        result = await wait_for_task(session, task, "CreateSnapshot_Task")
        assert isinstance(result, vim.vm.Snapshot)
        assert (
            await wait_for_task(session, task, "CreateSnapshot_Task") == result
        )  # also when it ended before


async def test_a_wait_raises_the_error_of_the_task(lab, vcenter, add_vm):
    add_vm()
    lab.inject("CreateSnapshot_Task", lambda: vim.fault.TooManySnapshotLevels(), in_task=True)
    async with _task(vcenter) as (session, task):
        with pytest.raises(SnapshotError, match="chain of snapshots"):
            await wait_for_task(session, task, "CreateSnapshot_Task")


async def test_a_cancelled_wait_destroys_its_collector(slow_lab, wait_for_call):
    async with _task(settings_of(slow_lab)) as (session, task), trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_task, session, task, "CreateSnapshot_Task")
        await wait_for_call(slow_lab, "WaitForUpdatesEx")
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    assert slow_lab.calls["DestroyPropertyCollector"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("event", ["expire_sessions", "drop_connections"])
async def test_a_wait_survives_an_expired_session_and_a_lost_connection(tmp_path, wait_for_call, event):
    with LabVcenter(tmp_path / "lab", task_s=0.4) as lab:
        lab.register_vm(lab.datastore("datastore1") / "web01", "web01", [])
        async with _task(settings_of(lab)) as (session, task), trio.open_nursery() as nursery:
            results: list[object] = []

            async def wait() -> None:
                results.append(await wait_for_task(session, task, "CreateSnapshot_Task"))

            nursery.start_soon(wait)
            await wait_for_call(lab, "WaitForUpdatesEx")
            getattr(lab, event)()
    assert isinstance(results[0], vim.vm.Snapshot)


async def test_an_unknown_task_raises_object_gone(vcenter):
    async with vcenter.connect() as session:
        with pytest.raises(ObjectGone):
            await wait_for_task(session, vim.Task("task-4711", session.stub), "Some_Task")


async def test_an_abandoned_wait_takes_no_updates_from_the_next(lab, vcenter, add_vm, wait_for_call):
    add_vm()
    lab.inject("CreateSnapshot_Task", Delay(), in_task=True)
    with trio.fail_after(20):  # a third of a wait's own time-out
        async with _task(vcenter) as (session, task), trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_task, session, task, "CreateSnapshot_Task")
            await wait_for_call(lab, "WaitForUpdatesEx")
            await trio.sleep(0.05)  # so that it waits by now
            lab.drop_connections()
            while lab.calls["CreatePropertyCollector"] < 2:  # noqa: ASYNC110
                await trio.sleep(0.001)
            lab.calm()
