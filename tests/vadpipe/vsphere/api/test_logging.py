"""What the session logs, and that no secret is ever in a log."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import MoverError
from pipeline.secrets import Secret
from tests.vadpipe.vsphere.manifest.fetching_kit import lying
from vadpipe.lab.vcenter.faults.injection import Drop, Refusal
from vadpipe.lab.vcenter.faults.on_demand import refusing
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import FIRST_HOST
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.guest.files import GuestAccount, GuestFiles
from vadpipe.vsphere.guest.scripts import WINDOWS
from vadpipe.vsphere.inventory.tags import tagged
from vadpipe.vsphere.manifest.https import OverHttps

PASSWORD, GUEST_PASSWORD = "pa55word of the vCenter", "guest"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabVcenter]:
    with LabVcenter(tmp_path / "lab", task_s=0.02, password=PASSWORD) as running:
        host = running._inventory.hosts[FIRST_HOST]
        host.name, host.port = running.address, running.port
        yield running


@pytest.fixture
def vcenter(vcenter: Vcenter) -> Vcenter:
    return replace(vcenter, password=Secret.from_text(PASSWORD))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def lines(logged: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in logged.records
        if record.levelno == level and record.name.startswith("vadpipe.vsphere.")
    ]


async def test_no_secret_of_a_session_is_logged(lab, vcenter, logged, monkeypatch):
    issued = {PASSWORD, f"backup:{PASSWORD}"}
    for owner, name in (
        (lab._service.sessions, "issue_ticket"),
        (lab.guests, "begin"),
        (lab.tags, "open_session"),
    ):
        original = getattr(owner, name)

        def recorded(*arguments: object, original: object = original) -> object:
            secret = original(*arguments)
            issued.add(str(secret).rpartition("token=")[2])
            return secret

        monkeypatch.setattr(owner, name, recorded)
    lab.tags.attach(lab.tags.create("backup", "daily"), "vm-42")
    async with lying(lab, vcenter) as there:
        issued.add(there.session.cookie.split('"')[1])
        for login in ("cookie", "basic", "ticket"):
            lab.inject("/folder", refusing(403))
            await there.fetched(OverHttps(login))
            await there.fetched(OverHttps(login))
        lab.expire_sessions()
        assert await tagged(there.session, "backup/daily")
        issued.add(there.session.cookie.split('"')[1])
        moref = there.place.vm.moref
        lab.guests.write(moref, WINDOWS.tools_conf, b"[vmbackup]\n")
        for password in (GUEST_PASSWORD, "a wrong guest password"):
            issued.add(f"password {password}")
            account = GuestAccount("Administrator", Secret.from_text(password))
            files = GuestFiles(there.session, there.place.vm, account, True)
            lab.inject("/guestFile", Drop.BEFORE)
            try:
                assert await files.read(WINDOWS.tools_conf) is not None
                await files.replace(WINDOWS.tools_conf, b"")
            except MoverError:
                assert password != GUEST_PASSWORD
        issued.add("a wrong guest password")
        borrowed = replace(vcenter, user="", password=None, cookie=Secret.from_text(there.session.cookie))
        async with borrowed.connect():
            pass
    assert len(issued) > 8
    text = "\n".join(
        f"{record.getMessage()} {record.args!r}"
        for record in logged.records
        if not record.name.startswith("vadpipe.lab")
    )
    assert "AcquireGenericServiceTicket" in text
    assert "InitiateFileTransferToGuest" in text
    assert [secret for secret in issued if secret in text] == []


async def test_each_call_is_logged_with_its_object_and_its_duration(vcenter, logged):
    async with vcenter.connect() as session:
        await session.call("Read", lambda: session.content.rootFolder.name)
    calls = lines(logged, logging.DEBUG)
    assert any(": Login SessionManager:SessionManager 0." in line and line.endswith(" s") for line in calls)
    assert any("vimServiceVersions.xml: 200, " in line for line in calls)
    assert any(": Logout SessionManager:" in line for line in calls)


async def test_a_new_login_a_repeat_and_a_wait_are_logged_as_information(lab, vcenter, logged):
    async with vcenter.connect() as session:

        async def name() -> None:
            await session.call("Read", lambda: session.content.rootFolder.name)

        lab.expire_sessions()
        await name()
        lab.inject("Fetch", Drop.AFTER)
        await name()
        lab.inject("Fetch", Refusal.UNAVAILABLE)
        lab.inject("Fetch", Refusal.UNAVAILABLE, 2)
        await name()
    said = " | ".join(lines(logged, logging.INFO))
    assert "the session has ended; logging in again" in said
    assert said.count("logged in as backup") == 2
    assert "Read lost its connection; it is repeated on a new one" in said
    assert "Read waits 0." in said
    assert lines(logged, logging.WARNING) == []


async def test_a_refused_certificate_login_or_privilege_is_a_warning(lab, vcenter, logged):
    for settings in (
        replace(vcenter, thumbprint="ab" * 32),
        replace(vcenter, password=Secret.from_text("wrong")),
    ):
        with pytest.raises(MoverError):
            async with settings.connect():
                pass
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", refusing(403))
        await there.fetched(OverHttps())
    certificate, login, privilege = lines(logged, logging.WARNING)
    assert "another certificate" in certificate
    assert "Login" in login
    assert "Datastore.Browse" in privilege
