"""Fetching the manifest of a snapshot; "absent" and "not fetched" are different answers."""

import io
import os
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from pyVmomi import vim

from pipeline.errors import SourceError
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.api.session import Vcenter, VcenterSession
from vadpipe.vsphere.inventory.lookup import find_vm
from vadpipe.vsphere.journal.intents import Journal
from vadpipe.vsphere.manifest import fetch as ways
from vadpipe.vsphere.manifest import https
from vadpipe.vsphere.manifest.fetch import Fetched, ManifestPlace, fetch_manifest
from vadpipe.vsphere.manifest.https import OverHttps
from vadpipe.vsphere.manifest.locate import DirectoryState, directory_state
from vadpipe.vsphere.snapshot.quiesce import Quiesce
from vadpipe.vsphere.snapshot.snapshot import Snapshot, open_snapshot
from vadpipe.vss.fetched import FetchedManifest, ManifestKind

HTTPS = (OverHttps(),)


@asynccontextmanager
async def _quiesced(
    vcenter: Vcenter, journal: Journal, quiesce: Quiesce | None = None
) -> AsyncIterator[tuple[VcenterSession, Snapshot, DirectoryState]]:
    async with vcenter.connect() as session:
        vm = await find_vm(session, "web01")
        before = await directory_state(session, vm)
        async with open_snapshot(session, vm, quiesce or Quiesce.application(), journal, run="r") as snapshot:
            yield session, snapshot, before


def _is_of_applications(fetched: FetchedManifest) -> bool:
    assert fetched.content is not None
    members = zipfile.ZipFile(io.BytesIO(fetched.content)).namelist()
    return "backup.xml" in members and len(members) > 1


@pytest.fixture
def unnamed(lab: LabVcenter) -> None:
    """A server that does not say `backupManifest`, as older ones."""
    lab.manifests.named = False


async def test_the_manifest_of_application_quiescing_is_fetched(vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert _is_of_applications(fetched)
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert "backupManifest" in fetched.reason


async def test_paths_that_need_escaping_are_fetched(vcenter, journal, lab):
    directory = lab.datastore("datastore1") / "50% ä#?&"
    lab.register_vm(directory, "web01", [LabDisk.create(directory, "disk0", 1 << 20)])
    async with _quiesced(vcenter, journal) as taken:
        assert _is_of_applications(await fetch_manifest(*taken, HTTPS))


@pytest.mark.usefixtures("unnamed")
async def test_without_backup_manifest_the_new_file_is_used_and_not_an_old_one(lab, vcenter, journal, add_vm):
    add_vm()
    old = lab.datastore("datastore1") / "web01" / "web01-vss_manifests7.zip"
    old.write_bytes(b"from an earlier snapshot")
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.path == "[datastore1] web01/web01-vss_manifests8.zip"
    assert _is_of_applications(fetched)


async def test_no_manifest_is_absent(lab, vcenter, journal, add_vm):
    add_vm(guest_id="ubuntu64Guest")
    (lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip").write_bytes(b"old")
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.absent
    assert (fetched.content, fetched.path) == (None, None)


async def test_a_forbidden_manifest_is_not_absent(lab, vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        lab.forbid_datastore("datastore1")
        fetched = await fetch_manifest(*taken, HTTPS)
    assert not fetched.absent
    assert fetched.content is None
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert "Datastore.Browse" in fetched.reason


async def test_a_vanished_manifest_is_not_absent(lab, vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        (lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip").unlink()
        fetched = await fetch_manifest(*taken, HTTPS)
    assert not fetched.absent
    assert "no such file" in fetched.reason


@pytest.mark.usefixtures("unnamed")
async def test_a_manifest_is_unknown_when_nobody_can_look(lab, vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as (session, snapshot, before):
        blind = replace(before, layout=frozenset(), searched=frozenset(), problem="no privilege to look")
        fetched = await fetch_manifest(session, snapshot, blind, HTTPS)
    assert not fetched.absent
    assert fetched.content is None
    assert "no privilege" in fetched.reason


async def test_a_search_that_is_refused_is_part_of_the_answer(lab, vcenter, add_vm):
    add_vm()
    lab.inject("SearchDatastore_Task", lambda: vim.fault.FileNotFound(file="x"))
    async with vcenter.connect() as session:
        state = await directory_state(session, await find_vm(session, "web01"))
    assert state.directory.startswith("[datastore1] web01")
    assert any(name.endswith(".vmx") for name in state.layout)
    assert "SearchDatastore_Task" in state.problem


@pytest.mark.slow
async def test_a_fetch_survives_an_expired_session_and_a_lost_connection(lab, vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        lab.inject("/folder", Drop.BEFORE)
        assert (await fetch_manifest(*taken, HTTPS)).content
        lab.expire_sessions()
        assert (await fetch_manifest(*taken, HTTPS)).content
        lab.inject("/folder", Drop.BEFORE)
        lab.inject("/folder", Drop.BEFORE, nth=2)
        assert (await fetch_manifest(*taken, HTTPS)).content  # a longer outage is waited for
        lab.inject("/folder", Drop.BEFORE, chance=1)
        fetched = await fetch_manifest(*taken, HTTPS)
        assert (fetched.content, fetched.absent) == (None, False)
        assert "connection" in fetched.reason


async def test_a_manifest_above_the_size_limit_is_refused(vcenter, journal, add_vm, monkeypatch):
    add_vm()
    monkeypatch.setattr(https, "MAX_ARCHIVE_SIZE", 100)
    monkeypatch.setattr(ways, "MAX_ARCHIVE_SIZE", 100)
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.content is None
    assert "larger than 100 bytes" in fetched.reason


async def test_a_relative_backup_manifest_is_found(lab, vcenter, journal, add_vm):
    lab.manifests.relative = True
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        assert _is_of_applications(await fetch_manifest(*taken, HTTPS))


async def test_the_manifest_of_a_renamed_vm_is_found(lab, vcenter, journal, add_vm):
    lab.manifests.file_name = "its old [name]-vss_manifests{number}.zip"
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.path == "[datastore1] web01/its old [name]-vss_manifests1.zip"
    assert _is_of_applications(fetched)


@pytest.mark.parametrize("named", [True, False])
async def test_a_reused_number_is_distinguished_from_the_old_file(lab, vcenter, journal, add_vm, named):
    lab.manifests.named, lab.manifests.reuse_numbers = named, True
    add_vm()
    old = lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip"
    old.write_bytes(b"from an earlier snapshot")
    os.utime(old, (1_700_000_000, 1_700_000_000))
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert _is_of_applications(fetched)


async def test_an_old_file_is_not_used_even_when_vsphere_names_it(lab, vcenter, journal, add_vm):
    lab.manifests.reuse_numbers = lab.manifests.late = True  # named, and never written
    add_vm()
    (lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip").write_bytes(b"old")
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS)
    assert fetched.absent
    assert "was there before and has not changed" in fetched.reason


@pytest.mark.slow
@pytest.mark.usefixtures("unnamed")
async def test_a_late_manifest_is_waited_for(lab, vcenter, journal, add_vm, wait_until):
    lab.manifests.late = True
    add_vm()
    async with _quiesced(vcenter, journal) as taken, trio.open_nursery() as nursery:
        searches = lab.calls["SearchDatastore_Task"]

        async def release() -> None:
            await wait_until(lambda: lab.calls["SearchDatastore_Task"] >= searches + 2)
            lab.manifests.release()

        nursery.start_soon(release)
        fetched = await fetch_manifest(*taken, HTTPS, late_until=trio.current_time() + 60)
    assert _is_of_applications(fetched)


@pytest.mark.slow
@pytest.mark.usefixtures("unnamed")
async def test_the_wait_for_a_late_manifest_ends(lab, vcenter, journal, add_vm):
    lab.manifests.late = True
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken, HTTPS, late_until=trio.current_time() + 0.2)
    assert fetched.absent


async def test_no_manifest_is_waited_for_without_quiescing(lab, vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal, Quiesce.none()) as taken:
        searches = lab.calls["SearchDatastore_Task"]
        fetched = await fetch_manifest(*taken, HTTPS, late_until=trio.current_time() + 3600)
    assert fetched.absent
    assert lab.calls["SearchDatastore_Task"] == searches + 1


@pytest.mark.parametrize("named", [True, False])
async def test_the_manifest_of_a_linux_guest_has_its_own_kind(tmp_path, vcenter, journal, named):
    content = b'<quiesceManifest productVersion="12.5.0" providerName="a provider"/>'
    with LabVcenter(tmp_path / "linux", task_s=0.02, manifest=lambda _: content) as lab:
        lab.manifests.named, lab.manifests.file_name = named, "{vm}-quiesce_manifest{number}.xml"
        directory = lab.datastore("datastore1") / "web01"
        disks = [LabDisk.create(directory, "disk0", 1 << 20)]
        lab.register_vm(directory, "web01", disks, quiescing="file-system")
        there = replace(vcenter, port=lab.port, thumbprint=lab.thumbprint_sha256)
        async with _quiesced(there, journal, Quiesce.file_system()) as taken:
            fetched = await fetch_manifest(*taken, HTTPS)
    assert (fetched.content, fetched.kind) == (content, ManifestKind.LINUX_XML)
    assert fetched.reason.startswith("the quiesce manifest of a Linux guest, named by")


@dataclass(frozen=True)
class Way:
    """A way that gives what it was told to, or fails."""

    way: str
    gives: bytes | str
    timeout_s: float = 10.0

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        if isinstance(self.gives, str):
            raise SourceError(self.gives, remedy="None.")
        return Fetched(self.gives, f"{self.way} was here.")

    def effects(self) -> list[str]:
        return []


async def test_ways_are_tried_in_order_and_each_failure_is_recorded(vcenter, journal, add_vm):
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        size = len((await fetch_manifest(*taken, HTTPS)).content or b"")
        broken = Way("broken", b"PK".ljust(size, b"?"))
        away, short = Way("away", "It is away."), Way("short", b"PK")
        fetched = await fetch_manifest(*taken, [away, short, broken, OverHttps(), Way("never", "asked")])
        assert _is_of_applications(fetched)
        assert [one.way for one in fetched.attempts] == ["away", "short", "broken", "HTTPS (cookie)"]
        problems = [one.problem for one in fetched.attempts]
        assert problems[0] == "It is away."
        assert f"the datastore lists {size}" in problems[1]
        assert "not a complete zip" in problems[2]
        assert problems[3] == ""
        damaged = await fetch_manifest(*taken, [broken, away])
        assert damaged.content == broken.gives
        failed = await fetch_manifest(*taken, [away, short])
        assert (failed.content, failed.absent) == (None, False)
        assert failed.reason.startswith("by away: It is away. by short: 2 bytes of")
        assert "no way to fetch it" in (await fetch_manifest(*taken, [])).reason
