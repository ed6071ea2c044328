"""Requests, logins and files that the stand-in refuses, each with the code that the original gives."""

import ctypes
import os
import shutil
import signal

import pytest

from tests.vadpipe.lab.vddk.conftest import (
    MIB,
    READ_ONLY,
    SECTOR,
    SINGLE_LINK,
    THUMBPRINT,
    Client,
    Params,
    chain,
    create,
    needs_qemu,
    qemu_io,
)


@needs_qemu
def test_requests_beyond_the_limits_are_refused(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "1M")

    def limits(client, path):
        handle = client.open(path)
        client.read(handle, 2047, 2, expect=16007)
        client.read(handle, 1 << 63, 2, expect=16007)
        client.read(handle, 0, 0, expect=3)
        client.write(handle, 0, bytes(512), expect=11)
        for start, count, chunk, code in (
            (0, 128, 64, 3),
            (0, 262144, 262144, 3),
            (64, 128, 128, 3),
            (0, 130, 128, 3),
            (0, 0, 128, 3),
            (0, 128 * 524289, 128, 3),
            (0, 2176, 128, 16007),
            (1 << 62, 128, 128, 16007),
        ):
            client.allocated(handle, start, count, chunk, expect=code)
        assert client.allocated(handle, 0, 2048) == []
        unbuffered = client.open(path, 4 | 1, connection=client.connection)
        aligned = (ctypes.addressof(buffer := ctypes.create_string_buffer(8192)) + 511) // 512 * 512
        numbers = (ctypes.c_uint64(0), ctypes.c_uint64(1))
        codes = [client.call("Read", unbuffered, *numbers, ctypes.c_void_p(aligned + i)) for i in (0, 1, 256)]
        del buffer
        client.finish(handle, unbuffered)
        return codes

    assert run(limits, str(disk)) == [0, 3, 3]


@needs_qemu
def test_unbuffered_over_nbd_needs_4_kib(run, tmp_path):
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", str(MIB + SECTOR))

    def ranges(client, thumbprint):
        handle = client.open("[ds1] vm/a.vmdk", 4 | 1, thumbprint=thumbprint)
        aligned = (ctypes.addressof(buffer := ctypes.create_string_buffer(65536)) + 4095) // 4096 * 4096
        codes = []
        for start, count in ((0, 8), (8, 16), (1, 8), (0, 7), (2048, 1), (2040, 9)):
            numbers = (ctypes.c_uint64(start), ctypes.c_uint64(count))
            codes.append(client.call("Read", handle, *numbers, ctypes.c_void_p(aligned)))
        del buffer
        client.finish(handle)
        return codes

    assert run(ranges, THUMBPRINT.encode()) == [0, 0, 3, 3, 0, 0]


def attempt(client, path, flags, login):
    return client.attempt(path, flags, **login)


@needs_qemu
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("open", 0, "nbdssl")),
        ({"password": b"wrong"}, ("connect", 3014, "login")),
        ({"user": b"nobody"}, ("connect", 3014, "login")),
        ({"vm": b"moref=vm-43"}, ("connect", 4000, "vm-43")),
        ({"thumbprint": b"00:11"}, ("open", 1, f"expected thumbprint 00:11, actual thumbprint {THUMBPRINT}")),
        ({"thumbprint": None}, ("open", 1, f"expected thumbprint (none), actual thumbprint {THUMBPRINT}")),
        ({"snapshot": b"snapshot-8"}, ("open", 13003, "snapshot-8")),
        ({"snapshot": b""}, ("open", 0, "nbdssl")),
        ({"modes": b"san:hotadd"}, ("open", 6, "none of the transport modes")),
        ({"path": "[ds1] vm/none.vmdk"}, ("open", 4, "none.vmdk")),
        ({"path": "[ds1] ../ds1/vm/a.vmdk"}, ("open", 22, "form")),
        ({"path": "/vm/a.vmdk"}, ("open", 22, "form")),
        ({"flags": 0, "readonly": 1}, ("open", 11, "read-only connection")),
        ({"flags": 0x34}, ("open", 3, "compression")),
        ({"flags": READ_ONLY | SINGLE_LINK}, ("open", 6, "local")),
        ({"flags": READ_ONLY | 0x20}, ("open", 0, "nbdssl")),
    ],
)
def test_wrong_logins_and_flags_are_refused_with_their_code(run, tmp_path, changed, expected):
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    login = {"thumbprint": THUMBPRINT.encode(), "snapshot": b"snapshot-7"} | changed
    path = login.pop("path", "[ds1] vm/a.vmdk")
    flags = login.pop("flags", READ_ONLY)
    *outcome, log = run(attempt, path, flags, login)
    assert (*outcome, expected[2] in log) == (*expected[:2], True), log


def test_a_session_cookie_is_accepted_and_the_conf_read_again(run, tmp_path):
    run.remote()

    def log_in(client, root):
        params = client.c.VixDiskLib_AllocateConnectParams()
        params[0].serverName, params[0].vmxSpec, params[0].credType = b"vc01", b"moref=vm-42", 2
        codes = []
        for cookie in (b"0123", b"012"):
            params[0].userName, params[0].password, params[0].key = cookie, b"backup", b"any"
            connection = ctypes.c_void_p()
            arguments = (params, ctypes.c_char(1), None, None, ctypes.byref(connection))
            codes.append(client.call("ConnectEx", *arguments))
        with open(root + "/vddk.conf", "a") as conf:
            conf.write("cookie=012\n")
        codes.append(client.call("ConnectEx", *arguments))
        copy = ctypes.POINTER(Params)()
        codes.append(client.call("GetConnectParams", connection, ctypes.byref(copy)))
        client.c.VixDiskLib_FreeConnectParams(params)
        texts = [copy[0].serverName.decode(), copy[0].userName.decode(), copy[0].key.decode()]
        for call in ("PrepareForAccess", "EndAccess"):
            codes += [client.call(call, copy, b"mover"), client.call(call, copy, b"x" * 51)]
        codes.append(client.call("Cleanup", copy, None, None))
        client.c.VixDiskLib_FreeConnectParams(copy)
        return codes, texts

    codes, texts = run(log_in, str(tmp_path))
    assert codes == [0, 3014, 0, 0, 0, 3, 0, 3, 0]
    assert texts == ["vc01", "012", "any"]


def lock(client, call, identity, vm=b"moref=vm-42"):
    """The code of one of the two calls about a lock."""
    params = client.c.VixDiskLib_AllocateConnectParams()
    params[0].serverName, params[0].vmxSpec, params[0].credType = b"vc01", vm, 1
    params[0].userName, params[0].password = b"backup", b"secret"
    code = client.call(call, params, identity)
    client.c.VixDiskLib_FreeConnectParams(params)
    return code


def test_a_lock_has_one_holder_who_alone_can_end_it(run, tmp_path):
    run.remote()
    assert run(lock, "PrepareForAccess", b"mover") == 0
    assert (tmp_path / "locks" / "vm-42").read_text() == "mover"
    assert run(lock, "PrepareForAccess", b"other") == 5
    assert run(lock, "PrepareForAccess", b"mover") == 5
    assert run(lock, "EndAccess", b"other") == 1
    assert run(lock, "EndAccess", b"mover") == 0
    assert run(lock, "EndAccess", b"mover") == 0  # alone it does no harm
    noted = [line.split()[0] for line in (tmp_path / "calls.log").read_text().splitlines()]
    assert noted == ["PrepareForAccess", "EndAccess", "EndAccess"]


def test_a_late_crash_loses_the_answer_of_a_call_that_had_its_effect(run, tmp_path):
    run.remote()
    where = tmp_path / "locks" / "vm-42"
    crash = {"VADPIPE_VDDK_CRASH": "prepare:1+,end:1+", "VADPIPE_VDDK_ONCE": str(tmp_path)}
    assert run.start(lock, "PrepareForAccess", b"mover", **crash).returncode == -signal.SIGABRT
    assert where.read_text() == "mover"
    assert run.start(lock, "EndAccess", b"mover", **crash).returncode == -signal.SIGABRT
    assert not where.exists()
    assert run(lock, "PrepareForAccess", b"mover", VADPIPE_VDDK_FAULT="prepare:1+:3014") == 3014
    assert where.read_text() == "mover"
    assert run(lock, "EndAccess", b"mover", **crash) == 0
    assert {path.name for path in tmp_path.glob("crash-*")} == {"crash-prepare-1+", "crash-end-1+"}


def test_an_esxi_host_locks_nothing(run, tmp_path):
    run.remote()
    with (tmp_path / "vddk.conf").open("a") as conf:
        conf.write("api=HostAgent\n")
    assert run(lock, "PrepareForAccess", b"mover") == 6
    assert not (tmp_path / "locks").exists()


@needs_qemu
def test_a_hot_added_disk_stays_until_it_is_closed_and_cleaned_up(run, tmp_path):
    run.remote()
    run.env["VADPIPE_VDDK_HOTADD"] = "1"
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    state = tmp_path / "hotadd" / "vm-42" / "a.vmdk"

    def use(client, thumbprint):
        login = {"thumbprint": thumbprint.encode(), "snapshot": b"snapshot-7", "readonly": 1}
        handle = client.open("[ds1] vm/a.vmdk", modes=b"hotadd:nbdssl", **login)
        mode = client.c.VixDiskLib_GetTransportMode(handle).decode()
        counts = []
        for close in (False, True):
            if close:
                client.call("Close", handle)
                client.call("Disconnect", client.connection)
            params = client.c.VixDiskLib_AllocateConnectParams()
            params[0].serverName, params[0].credType = b"vc01", 1
            params[0].userName, params[0].password = b"backup", b"secret"
            cleaned, remaining = ctypes.c_uint32(), ctypes.c_uint32()
            assert client.call("Cleanup", params, ctypes.byref(cleaned), ctypes.byref(remaining)) == 0
            client.c.VixDiskLib_FreeConnectParams(params)
            counts.append([cleaned.value, remaining.value])
        return [mode, counts]

    assert run(use, THUMBPRINT) == ["hotadd", [[0, 1], [1, 0]]]
    assert not state.exists()


def test_the_lab_without_a_conf_cannot_be_reached(run, tmp_path):
    run.env["VADPIPE_LAB_ROOT"] = str(tmp_path)
    stage, code, log = run(attempt, "[ds1] a.vmdk", READ_ONLY, {})
    assert (stage, code) == ("connect", 18000)
    assert "vddk.conf" in log


@needs_qemu
def test_large_session_buffers_are_refused(run, tmp_path):
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    config = tmp_path / "vddk.ini"

    def with_config(library, config, thumbprint):
        return Client(library, config).attempt("[ds1] vm/a.vmdk", thumbprint=thumbprint)

    for count, code in ((16, 0), (17, 2)):
        config.write_text(
            f'# NFC\nvixDiskLib.nfcAio.Session.BufSizeIn64KB = "16"\nvixDiskLib.nfcAio.Session.BufCount={count}\n'
        )
        outcome = run(with_config, os.fsencode(config), THUMBPRINT.encode(), client=False)
        assert outcome[1] == code


@needs_qemu
@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda d: os.truncate(d / "base.vmdk", 100), 7, "truncated"),
        (lambda d: os.truncate(d / "base.vmdk", 0), 7, "truncated"),
        (lambda d: os.truncate(d / "base.vmdk", 11000), 7, "grain directory"),
        (lambda d: (d / "base.vmdk").unlink(), 16003, "base.vmdk"),
        (lambda d: (d / "redo1.vmdk").write_bytes(b"x" * 5000), 9, "not a virtual disk descriptor"),
        (lambda d: shutil.copy(d / "redo2.vmdk", d / "redo1.vmdk"), 16008, "content id"),
    ],
    ids=["header", "empty", "directory", "parent gone", "garbage", "wrong parent"],
)
def test_damaged_chains_do_not_open(run, tmp_path, damage, code, says):
    disk = chain(tmp_path)
    damage(tmp_path)
    stage, got, log = run(attempt, str(disk), READ_ONLY, {})
    assert (stage, got) == ("open", code), log
    assert says in log


@needs_qemu
@pytest.mark.parametrize(
    ("subformat", "code", "says"),
    [
        ("streamOptimized", 16013, "stream-optimized"),
        ("truncated flat", 7, "truncated"),
        ("extent", 9, "descriptor"),
    ],
)
def test_files_that_cannot_be_opened_are_refused(run, tmp_path, subformat, code, says):
    if subformat == "streamOptimized":
        disk = create(tmp_path / "a.vmdk", "1M", subformat)
    elif subformat == "truncated flat":
        disk = create(tmp_path / "a.vmdk", "1M", "monolithicFlat")
        os.truncate(tmp_path / "a-flat.vmdk", MIB - 1)
    else:
        create(tmp_path / "a.vmdk", "1M", "twoGbMaxExtentSparse")
        disk = tmp_path / "a-s001.vmdk"
    stage, got, log = run(attempt, str(disk), READ_ONLY, {})
    assert (stage, got, says in log) == ("open", code, True), log


@needs_qemu
@pytest.mark.parametrize(("loss", "code"), [("truncate", 16002), ("unlink", 4)])
@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
def test_a_file_lost_while_open_fails_the_read(run, tmp_path, subformat, loss, code):
    disk = create(tmp_path / "a.vmdk", "2M", subformat)
    qemu_io(disk, "write -P 1 0 2M")
    extent = tmp_path / ("a-flat.vmdk" if subformat == "monolithicFlat" else "a.vmdk")

    def lose(client, path, extent, loss):
        handle = client.open(path)
        assert client.read(handle, 0, 4096) == bytes([1]) * 2097152
        os.truncate(extent, 1000000) if loss == "truncate" else os.unlink(extent)
        code = client.call("Read", handle, ctypes.c_uint64(2048), ctypes.c_uint64(2048), bytes(1 << 20))
        high = client.raw >> 16
        client.finish(handle)
        return [code, high > 0, client.log[-2]]

    got, detail, _ = outcome = run(lose, str(disk), str(extent), loss)
    assert (got, detail) == (code, True), outcome


@needs_qemu
def test_a_truncated_file_is_not_read_as_a_hole(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "2M", "monolithicFlat")
    qemu_io(disk, "write -P 1 0 2M")

    def lose(client, path, extent):
        handle = client.open(path)
        os.truncate(extent, 1 << 20)
        runs = client.allocated(handle, 0, 4096)
        client.finish(handle)
        return runs

    runs = run(lose, str(disk), str(tmp_path / "a-flat.vmdk"))
    assert [list(run) for run in runs] == [[0, 4096]]
