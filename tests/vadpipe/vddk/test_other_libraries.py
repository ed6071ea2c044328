"""Libraries that are less than VDDK 6.7: functions they lack, pointers and lists that they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.extents import Extents
from tests.vadpipe.reading_kit import whole_disk
from tests.vadpipe.vddk.conftest import CAPACITY, qemu, quick
from vadpipe.lab.vddk_build import CompilerMissing, build_vddk
from vadpipe.vddk import DiskAccess, VmAccess, abi
from vadpipe.vddk.errors import VddkError

ALL = sorted(abi.OPTIONAL - {"FreeConnectParams"})


@pytest.fixture(scope="session")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a stand-in without some functions."""
    built: dict[tuple[str, ...], Path] = {}

    def build(*names: str) -> Path:
        try:
            if names not in built:
                built[names] = build_vddk(tmp_path_factory.mktemp("lacking"), lacks=names)
        except CompilerMissing as exc:
            pytest.skip(str(exc))
        return built[names]

    return build


async def test_a_disk_is_read_without_any_optional_function(lacking, lab, pool, caplog):
    caplog.set_level("INFO", logger="vadpipe")
    async with quick(lacking(*ALL)).open(lab.access(), pool) as disk:
        assert disk.allocation == "unavailable"
        assert await disk.allocated(0, CAPACITY) == Extents.whole(CAPACITY)
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
    assert (disk.statistics().unclean, disk.may_be_attached) == (0, False)
    assert "lacks AllocateConnectParams, PrepareForAccess" in caplog.text


async def test_a_disk_may_stay_attached_when_the_library_cannot_clean_up(lacking, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_HOTADD", "1")
    async with quick(lacking(*ALL), transports="hotadd").open(lab.access(), pool) as disk:
        assert disk.transport == "hotadd"
    assert disk.may_be_attached


async def test_a_call_that_the_library_lacks_is_an_error_of_its_own(lacking, lab):
    access = lab.access()
    vm = VmAccess(
        server=access.server,
        user=access.user,
        password=access.password,
        thumbprint=access.thumbprint,
        vm=access.vm,
    )
    for call in (
        lambda reader: reader.prepare_for_access(vm, "vadpipe"),
        lambda reader: reader.end_access(vm, "vadpipe"),
        lambda reader: reader.clean_up(vm),
    ):
        with pytest.raises(VddkError, match="no such function") as caught:
            await call(quick(lacking(*ALL)))
        assert (caught.value.facts["code"], caught.value.transient) == (6, False)


async def test_a_library_without_a_function_that_a_reader_needs_is_refused(lacking, made_lab, pool):
    access = DiskAccess.local(made_lab.chains["flat"].leaf)
    with pytest.raises(ConfigError, match="no symbol VixDiskLib_ReadAsync"):
        async with quick(lacking("ReadAsync")).open(access, pool):
            pytest.fail("it is not open")


@pytest.mark.parametrize(("fault", "code"), [("connect:1:3014", 3014), ("open:1:4", 4)])
async def test_a_pointer_that_a_failed_call_left_is_not_used(libdir, lab, pool, monkeypatch, fault, code):
    monkeypatch.setenv("VADPIPE_VDDK_GARBAGE", "1")
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", fault)
    with pytest.raises(VddkError) as caught:
        async with quick(libdir).open(lab.access(), pool):
            pytest.fail("it is not open")
    assert caught.value.facts["code"] == code
    assert not any("misuse" in line for line in caught.value.facts["log"])  # type: ignore[attr-defined]


async def test_a_query_without_a_list_is_a_refused_query(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_QAB", "null")
    async with quick(libdir).open(lab.access(), pool) as disk:
        assert (disk.allocation, "gave no list" in disk.allocation_reason) == ("unavailable", True)
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
    assert (disk.statistics().restarts, disk.statistics().unclean) == (0, 0)


async def test_unbuffered_reading_and_another_nfc_port_reach_the_library(libdir, lab, pool):
    settings = quick(libdir, transports="nbdssl", unbuffered=True, nfc_port=9902)
    async with settings.open(lab.access(), pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
    with pytest.raises(ConfigError, match="nfc_port"):
        quick(libdir, nfc_port=70000)


@pytest.mark.slow
async def test_a_library_that_cannot_write_is_refused_before_the_disk_is_opened(
    lacking, made_lab, pool, tmp_path
):
    access = DiskAccess.local(made_lab.chains["flat"].leaf)
    for name in ("WriteAsync", "Flush"):
        with pytest.raises(VddkError, match=rf"VDDK {name} of .*no such function") as caught:
            async with quick(lacking(name)).open(access, pool, write=True):
                pytest.fail("it is open")
        assert (caught.value.facts["code"], caught.value.transient) == (6, False)
    leaf = tmp_path / "new.vmdk"
    qemu("qemu-img", "create", "-q", "-f", "vmdk", leaf, "1M")
    async with quick(lacking("ReadMetadata")).open(DiskAccess.local(leaf), pool, write=True) as disk:
        with pytest.raises(VddkError, match=r"ReadMetadata.*no such function"):
            await disk.read_metadata("adapterType")
        await disk.write_metadata("adapterType", "lsilogic")
