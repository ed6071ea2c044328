"""Crashes, hangs and lost hosts cost a reconnect; final codes end in one clear error."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.units import KiB
from tests.vadpipe.reading_kit import whole_disk
from tests.vadpipe.vddk.conftest import qemu, quick
from vadpipe.vddk.access import DiskAccess
from vadpipe.vddk.disk import VddkDisk
from vadpipe.vddk.errors import VddkError

LOST = [
    ("CRASH", "read:9"),
    ("CRASH", "read:1"),
    pytest.param("HANG", "read:9", marks=pytest.mark.slow),
    ("FAULT", "read:17:14011"),
    ("FAULT", "read:3:14014,read:20:14015"),
    ("FAULT", "open:1:14009"),
    ("CRASH", "connect:1"),
    ("CRASH", "query:1"),
    ("FAULT", "query:2:14011"),
    ("CRASH", "close:1"),
    pytest.param("HANG", "close:1", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "where"), LOST)
async def test_a_lost_child_changes_no_byte(libdir, lab, pool, tmp_path, monkeypatch, kind, where):
    monkeypatch.setenv(f"VADPIPE_VDDK_{kind}", where)
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))
    patience_s = 0.5 if kind == "HANG" else 60.0
    settings = quick(libdir, request=256 * KiB, call_timeout_s=patience_s, end_timeout_s=patience_s)
    async with settings.open(lab.access(), pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
        assert disk.allocation == "queried"
    statistics = disk.statistics()
    expected = 0 if where.startswith("close") else len(where.split(","))
    if kind == "HANG":  # on a machine that stalls, more children may look silent than were told to be
        assert statistics.restarts >= expected
        assert statistics.unclean >= 1
    else:
        assert (statistics.restarts, statistics.unclean) == (expected, kind == "CRASH")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "where"), [("FAULT", "read:5:14011"), ("CRASH", "read:5")])
async def test_failures_with_progress_in_between_are_not_counted(libdir, lab, pool, monkeypatch, kind, where):
    monkeypatch.setenv(f"VADPIPE_VDDK_{kind}", where)  # the fifth read of every child
    # Requests so small that several children are needed, however many reads were in flight beside a fifth one.
    async with quick(libdir, restarts=1, request=256 * KiB).open(lab.access(), pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
        assert disk.statistics().restarts > 1


async def read_first(disk: VddkDisk, pool: BufferPool, length: int = 64 * KiB) -> None:
    buffer = await pool.acquire()
    try:
        await disk.read(buffer, 0, Extents.whole(length))
    finally:
        buffer.release()


@pytest.mark.slow
async def test_a_host_that_stays_unreachable_gives_one_error(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "read:1:14011")
    async with quick(libdir, restarts=2).open(lab.access(), pool) as disk:
        with pytest.raises(
            VddkError, match=r"14011.*connection to the host was lost.*2 new connections"
        ) as caught:
            await read_first(disk, pool)
        assert caught.value.transient
        assert {"call": "ReadAsync", "code": 14011, "offset": 0}.items() <= caught.value.facts.items()
        assert disk.statistics().restarts == 2
        with pytest.raises(VddkError, match="14011"):  # it is over for good
            await read_first(disk, pool)


async def test_a_child_that_always_crashes_gives_one_error_with_its_last_lines(
    libdir, lab, pool, monkeypatch
):
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "read:1")
    async with quick(libdir, restarts=1).open(lab.access(), pool) as disk:
        with pytest.raises(
            VddkError, match=r"SIGABRT at offset 0.*crash as asked.*1 new connections"
        ) as caught:
            await read_first(disk, pool)
    assert any("crash as asked" in line for line in caught.value.facts["log"])  # type: ignore[attr-defined]


@pytest.mark.slow
async def test_an_open_that_always_fails_is_retried_then_reported(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "open:1:14009")
    with pytest.raises(VddkError, match=r"Open.*14009.*3 new connections.*port 902"):
        async with quick(libdir).open(lab.access(), pool):
            pytest.fail("it is not open")


@pytest.mark.slow
async def test_a_hanging_open_is_given_up_after_its_timeout(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_HANG", "open:1")
    with pytest.raises(VddkError, match=r"no sign of life for 0.3 s"):
        async with quick(libdir, open_timeout_s=0.3, restarts=0).open(lab.access(), pool):
            pytest.fail("it is not open")


async def test_another_disk_under_the_same_name_is_not_read(libdir, tmp_path, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "read:1")
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))
    leaf, other = tmp_path / "disk.vmdk", tmp_path / "other.vmdk"
    qemu("qemu-img", "create", "-f", "vmdk", leaf, "4M")
    qemu("qemu-img", "create", "-f", "vmdk", other, "5M")
    async with quick(libdir).open(DiskAccess.local(leaf), pool) as disk:
        other.rename(leaf)
        with pytest.raises(VddkError, match="had 4194304 bytes and has 5242880"):
            await read_first(disk, pool)


async def test_a_final_error_code_fails_only_its_own_read(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "read:3:16007")
    async with quick(libdir, request=64 * KiB).open(lab.access(), pool) as disk:
        with pytest.raises(VddkError, match=r"16007.*DISK_OUTOFRANGE") as caught:
            await read_first(disk, pool, length=1024 * KiB)
        assert not caught.value.transient
        place = {"offset": 128 * KiB, "length": 64 * KiB, "path": lab.access().path}
        assert place.items() <= caught.value.facts.items()
        await read_first(disk, pool, length=1024 * KiB)
    assert (disk.statistics().restarts, disk.statistics().unclean) == (0, 0)


@pytest.mark.slow
async def test_a_query_that_always_kills_its_child_is_given_up_without_counting_against_reads(
    libdir, lab, pool, monkeypatch
):
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "query:1")
    async with quick(libdir, restarts=0).open(
        lab.access(), pool
    ) as disk:  # a query's losses are not a read's
        assert disk.allocation == "unavailable"
        assert "lost its connection 2 times" in disk.allocation_reason
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)


@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [ValueError()])])
async def test_the_exception_of_the_caller_is_raised_unwrapped(libdir, lab, pool, error):
    with pytest.raises(type(error)) as caught:
        async with quick(libdir).open(lab.access(), pool):
            raise error
    assert caught.value is error
    assert error.__context__ is None


async def test_failing_reads_side_by_side_each_have_an_error_of_their_own(libdir, lab, pool, monkeypatch):
    errors: list[VddkError] = []

    async def read(disk: VddkDisk) -> None:
        try:
            await read_first(disk, pool)
        except VddkError as exc:
            errors.append(exc)

    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "read:1:14011")
    async with (
        quick(libdir, restarts=0, depth=1).open(lab.access(), pool) as disk,
        trio.open_nursery() as nursery,
    ):
        for _ in range(6):
            nursery.start_soon(read, disk)
    # One fails, one more may have been issued before the child left, the others were waiting.
    assert len({id(error) for error in errors}) == len(errors) >= 4
