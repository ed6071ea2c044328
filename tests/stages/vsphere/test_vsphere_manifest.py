"""The manifest of this snapshot, or why there is none; "none" and "not fetched" are kept apart."""

import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from pyVmomi import vim

from lab.vcenter import Drop, LabVcenter
from stages.vsphere import (
    Journal,
    Quiesce,
    Vcenter,
    VcenterSession,
    fetch_https,
    fetching,
    find_vm,
    snapshot_tree,
)
from stages.vsphere.manifest import DirectoryState, directory_state, fetch_manifest
from stages.vsphere.snapshot import Snapshot, open_snapshot
from stages.vss.fetched import FetchedManifest

AddVm = Callable[..., str]


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
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not say `backupManifest`, as older ones."""
    flat = snapshot_tree.flat_tree
    monkeypatch.setattr(
        snapshot_tree,
        "flat_tree",
        lambda trees: [replace(node, backup_manifest=None) for node in flat(trees)],
    )


async def test_application_quiescing_leaves_several_documents(
    vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken)
    assert _is_of_applications(fetched)
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert "backupManifest" in fetched.reason


async def test_names_that_need_escaping(vcenter: Vcenter, journal: Journal, lab: LabVcenter) -> None:
    lab.register_vm(lab.datastore("datastore1") / "50% ä#?&", "web01", [])
    async with _quiesced(vcenter, journal) as taken:
        assert _is_of_applications(await fetch_manifest(*taken))


@pytest.mark.usefixtures("unnamed")
async def test_without_backup_manifest_the_new_file_is_taken_and_never_an_old_one(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    old = lab.datastore("datastore1") / "web01" / "web01-vss_manifests7.zip"
    old.write_bytes(b"from an earlier snapshot")
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken)
    assert fetched.path == "[datastore1] web01/web01-vss_manifests8.zip"
    assert _is_of_applications(fetched)


async def test_no_manifest_is_absent(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm(guest_id="ubuntu64Guest")
    (lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip").write_bytes(b"old")
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken)
    assert fetched.absent
    assert (fetched.content, fetched.path) == (None, None)


async def test_a_forbidden_one_is_not_absent(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        lab.forbid_datastore("datastore1")
        fetched = await fetch_manifest(*taken)
    assert not fetched.absent
    assert fetched.content is None
    assert fetched.path == "[datastore1] web01/web01-vss_manifests1.zip"
    assert "Datastore.Browse" in fetched.reason


async def test_one_that_vanished_is_not_absent(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        (lab.datastore("datastore1") / "web01" / "web01-vss_manifests1.zip").unlink()
        fetched = await fetch_manifest(*taken)
    assert not fetched.absent
    assert "no such file" in fetched.reason


@pytest.mark.usefixtures("unnamed")
async def test_where_nobody_can_look_nobody_knows(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    async with _quiesced(vcenter, journal) as (session, snapshot, before):
        blind = replace(before, layout=frozenset(), searched=frozenset(), problem="no privilege to look")
        fetched = await fetch_manifest(session, snapshot, blind)
    assert not fetched.absent
    assert fetched.content is None
    assert "no privilege" in fetched.reason


async def test_a_search_that_is_refused_is_part_of_the_answer(
    lab: LabVcenter, vcenter: Vcenter, add_vm: AddVm
) -> None:
    add_vm()
    lab.inject("SearchDatastore_Task", lambda: vim.fault.FileNotFound(file="x"))
    async with vcenter.connect() as session:
        state = await directory_state(session, await find_vm(session, "web01"))
    assert state.directory.startswith("[datastore1] web01")
    assert any(name.endswith(".vmx") for name in state.layout)
    assert "SearchDatastore_Task" in state.problem


@pytest.mark.slow
async def test_an_expired_session_and_a_lost_connection_are_mended(
    lab: LabVcenter, vcenter: Vcenter, journal: Journal, add_vm: AddVm
) -> None:
    add_vm()
    async with _quiesced(vcenter, journal) as taken:
        lab.inject("/folder", Drop.BEFORE)
        assert (await fetch_manifest(*taken)).content
        lab.expire_sessions()
        assert (await fetch_manifest(*taken)).content
        lab.inject("/folder", Drop.BEFORE)
        lab.inject("/folder", Drop.BEFORE, nth=2)
        assert (await fetch_manifest(*taken)).content  # a longer outage is waited for
        lab.inject("/folder", Drop.BEFORE, chance=1)
        fetched = await fetch_manifest(*taken)
        assert (fetched.content, fetched.absent) == (None, False)
        assert "connection" in fetched.reason


async def test_a_file_beyond_the_bound_is_refused(
    vcenter: Vcenter, journal: Journal, add_vm: AddVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_vm()
    monkeypatch.setattr(fetch_https, "MAX_ARCHIVE_SIZE", 100)
    monkeypatch.setattr(fetching, "MAX_ARCHIVE_SIZE", 100)
    async with _quiesced(vcenter, journal) as taken:
        fetched = await fetch_manifest(*taken)
    assert fetched.content is None
    assert "larger than 100 bytes" in fetched.reason
