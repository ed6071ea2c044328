"""Tags over REST: both generations of the API, and every failure."""

from dataclasses import replace

import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.secrets import Secret
from vadpipe.lab.vcenter.faults.injection import Drop, Event, Refusal
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.faults import CertificateRefused, ConnectionLost, LoginRefused, VsphereError
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.tags import tagged, tags_of


def settings_of(lab: LabVcenter, password: str = "lab") -> Vcenter:
    return Vcenter(
        lab.address,
        "backup",
        Secret.from_text(password),
        thumbprint=lab.thumbprint_sha256,
        port=lab.port,
        patience_s=1,
    )


def tag(lab: LabVcenter, category: str = "backup", name: str = "daily", on: str = "vm-42") -> None:
    lab.tags.attach(lab.tags.create(category, name), on)


@pytest.mark.parametrize(
    ("version", "asked", "not_asked"),
    [("6.5", "/rest", "/api"), ("7.0.1.1", "/rest", "/api"), ("7.0.2.0", "/api", "/rest")],
)
async def test_each_version_of_vsphere_is_asked_in_its_generation_of_the_api(
    tmp_path, version, asked, not_asked
):
    with LabVcenter(tmp_path / "lab", api_version=version) as lab:
        tag(lab)
        tag(lab, name="weekly", on="vm-43")
        async with settings_of(lab).connect() as session:
            assert await tagged(session, "backup/daily") == {("VirtualMachine", "vm-42")}
        assert lab.calls.get(asked, 0) > 0
        assert lab.calls.get(not_asked, 0) == 0
        assert lab.tags.live_sessions == 0


async def test_names_of_tags_can_contain_slashes_and_spaces(lab, vcenter):
    tag(lab, "a/b", "c d/e", "vm-1")
    tag(lab, "a", "b/c", "vm-2")
    async with vcenter.connect() as session:
        assert await tagged(session, "a/b/c d/e") == {("VirtualMachine", "vm-1")}
        assert await tagged(session, "a/b/c") == {("VirtualMachine", "vm-2")}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("backup/dayly", "no tag 'backup/dayly'.*Near names: backup/daily"),
        ("backups/daily", "no tag 'backups/daily'.*Near names: backup"),
        ("Backup/daily", "no tag 'Backup/daily'.*Near names: backup"),
        ("xyz/qqq", "Check the spelling of category and tag"),
    ],
)
async def test_a_missing_tag_names_near_ones(lab, vcenter, wanted, message):
    tag(lab)
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match=message) as caught:
            await tagged(session, wanted)
    assert caught.value.exit_code == 1
    assert lab.tags.live_sessions == 0


async def test_a_session_by_cookie_cannot_read_tags(lab, vcenter):
    async with vcenter.connect() as session:
        borrowed = replace(vcenter, user="", password=None, cookie=Secret.from_text(session.cookie))
        async with borrowed.connect() as with_cookie:
            with pytest.raises(ConfigError, match=r"with the cookie of a session.*Give user and password"):
                await tagged(with_cookie, "backup/daily")
    assert "/api" not in lab.calls


async def test_an_esxi_host_has_no_tags(tmp_path):
    with LabVcenter(tmp_path / "lab", api_type="HostAgent") as lab:
        async with settings_of(lab).connect() as session:
            with pytest.raises(SourceError, match=r"ESXi host\. Only a vCenter has tags"):
                await tagged(session, "backup/daily")


async def test_an_ended_rest_session_is_renewed(lab, vcenter):
    tag(lab)
    lab.inject("/api", Event(lab.tags.end_sessions), nth=3)
    async with vcenter.connect() as session:
        assert await tagged(session, "backup/daily") == {("VirtualMachine", "vm-42")}


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("failure", [Drop.BEFORE, Drop.AFTER, Refusal.UNAVAILABLE])
async def test_each_request_may_fail_once(lab, vcenter, failure, nth):
    tag(lab)
    async with vcenter.connect() as session:
        lab.inject("/api", failure, nth)
        assert await tagged(session, "backup/daily") == {("VirtualMachine", "vm-42")}


async def test_an_unavailable_rest_api_is_a_lost_connection(lab, vcenter):
    lab.inject("/api", Refusal.UNAVAILABLE, chance=1)
    async with replace(vcenter, patience_s=0).connect() as session:
        with pytest.raises(ConnectionLost, match=r"not ready \(POST /api/session\): it answered 503"):
            await tagged(session, "backup/daily")


async def test_a_password_refused_by_the_rest_api_is_a_refused_login(lab, vcenter, monkeypatch):
    async with vcenter.connect() as session:
        monkeypatch.setattr(lab._service, "password_matches", lambda user, password: False)
        with pytest.raises(LoginRefused, match="refuses backup at its REST API") as caught:
            await tagged(session, "backup/daily")
        monkeypatch.undo()
    assert "lab" not in str(caught.value).replace("lab.local", "")


async def test_a_missing_rest_api_is_reported(lab, vcenter, monkeypatch):
    async with vcenter.connect() as session:
        monkeypatch.setattr("vadpipe.lab.vcenter.web.rest._SINCE", (99,))
        with pytest.raises(
            VsphereError, match=r"POST /api/session failed: there is no such resource.*with REST API"
        ):
            await tagged(session, "backup/daily")


async def test_the_pinned_certificate_is_checked_before_the_password_leaves(lab, vcenter):
    async with vcenter.connect() as session:
        session.settings = replace(vcenter, thumbprint="00" * 32)
        with pytest.raises(CertificateRefused):
            await tagged(session, "backup/daily")
        session.settings = vcenter
    assert "/api" not in lab.calls


@pytest.mark.parametrize("version", ["6.5", "8.0.3.0"])
async def test_the_tags_of_an_object_are_named_with_their_categories(tmp_path, version):
    with LabVcenter(tmp_path / "lab", api_version=version) as lab:
        tag(lab, "env", "prod")
        tag(lab, "backup", "daily")
        tag(lab, "backup", "other", on="vm-43")
        async with settings_of(lab).connect() as session:
            assert await tags_of(session, "VirtualMachine", "vm-42") == [("backup", "daily"), ("env", "prod")]
            assert await tags_of(session, "VirtualMachine", "vm-44") == []
        assert lab.tags.live_sessions == 0
