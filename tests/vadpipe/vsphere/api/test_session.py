"""A session: login, renewal, repeated calls, cancellation."""

import dataclasses
import socket
import threading
from datetime import datetime

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import ConfigError, MoverError
from pipeline.secrets import Secret
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import ConnectionLost, LoginRefused, NotOffered
from vadpipe.vsphere.api.session import Vcenter, VcenterSession


async def _time(session: VcenterSession) -> object:
    """A call that needs a login."""
    return await session.call("RetrieveProperties", lambda: session.content.rootFolder.name)


def _restart_in_place(lab: LabVcenter) -> None:
    lab.expire_sessions()
    lab.drop_connections()


async def test_a_session_logs_in_and_out(lab, vcenter):
    async with vcenter.connect() as session:
        assert session.is_vcenter
        assert session.api_version >= (6, 5)
        assert session.cookie.startswith("vmware_soap_session=")
    assert lab.calls["Login"] == lab.calls["Logout"] == 1


def test_the_repr_of_settings_shows_no_secret():
    settings = Vcenter("nowhere.invalid", "backup", Secret.from_text("pa55word"))
    assert "pa55word" not in repr(settings)
    with pytest.raises(ConfigError, match="server"):
        Vcenter("https://vc01/sdk", "backup", Secret.from_text("x"))


async def test_a_wrong_password_is_one_clear_error(lab, vcenter):
    wrong = dataclasses.replace(vcenter, password=Secret.from_text("wrong"))
    with pytest.raises(LoginRefused, match="password") as caught:
        async with wrong.connect():
            pass
    assert caught.value.exit_code == 1
    assert "backup" in str(caught.value)
    assert "'wrong'" not in str(caught.value)
    assert lab.calls["Login"] == 1  # repeating it would lock the account


async def test_a_missing_password_is_a_config_error(vcenter, monkeypatch):
    monkeypatch.delenv("VADPIPE_TEST_PASSWORD", raising=False)
    unset = dataclasses.replace(vcenter, password=Secret.from_env("VADPIPE_TEST_PASSWORD"))
    with pytest.raises(ConfigError, match="VADPIPE_TEST_PASSWORD"):
        async with unset.connect():
            pass


async def test_a_closed_port_is_a_lost_connection():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionLost, match="does not answer"):
        async with Vcenter("127.0.0.1", "backup", Secret.from_text("x"), port=port).connect():
            pass


async def test_an_expired_session_is_renewed_unnoticed(lab, vcenter):
    async with vcenter.connect() as session:
        for _ in range(3):
            lab.expire_sessions()
            assert await _time(session) == "Datacenters"
    assert lab.calls["Login"] == 4


async def test_concurrent_calls_share_one_new_login(lab, vcenter):
    async with vcenter.connect() as session:
        lab.expire_sessions()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(_time, session)
    assert lab.calls["Login"] == 2


async def test_reading_calls_do_not_notice_a_restarted_server(lab, vcenter):
    async with vcenter.connect() as session:
        await _time(session)
        _restart_in_place(lab)
        assert await _time(session) == "Datacenters"


async def test_a_reading_call_is_repeated_after_a_lost_connection(lab, vcenter):
    async with vcenter.connect() as session:
        service = vim.ServiceInstance("ServiceInstance", session.stub)
        lab.inject("CurrentTime", Drop.AFTER)
        assert isinstance(await session.call("CurrentTime", service.CurrentTime), datetime)
        for nth in range(1, 5):
            lab.inject("CurrentTime", Drop.BEFORE, nth)
        with pytest.raises(ConnectionLost):
            await session.call("CurrentTime", service.CurrentTime, patience_s=0)
        await session.call("CurrentTime", service.CurrentTime)  # and again, with patience


async def test_a_changing_call_is_not_repeated_when_its_answer_is_lost(lab, vcenter):
    async with vcenter.connect() as session:
        service = vim.ServiceInstance("ServiceInstance", session.stub)
        before = lab.calls.get("CurrentTime", 0)
        lab.inject("CurrentTime", Drop.AFTER)
        with pytest.raises(ConnectionLost):
            await session.call("CurrentTime", service.CurrentTime, changes=True)
    assert lab.calls["CurrentTime"] == before + 1


async def test_a_changing_call_refused_for_an_expired_session_runs_after_a_new_login(lab, vcenter):
    async with vcenter.connect() as session:
        lab.expire_sessions()
        name = await session.call("Read", lambda: session.content.rootFolder.name, changes=True)
        assert name == "Datacenters"


async def test_a_fault_leaves_a_nursery_as_one_of_our_errors(lab, vcenter):
    async with vcenter.connect() as session:

        async def failing() -> None:
            await session.call("Fail", lambda: session.content.rootFolder.Destroy(), changes=True)

        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(failing)
        (error,) = caught.value.exceptions
        assert isinstance(error, NotOffered)
        assert isinstance(error, MoverError)
        error.add_note("works")


async def test_a_cancelled_reading_call_returns_at_once(vcenter):
    async with vcenter.connect() as session:
        release, ended = threading.Event(), threading.Event()

        def slow() -> None:
            release.wait(30)
            ended.set()

        with trio.move_on_after(0.05) as scope:
            await session.call("Slow", slow)
        assert scope.cancelled_caught
        assert not ended.is_set()
        release.set()
        await trio.to_thread.run_sync(ended.wait, 30)


async def test_a_cancelled_changing_call_is_waited_for(vcenter):
    async with vcenter.connect() as session:
        started, release = threading.Event(), threading.Event()

        def change() -> str:
            started.set()
            release.wait(30)
            return "made"

        async with trio.open_nursery() as nursery:
            results: list[str] = []

            async def run() -> None:
                results.append(await session.call("Change", change, changes=True))

            nursery.start_soon(run)
            await trio.to_thread.run_sync(started.wait, 30)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert results == []
            release.set()
        assert results == ["made"]
