"""The child process: alone, lean, discreet, and never left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trio

from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from pipeline.secrets import Secret
from pipeline.units import SPAN, KiB, MiB
from tests.vadpipe.reading_kit import whole_disk
from tests.vadpipe.vddk.conftest import COOKIE, PASSWORD, children, quick
from vadpipe.vddk import connection
from vadpipe.vddk.client import PROGRAM, child_environment
from vadpipe.vddk.disk import VddkDisk
from vadpipe.vddk.errors import VddkError


def test_the_child_imports_nothing_heavy():
    command = [sys.executable, "-I", "-S", "-X", "importtime", str(PROGRAM)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert {"ctypes", "abi", "wire"} <= imported
    heavy = {
        "ssl",
        "_ssl",
        "_hashlib",
        "trio",
        "numpy",
        "pipeline",
        "stages",
        "typing",
        "threading",
        "inspect",
    }
    assert not heavy & imported
    assert run.stdout == ""


def test_the_child_inherits_no_secret():
    environment = {"HOME": "/root", "LC_ALL": "C", "VC_PASSWORD": "s", "VADPIPE_A": "s", "VADPIPE_B": "b"}
    inherited = child_environment(environment, Path("/opt/vddk/lib64"), ["s"])
    assert inherited == {
        "HOME": "/root",
        "LC_ALL": "C",
        "VADPIPE_B": "b",
        "LD_LIBRARY_PATH": "/opt/vddk/lib64",
    }


async def test_a_password_is_not_in_command_line_environment_or_output(libdir, lab, pool, monkeypatch, capfd):
    monkeypatch.setenv("VADPIPE_PASSWORD", PASSWORD)
    access = lab.access(password=Secret.from_env("VADPIPE_PASSWORD"))
    async with quick(libdir).open(access, pool) as disk:
        (child,) = children()
        for name in ("cmdline", "environ"):
            assert PASSWORD.encode() not in await trio.Path(f"/proc/{child}/{name}").read_bytes()
    assert PASSWORD not in repr((access, disk, quick(libdir), disk.statistics()))
    assert PASSWORD not in "".join(capfd.readouterr())


async def test_a_secret_in_the_library_log_is_replaced_by_stars(libdir, lab, pool):
    access = lab.access(thumbprint=COOKIE, password=None, cookie=Secret.from_text(COOKIE))
    with pytest.raises(VddkError, match=r"expected thumbprint \*\*\*") as caught:
        async with quick(libdir).open(access, pool):
            pytest.fail("it is not open")
    assert COOKIE not in str(caught.value) + str(caught.value.facts)


async def test_a_session_cookie_opens_a_disk_without_a_password(libdir, lab, pool):
    access = lab.access(password=None, cookie=Secret.from_text(COOKIE))
    async with quick(libdir).open(access, pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)


async def hang(disk: VddkDisk, pool: BufferPool, *, patience_s: float) -> None:
    buffer = await pool.acquire()
    with trio.move_on_after(patience_s) as scope:
        await disk.read(buffer, 0, Extents.whole(SPAN))
    assert scope.cancelled_caught
    assert children() == []  # before the buffer may be used for anything else
    buffer.release()


@pytest.mark.slow
async def test_a_cancelled_read_does_not_leave_its_buffer_to_a_hanging_child(
    libdir, lab, pool, tmp_path, monkeypatch
):
    monkeypatch.setenv("VADPIPE_VDDK_HANG", "read:2")
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))
    monkeypatch.setattr(connection, "WITHDRAW_S", 0.2)
    async with quick(libdir, restarts=0).open(lab.access(), pool) as disk:  # it is nobody's fault
        await hang(disk, pool, patience_s=0.2)
        assert (await whole_disk(disk, pool)).any()  # a new child took over
        assert disk.statistics().restarts == 1


@pytest.mark.slow
async def test_a_cancelled_read_returns_when_its_buffer_is_left_alone(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_LATENCY_MS", "200")
    async with quick(libdir, request=256 * KiB, depth=2).open(lab.access(), pool) as disk:
        buffer = await pool.acquire()
        with trio.move_on_after(0.05) as scope:
            await disk.read(buffer, 4 * MiB, Extents.whole(SPAN, 4 * MiB))
        assert scope.cancelled_caught
        buffer.array[:] = 0xEE
    assert (buffer.array == 0xEE).all()
    assert 0 < disk.statistics().requests <= 4  # what was waiting was never sent
    buffer.release()


@pytest.mark.slow
async def test_cancelling_at_any_moment_leaves_no_child_and_no_buffer(libdir, lab, pool, monkeypatch):
    monkeypatch.setenv("VADPIPE_VDDK_LATENCY_MS", "2")
    moments = random.Random(7)
    for _ in range(12):
        with trio.move_on_after(moments.uniform(0, 0.15)):
            async with quick(libdir).open(lab.access(), pool) as disk:
                await whole_disk(disk, pool)
                await trio.sleep_forever()
        assert children() == []
        assert pool.statistics().free == pool.statistics().buffers


MOVER = """
import sys, trio
from pipeline.buffers import BufferPool
from pipeline.extents import Extents
from vadpipe.vddk import DiskAccess, Vddk

async def main():
    pool = BufferPool()
    async with Vddk(sys.argv[1], end_timeout_s=0.3).open(DiskAccess.local(sys.argv[2]), pool) as disk:
        print("open", flush=True)
        await disk.read(await pool.acquire(), 0, Extents.whole(65536))
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("hanging", ["", "read:1"])
def test_a_killed_mover_leaves_no_child(libdir, made_lab, hanging):
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, str(libdir), str(made_lab.chains["flat"].leaf)],
        stdout=subprocess.PIPE,
        env=os.environ | {"VADPIPE_VDDK_HANG": hanging},
        text=True,
    )
    assert mover.stdout is not None
    with mover:
        assert mover.stdout.readline() == "open\n"
        (child,) = children(of=mover.pid)
        time.sleep(0.1)  # let it hang, where it is to hang
        mover.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Running; a zombie, which is for the machine's init to collect, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_settings_file_lies_in_the_directory_of_the_vm_while_it_is_open(libdir, lab, pool):
    settings = quick(libdir)
    directory = settings.tmp_directory(lab.access())
    async with settings.open(lab.access(), pool):
        (file,) = directory.glob(".settings-*.conf")
        text = file.read_text()
        assert f'tmpDirectory = "{directory}"' in text
        assert PASSWORD not in text
    assert list(directory.glob(".settings-*")) == []
