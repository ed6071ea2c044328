"""Copies on a datastore: place, name, and every failure."""

import re
from pathlib import Path

import pytest
from pyVmomi import vim

from pipeline.errors import ConfigError
from tests.vadpipe.vsphere.manifest.fetching_kit import CONTENT, NAME, lying
from vadpipe.lab.vcenter.faults.injection import Drop
from vadpipe.lab.vcenter.faults.on_demand import refusing
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vsphere.manifest.copy import CopyOnDatastore
from vadpipe.vsphere.manifest.https import OverHttps

WAY = CopyOnDatastore("[datastore1] kept/of vss")


def copies(lab: LabVcenter) -> list[Path]:
    kept = lab.datastore("datastore1") / "kept" / "of vss"
    return sorted(kept.iterdir()) if kept.exists() else []


async def test_each_copy_is_kept_under_its_own_name(lab, vcenter):
    async with lying(lab, vcenter) as there:
        first = await there.fetched(WAY)
        there.path.unlink()  # as when the snapshot goes
        (kept,) = copies(lab)
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}-" + re.escape(NAME), kept.name)
        there.path.write_bytes(CONTENT)
        second = await there.fetched(WAY)
    assert (first.content, second.content) == (CONTENT, CONTENT)
    assert [one.read_bytes() for one in copies(lab)] == [CONTENT, CONTENT]
    (attempt,) = first.attempts
    assert attempt.remark == f"A copy is kept as [datastore1] kept/of vss/{kept.name}."
    assert WAY.effects() == ["Copies the VSS manifest into [datastore1] kept/of vss, and leaves it there."]


@pytest.mark.parametrize(
    "directory",
    ["[datastore1]", "[datastore1] ", "[data store] other/"],
    ids=["root", "root, blank", "other"],
)
async def test_a_copy_can_go_into_any_directory_of_the_datacenter(lab, vcenter, directory):
    async with lying(lab, vcenter) as there:
        assert (await there.fetched(CopyOnDatastore(directory))).content == CONTENT


@pytest.mark.parametrize("directory", ["kept", "[datastore1", "[datastore1] ../kept"])
def test_another_text_than_a_datastore_directory_is_a_config_error(directory):
    with pytest.raises(ConfigError, match=r"CopyOnDatastore.*datastore"):
        CopyOnDatastore(directory)


async def test_a_lost_answer_makes_no_second_copy(lab, vcenter):
    async with lying(lab, vcenter) as there:
        lab.inject("CopyDatastoreFile_Task", Drop.AFTER)
        lab.inject("MakeDirectory", Drop.AFTER)
        assert (await there.fetched(WAY)).content == CONTENT
        assert len(copies(lab)) == 1


async def test_an_existing_file_is_not_overwritten(lab, vcenter, monkeypatch):
    async with lying(lab, vcenter) as there:
        lab.inject("CopyDatastoreFile_Task", lambda: vim.fault.FileAlreadyExists(file="x"), in_task=True)
        assert "CopyDatastoreFile_Task" in await there.problem(WAY)


@pytest.mark.parametrize(
    ("method", "in_task", "fault", "told"),
    [
        (
            "MakeDirectory",
            False,
            vim.fault.NoPermission(privilegeId="Datastore.FileManagement"),
            "FileManagement",
        ),
        ("MakeDirectory", False, vim.fault.InvalidDatastore(name="x"), "MakeDirectory"),
        ("CopyDatastoreFile_Task", True, vim.fault.FileNotFound(file="x"), "CopyDatastoreFile_Task"),
        ("CopyDatastoreFile_Task", True, vim.fault.NoDiskSpace(file="x", datastore="y"), "datastore is full"),
    ],
)
async def test_each_fault_is_reported(lab, vcenter, method, in_task, fault, told):
    if isinstance(fault, vim.fault.NoPermission):
        fault.object = vim.Datastore("datastore-1")
    async with lying(lab, vcenter) as there:
        lab.inject(method, lambda: fault, in_task=in_task)
        assert told in await there.problem(WAY)


@pytest.mark.parametrize(
    ("status", "told"), [(401, "requires a login"), (403, "Datastore.Browse"), (404, "no such file")]
)
async def test_a_download_that_fails_names_the_copy(lab, vcenter, status, told):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", refusing(status))
        lab.inject("/folder", refusing(status), nth=2)
        problem = await there.problem(WAY)
    assert told in problem
    assert f"A copy is kept as [datastore1] kept/of vss/{copies(lab)[0].name}." in problem


async def test_a_copy_survives_a_broken_connection_and_checks_size_and_time(lab, vcenter):
    async with lying(lab, vcenter) as there:
        lab.inject("/folder", Drop.AFTER)
        assert (await there.fetched(WAY)).content == CONTENT
        there.path.write_bytes(CONTENT[1:])
        assert "A copy is kept" in await there.problem(WAY)
        hurried = CopyOnDatastore(WAY.directory, timeout_s=0.01, download=OverHttps("basic"))
        assert "did not arrive within 0.01 s" in await there.problem(hurried)
