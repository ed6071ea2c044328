"""Long sessions: restarts, expiry, a server that is away, logins by cookie, other kinds of servers."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import ConfigError
from pipeline.extents import Extents
from pipeline.secrets import Secret
from stages.vcenter_vm import VcenterVm
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.faults.injection import Delay, Refusal
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import ConnectionLost, LoginRefused, Unreachable
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.api.tasks import wait_for_task
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import open_snapshot


async def _name(session: VcenterSession) -> object:
    """A call that needs a login."""
    return await session.call("RetrieveProperties", lambda: session.content.rootFolder.name)


async def test_a_server_that_is_away_is_waited_for(lab, vcenter):
    async with vcenter.connect() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lab.restart, 0.2)
            for _ in range(5):
                assert await _name(session) == "Datacenters"
                await trio.sleep(0.03)
        assert await _name(session) == "Datacenters"
    assert lab.calls["Login"] >= 2


async def test_a_changing_call_waits_for_a_server_that_cannot_be_reached(lab, vcenter):
    async with vcenter.connect() as session:
        lab.inject("CurrentTime", Refusal.UNAVAILABLE)
        lab.inject("CurrentTime", Refusal.UNAVAILABLE, 2)
        service = vim.ServiceInstance("ServiceInstance", session.stub)
        before = lab.calls.get("CurrentTime", 0)
        await session.call("CurrentTime", service.CurrentTime, changes=True)
        assert lab.calls["CurrentTime"] == before + 3
        lab.inject("CurrentTime", Refusal.UNAVAILABLE, chance=1)
        with pytest.raises(Unreachable, match=r"not ready.*503"):
            await session.call("CurrentTime", service.CurrentTime, changes=True, patience_s=0)


@pytest.mark.parametrize("method", ["CreateSnapshotEx_Task", "RemoveSnapshot_Task"])
async def test_a_restart_while_a_task_runs_leaves_one_snapshot_and_then_none(
    lab, vcenter, journal, add_vm, wait_for_call, method
):
    moref = add_vm()
    lab.inject(method, Delay(0.3), in_task=True)

    async def restart() -> None:
        await wait_for_call(lab, method)
        await trio.to_thread.run_sync(lab.restart)

    async with vcenter.connect() as session, trio.open_nursery() as nursery:
        nursery.start_soon(restart)
        vm = await find_vm(session, "web01")
        async with open_snapshot(session, vm, Quiesce.none(), journal, run="r") as snapshot:
            assert list(lab.snapshots(moref)) == [snapshot.moref]
    assert lab.snapshots(moref) == {}
    assert journal.intents() == []


async def test_a_wait_is_cancelled_at_once_even_when_the_server_is_away(lab, vcenter, add_vm, wait_for_call):
    add_vm()
    lab.inject("CreateSnapshot_Task", Delay(), in_task=True)
    patient = replace(vcenter, patience_s=3600)
    async with patient.connect() as session:
        subject = (await find_vm(session, "web01")).reference(session)
        task = await session.call(
            "CreateSnapshot_Task", lambda: subject.CreateSnapshot("a", "", False, False), changes=True
        )
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_task, session, task, "CreateSnapshot_Task")
                await wait_for_call(lab, "WaitForUpdatesEx")
                lab.inject("*", Refusal.UNAVAILABLE, chance=1)
                await trio.to_thread.run_sync(lab.drop_connections)
                nursery.cancel_scope.cancel()
        lab.calm()


async def test_an_exception_of_the_block_is_not_wrapped(lab, vcenter):
    with pytest.raises(KeyError, match="mine"):
        async with replace(vcenter, keep_alive_s=0.001).connect():
            await trio.sleep(0.02)
            raise KeyError("mine")
    group = ExceptionGroup("mine", [KeyError("a"), ValueError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with vcenter.connect():
            raise group
    assert caught.value is group
    with trio.CancelScope() as scope:
        async with vcenter.connect():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert lab.calls["Logout"] == lab.calls["Login"] == 3


async def test_a_call_that_outlives_its_session_does_not_log_in_again(lab, vcenter, wait_until):
    release = threading.Event()
    async with vcenter.connect() as session:

        def slow() -> object:
            release.wait(30)
            return session.content.rootFolder.name

        with trio.move_on_after(0.05):
            await session.call("Slow", slow)
    release.set()
    threads = trio.to_thread.current_default_thread_limiter()
    await wait_until(lambda: threads.borrowed_tokens == 0)
    assert lab.calls["Login"] == lab.calls["Logout"] == 1


async def test_a_session_is_borrowed_by_its_cookie_and_not_closed(lab, vcenter, add_vm, reader, journal):
    add_vm()
    async with vcenter.connect() as session:
        for given in (session.cookie, session.cookie.partition("=")[2].strip('"')):
            borrowed = replace(vcenter, user="", password=None, cookie=Secret.from_text(given))
            assert given not in repr(borrowed)
            async with borrowed.connect() as second:
                assert await _name(second) == "Datacenters"
                assert second.user == "backup"
        async with VcenterVm(borrowed, "web01", reader=reader, journal=journal).capture():
            access = reader.opened[-1]
            assert (access.user, access.password) == ("backup", None)
            assert access.cookie is not None
            assert access.cookie.reveal() == session.cookie
        assert await _name(session) == "Datacenters"  # it was not ours to log out
        async with borrowed.connect() as second:
            lab.expire_sessions()
            with pytest.raises(LoginRefused, match="cookie"):
                await _name(second)
    with pytest.raises(LoginRefused, match="cookie"):
        async with borrowed.connect():
            pass
    assert lab.calls["Login"] == 1


@pytest.mark.parametrize(
    "login", [{}, {"user": "u"}, {"password": Secret.from_text("p")}, {"keep_alive_s": 0}]
)
def test_contradicting_logins_are_config_errors(login):
    with pytest.raises(ConfigError):
        Vcenter("vc01", **login)  # type: ignore[arg-type]


async def test_an_esxi_host_takes_a_quiesced_snapshot(tmp_path, journal):
    with LabVcenter(tmp_path / "esxi", task_s=0, api_type="HostAgent") as lab:
        directory = lab.datastore("datastore1") / "web01"
        lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk", 1 << 20)])
        async with settings_of(lab, patience_s=2).connect() as session:
            assert not session.is_vcenter
            vm = await find_vm(session, "web01")
            async with open_snapshot(session, vm, Quiesce.application(), journal, run="r") as snapshot:
                assert snapshot.quiesce.kind == "application"


async def test_an_api_before_6_5_gets_the_older_snapshot_call(tmp_path, journal):
    with LabVcenter(tmp_path / "old", task_s=0, api_version="6.0") as lab:
        directory = lab.datastore("datastore1") / "web01"
        lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk", 1 << 20)])
        async with settings_of(lab, patience_s=2).connect() as session:
            assert session.api_version == (6, 0)
            vm = await find_vm(session, "web01")
            async with open_snapshot(session, vm, Quiesce.application(), journal, run="r"):
                pass
        assert "CreateSnapshotEx_Task" not in lab.calls
        assert lab.calls["CreateSnapshot_Task"] == 1


class VirtualTime:
    """The lab's clock of sessions, which goes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def virtual(tmp_path: Path) -> Iterator[tuple[LabVcenter, VirtualTime]]:
    clock = VirtualTime()
    with LabVcenter(tmp_path / "virtual", task_s=0, session_idle_s=1800, clock=clock) as lab:
        directory = lab.datastore("datastore1") / "web01"
        disk = LabDisk.create(directory, "disk", 4 << 20)
        lab.register_vm(directory, "web01", [disk], change_tracking=True)
        yield lab, clock


@pytest.mark.slow
@pytest.mark.parametrize("step_min", [10, 45])
async def test_no_job_notices_expiry_and_five_restarts_in_72_hours(virtual, reader_of, journal, step_min):
    """Every step of virtual time begins with the keep-alive that is due then. With steps of 10 minutes the session
    lives from restart to restart, with 45 it has expired at each."""
    lab, clock = virtual
    total = 72 * 60 // step_min
    restarts = set(random.Random(72).sample(range(2, total), 5))
    machine = VcenterVm(settings_of(lab, patience_s=2), "web01", reader=reader_of(lab), journal=journal)
    jobs, since = 0, None
    for step in range(1, total + 1):
        if since is None or step % 30 == 0:
            capturing = machine.capture()
            capture = await capturing.__aenter__()
            [disk] = capture.disks
            if since is not None:
                page = await disk.changed(since, 0)
                assert page.extents == Extents.whole(64 << 10, 64 << 10)
            since = disk.change_id
            lab.disks(lab.moref("web01"))[0].write(64 << 10, b"x")
        clock.now_s += 60 * step_min
        if step in restarts:
            await trio.to_thread.run_sync(lab.restart)
        await capture.session.keep_alive()
        assert await _name(capture.session) == "Datacenters"
        if step % 30 == 29 or step == total:
            await capturing.__aexit__(None, None, None)
            assert capture.snapshots_left == 0
            jobs += 1
    assert clock.now_s == 72 * 3600
    assert jobs >= total // 30
    assert journal.intents() == []
    expired = total if step_min > 30 else 5
    assert lab.calls["Login"] == pytest.approx(jobs + expired, abs=1)


async def test_the_keep_alive_task_touches_the_session_and_renews_it(virtual, wait_until):
    lab, clock = virtual
    async with settings_of(lab, patience_s=2, keep_alive_s=0.005).connect():
        for _ in range(10):
            clock.now_s += 1200
            seen = lab.calls.get("Fetch", 0)
            await wait_until(lambda seen=seen: lab.calls.get("Fetch", 0) >= seen + 2)
        assert lab.calls["Login"] == 1
        lab.expire_sessions()
        await wait_until(lambda: lab.calls["Login"] == 2)


async def test_a_keep_alive_that_fails_raises_nothing(lab, vcenter):
    async with replace(vcenter, keep_alive_s=0.005, patience_s=0).connect() as session:
        lab.inject("Fetch", Refusal.UNAVAILABLE, chance=1)
        await trio.sleep(0.05)
        with pytest.raises(ConnectionLost):
            await session.keep_alive()
        lab.calm()
        assert await _name(session) == "Datacenters"
