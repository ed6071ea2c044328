"""Fetching over HTTPS: every login, every failure, and downloads that break."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from pipeline.secrets import Secret
from tests.vadpipe.vsphere.manifest.fetching_kit import CONTENT, DIRECTORY, NAME, Lying, lying
from vadpipe.lab.vcenter.faults.injection import Delay, Drop, Event
from vadpipe.lab.vcenter.faults.on_demand import refusing
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.lab.vcenter.state.inventory import FIRST_HOST
from vadpipe.vsphere.api.http import TrustedConnection
from vadpipe.vsphere.manifest import fetch as ways
from vadpipe.vsphere.manifest import https
from vadpipe.vsphere.manifest.https import Login, OverHttps

LOGINS: list[Login] = ["cookie", "basic", "ticket"]
LARGE = CONTENT + bytes(3 << 20)  # does not fit into the buffers of a socket


@pytest.fixture
def lab(lab: LabVcenter) -> LabVcenter:
    """Its host answers where vCenter does."""
    host = lab._inventory.hosts[FIRST_HOST]
    host.name, host.port = lab.address, lab.port
    return lab


@pytest.fixture
def in_folders(tmp_path) -> Iterator[LabVcenter]:
    with LabVcenter(tmp_path / "other", task_s=0.02, datacenter="Sites/50% of A\\B") as running:
        yield running


async def content_by(there: Lying, fetcher: OverHttps) -> bytes:
    return (await ways.fetch_within(fetcher, there.session, there.place)).content


@pytest.mark.parametrize("login", LOGINS)
async def test_each_login_fetches_alone(lab, vcenter, login):
    lab.folder.accepts = {login}
    async with lying(lab, vcenter) as there:
        fetched = await there.fetched(OverHttps(login))
        assert fetched.content == CONTENT
        assert fetched.path == f"[data store] {DIRECTORY}/{NAME}"
        assert [one.as_dict() for one in fetched.attempts] == [{"way": f"HTTPS ({login})"}]
        (other, *_) = (one for one in LOGINS if one != login)
        assert (await there.fetched(OverHttps(other))).content is None


async def test_a_datacenter_in_folders_is_named_with_its_escapes(in_folders, vcenter):
    pinned = replace(vcenter, port=in_folders.port, thumbprint=in_folders.thumbprint_sha256)
    async with lying(in_folders, pinned) as there:
        assert there.place.datacenter_path == "Sites/50%25 of A%5cB"
        assert await content_by(there, OverHttps()) == CONTENT


async def test_an_esxi_host_serves_every_login_itself(tmp_path, vcenter):
    with LabVcenter(tmp_path / "host", task_s=0.02, api_type="HostAgent") as host:
        pinned = replace(vcenter, port=host.port, thumbprint=host.thumbprint_sha256)
        async with lying(host, pinned) as there:
            for login in LOGINS:
                host.folder.accepts = {login}
                assert await content_by(there, OverHttps(login)) == CONTENT


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "requires a login"),
        (403, "Datastore.Browse"),
        (404, "no such file"),
        (500, "500 Internal Server Error"),
    ],
)
@pytest.mark.parametrize("login", LOGINS)
async def test_each_refusal_names_its_cause(lab, vcenter, login, status, told):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", refusing(status))
        lab.inject("/folder", refusing(status), nth=2)
        if (status, login) == (401, "ticket"):
            told = "does not accept the ticket"
        assert told in await there.problem(OverHttps(login))


async def test_a_session_that_ended_is_renewed_and_a_server_that_starts_is_waited_for(lab, vcenter):
    async with lying(lab, vcenter) as there:
        for login in LOGINS:
            lab.expire_sessions()
            lab.inject("/folder", refusing(503))
            assert await content_by(there, OverHttps(login)) == CONTENT


@pytest.mark.parametrize("login", LOGINS)
async def test_a_broken_download_is_repeated_as_a_whole(lab, vcenter, login):
    async with lying(lab, vcenter, LARGE) as there:
        lab.inject("/folder", Drop.AFTER)
        lab.inject("/folder", Drop.AFTER, nth=2)
        assert await content_by(there, OverHttps(login)) == LARGE
        assert lab.calls["/folder"] == 3


async def test_a_file_that_changes_between_two_attempts_is_the_later_one(lab, vcenter):
    async with lying(lab, vcenter, LARGE) as there:
        other = bytes(reversed(LARGE))[: len(LARGE) // 4]
        lab.inject("/folder", Drop.AFTER)
        lab.inject("/folder", Event(lambda: there.path.write_bytes(other)), nth=2)
        there.place = replace(there.place, size=len(other))
        assert await content_by(there, OverHttps()) == other


async def test_a_connection_that_always_breaks_is_an_error(lab, vcenter):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", Drop.BEFORE, chance=1)
        assert "connection" in await there.problem(OverHttps())


async def test_another_size_than_the_datastore_lists_is_refused(lab, vcenter):
    async with lying(lab, vcenter) as there:
        there.path.write_bytes(CONTENT[:-1])
        told = await there.problem(OverHttps())
        assert f"{len(CONTENT) - 1} bytes of" in told
        assert f"lists {len(CONTENT)}" in told


@pytest.mark.parametrize("after", [False, True], ids=["before the first byte", "in the middle"])
async def test_a_silent_server_is_left_after_the_time_limit(lab, vcenter, after):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", Delay(), after=after)
        assert "did not arrive within 0.2 s" in await there.problem(OverHttps(timeout_s=0.2))
        assert await content_by(there, OverHttps()) == CONTENT


async def test_a_file_above_the_size_limit_is_not_read(lab, vcenter, monkeypatch):
    monkeypatch.setattr(https, "MAX_ARCHIVE_SIZE", 100)
    async with lying(lab, vcenter) as there:
        assert "larger than" in await there.problem(OverHttps())


async def test_basic_login_needs_a_password(lab, vcenter):
    async with lying(lab, vcenter) as there:
        cookie = Secret.from_text(there.session.cookie)
        by_cookie = replace(vcenter, password=None, cookie=cookie)
        async with by_cookie.connect() as there.session:
            assert "no password" in await there.problem(OverHttps("basic"))
            assert await content_by(there, OverHttps()) == CONTENT


async def test_a_host_that_shows_another_certificate_gets_no_ticket(lab, vcenter, tmp_path):
    with LabVcenter(tmp_path / "impostor") as impostor:
        lab._inventory.hosts[FIRST_HOST].port = impostor.port
        async with lying(lab, vcenter) as there:
            assert "another certificate" in await there.problem(OverHttps("ticket"))
            assert "/folder" not in impostor.calls


async def test_an_unreachable_host_is_named(lab, vcenter):
    async with lying(lab, vcenter) as there:
        lab._inventory.hosts[FIRST_HOST].port = 1
        told = await there.problem(OverHttps("ticket"))
        assert f"{lab.address} does not answer" in told


async def test_a_cancelled_download_closes_its_connection(
    lab, vcenter, wait_for_call, wait_until, monkeypatch
):
    closed, close = [], TrustedConnection.close
    async with lying(lab, vcenter) as there:
        monkeypatch.setattr(
            TrustedConnection, "close", lambda connection: (closed.append(connection), close(connection))
        )
        lab.inject("/folder", Delay())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.fetched, OverHttps())
            await wait_for_call(lab, "/folder")
            nursery.cancel_scope.cancel()
        await wait_until(lambda: bool(closed))  # while the server still says nothing
        lab.calm()
        assert (await there.fetched(OverHttps())).content == CONTENT
        assert lab.calls["/folder"] == 2  # the one that was left behind did not begin again


async def test_a_host_is_trusted_by_the_certificate_that_vcenter_names(lab, vcenter, tmp_path):
    with LabVcenter(tmp_path / "host") as host:
        host._service.sessions = lab._service.sessions  # it knows the tickets
        lab._service.certificate = host._service.certificate
        lab._inventory.hosts[FIRST_HOST].port = host.port
        (host.datastore("data store") / DIRECTORY).mkdir()
        (host.datastore("data store") / DIRECTORY / NAME).write_bytes(CONTENT)
        async with lying(lab, vcenter) as there:
            assert await content_by(there, OverHttps("ticket")) == CONTENT
        assert host.calls["/folder"] == 1


async def test_no_secret_is_in_a_report(lab, vcenter):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", refusing(403), chance=1)
        for login in LOGINS:
            told = repr(await there.fetched(OverHttps(login)))
            assert there.session.cookie.partition('"')[2].rstrip('"') not in told
            assert "vmware_cgi_ticket" not in told
