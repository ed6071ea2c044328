"""Who may write, what writing allocates, and the ways in which it fails."""

import ctypes
import json
import os
import signal
import threading

import pytest

from tests.vadpipe.lab.vddk.conftest import (
    MIB,
    SECTOR,
    THUMBPRINT,
    UNBUFFERED,
    child,
    create,
    needs_qemu,
    qemu_img,
    raw_of,
)

pytestmark = [needs_qemu, pytest.mark.slow]
PLACE = "[ds1] vm/a.vmdk"
LOCKED, NOT_SUPPORTED, DISK_FULL = 15, 6, 8


def remote(run, tmp_path, size="4M", subformat="monolithicSparse", **lines):
    run.remote(**lines)
    return create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", size, subformat)


def write_three(client, path, thumbprint, asynchronous=False):
    """Three writes of 8 sectors of 1, 2 and 3: the results, and those of Flush and Close."""
    handle = client.open(path, 0, thumbprint=thumbprint)
    results, answered = [], threading.Semaphore(0)
    keep = client.Done(lambda data, result: (results.append(result & 0xFFFF), answered.release()))
    for number in range(3):
        numbers = (ctypes.c_uint64(8 * number), ctypes.c_uint64(8))
        data = ctypes.create_string_buffer(bytes([number + 1]) * 4096, 4096)
        if asynchronous:
            assert client.call("WriteAsync", handle, *numbers, data, keep, None) == 25000
            answered.acquire()
        else:
            results.append(client.call("Write", handle, *numbers, data))
    ended = [client.call("Flush", handle), client.call("Close", handle)]
    client.finish()
    return results, ended


def written(disk):
    return [raw_of(disk)[number * 4096 : (number + 1) * 4096] for number in range(3)]


def pieces(*values):
    return [bytes([value]) * 4096 for value in values]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("knob", "results", "ended", "content"),
    [
        ({"FAULT": "write:2:8"}, [0, 8, 0], [0, 0], pieces(1, 0, 3)),
        ({"FAULT": "write:2+:14011"}, [0, 14011, 0], [0, 0], pieces(1, 2, 3)),
        ({"CUT": "write:2:8"}, [0, 8, 0], [0, 0], [*pieces(1), bytes([2]) * 2048 + bytes(2048), *pieces(3)]),
        ({"LOSE": "write:2"}, [0, 0, 0], [0, 0], pieces(1, 0, 3)),
        ({"FAULT": "flush:1:16002"}, [0, 0, 0], [16002, 0], pieces(1, 2, 3)),
        ({"FAULT": "flush:1+:16002"}, [0, 0, 0], [16002, 0], pieces(1, 2, 3)),
        ({"FAULT": "close:1:13"}, [0, 0, 0], [0, 13], pieces(1, 2, 3)),
        ({"FAULT": "close:1+:13"}, [0, 0, 0], [0, 13], pieces(1, 2, 3)),
    ],
)
def test_writing_fails_before_in_or_after_its_effect(
    run, tmp_path, asynchronous, knob, results, ended, content
):
    disk = remote(run, tmp_path)
    knobs = {f"VADPIPE_VDDK_{name}": value for name, value in knob.items()}
    assert run(write_three, PLACE, THUMBPRINT.encode(), asynchronous, **knobs) == [results, ended]
    assert written(disk) == content


@pytest.mark.parametrize(("where", "content"), [("write:2", pieces(1, 0, 0)), ("write:2+", pieces(1, 2, 0))])
def test_a_crash_comes_before_or_after_the_effect(run, tmp_path, where, content):
    disk = remote(run, tmp_path)
    ended = run.start(write_three, PLACE, THUMBPRINT.encode(), True, VADPIPE_VDDK_CRASH=where)
    assert ended.returncode == -signal.SIGABRT
    assert "crash as asked at write call 2" in ended.stderr
    assert written(disk) == content


def test_a_write_that_hangs_after_its_effect_is_never_answered(run, tmp_path):
    disk = remote(run, tmp_path)

    def hang(client, path, thumbprint):
        handle = client.open(path, 0, thumbprint=thumbprint)
        answered = threading.Event()
        keep = client.Done(lambda data, result: answered.set())
        data = ctypes.create_string_buffer(b"\1" * 4096, 4096)
        client.call("WriteAsync", handle, ctypes.c_uint64(0), ctypes.c_uint64(8), data, keep, None)
        return answered.wait(0.3)

    assert run(hang, PLACE, THUMBPRINT.encode(), VADPIPE_VDDK_HANG="write:1+") is False
    assert written(disk) == pieces(1, 0, 0)


@pytest.mark.parametrize(
    "knob",
    ["CUT=read:1:8", "CUT=write:1", "CUT=write:1+:8", "LOSE=flush:1", "LOSE=write:1+", "FAULT=read:1+:8"],
)
def test_a_knob_that_makes_no_sense_ends_the_process(run, knob):
    def nothing(client):
        return None

    name, _, value = knob.partition("=")
    ended = run.start(nothing, **{f"VADPIPE_VDDK_{name}": value})
    assert ended.returncode == -signal.SIGABRT
    assert f"VADPIPE_VDDK_{name}" in ended.stderr


def opened_twice(client, path, thumbprint, first, second):
    client.open(path, first, thumbprint=thumbprint)
    return client.attempt(path, second, thumbprint=thumbprint)


@pytest.mark.parametrize(
    ("first", "second", "code"), [(0, 0, LOCKED), (0, 4, LOCKED), (4, 0, LOCKED), (4, 4, 0)]
)
def test_a_disk_has_one_writer_or_any_number_of_readers(run, tmp_path, first, second, code):
    disk = remote(run, tmp_path)
    for path in (PLACE, str(disk)):
        local = {} if path == PLACE else {"VADPIPE_LAB_ROOT": ""}
        if local:
            run.env.pop("VADPIPE_LAB_ROOT")
        stage, found, log = run(opened_twice, path, THUMBPRINT.encode(), first, second)
        assert (stage, found) == ("open", code)
        assert ("another process has the disk open" in log) == bool(code)


def test_a_writer_that_was_killed_holds_no_lock(run, tmp_path):
    remote(run, tmp_path)
    assert (
        run.start(write_three, PLACE, THUMBPRINT.encode(), VADPIPE_VDDK_CRASH="write:1").returncode
        == -signal.SIGABRT
    )
    assert run(write_three, PLACE, THUMBPRINT.encode()) == [[0, 0, 0], [0, 0]]


def one_attempt(client, path, thumbprint, flags, snapshot, modes):
    return client.attempt(path, flags, thumbprint=thumbprint, snapshot=snapshot, modes=modes)


def test_the_disk_of_a_running_vm_is_read_only(run, tmp_path):
    remote(run, tmp_path, on="vm-42")
    stage, code, log = run(one_attempt, PLACE, THUMBPRINT.encode(), 0, None, None)
    assert (stage, code) == ("open", LOCKED)
    assert "'vm-42' is powered on" in log
    assert run(one_attempt, PLACE, THUMBPRINT.encode(), 4, None, None)[1] == 0


def test_san_writes_the_base_while_there_is_a_snapshot(run, tmp_path):
    disk = remote(run, tmp_path)
    leaf = child(disk.with_name("b.vmdk"), disk)
    with_san = {"VADPIPE_VDDK_SAN": "1"}
    print_of = THUMBPRINT.encode()

    def attempt(name, flags, snapshot):
        _, code, log = run(one_attempt, f"[ds1] vm/{name}", print_of, flags, snapshot, b"san", **with_san)
        return code, log

    assert attempt("a.vmdk", 0, b"snapshot-6")[0] == 0
    assert attempt(leaf.name, 4, None)[0] == 0
    code, log = attempt("a.vmdk", 0, None)
    assert (code, "only while its VM has a snapshot" in log) == (NOT_SUPPORTED, True)
    code, log = attempt(leaf.name, 0, b"snapshot-6")
    assert (code, "only the base disk" in log) == (NOT_SUPPORTED, True)
    assert run(one_attempt, PLACE, print_of, 4, None, b"san")[1] == NOT_SUPPORTED  # this machine sees no san


def test_hotadd_writes_unbuffered_from_aligned_memory(run, tmp_path):
    disk = remote(run, tmp_path)

    def write(client, path, thumbprint, flags):
        handle = client.open(path, flags, thumbprint=thumbprint, modes=b"hotadd")
        buffer = ctypes.create_string_buffer(8192)
        aligned = (ctypes.addressof(buffer) + 511) // 512 * 512
        ctypes.memset(aligned, 7, 512)
        numbers = (ctypes.c_uint64(3), ctypes.c_uint64(1))
        codes = [client.call("Write", handle, *numbers, ctypes.c_void_p(aligned + at)) for at in (1, 0)]
        client.finish(handle)
        return codes

    assert run(write, PLACE, THUMBPRINT.encode(), UNBUFFERED, VADPIPE_VDDK_HOTADD="1") == [3, 0]
    assert raw_of(disk)[: 4 * SECTOR] == bytes(3 * SECTOR) + b"\7" * SECTOR


def fill(client, path, thumbprint):
    """Allocated runs before, while and after 1 MiB of zeros and 64 KiB of data are written."""
    handle = client.open(path, 0, thumbprint=thumbprint)
    before = client.allocated(handle, 0, 8192)
    client.write(handle, 2048, bytes(1 << 20))
    client.write(handle, 6144, b"\1" * 65536)
    during = client.allocated(handle, 0, 8192)
    assert client.call("Close", handle) == 0
    handle = client.open(path, 4, connection=client.connection)
    after = client.allocated(handle, 0, 8192)
    client.finish(handle)
    return before, during, after


def hollow(disk, *, reserved=False):
    """Take back the zeros that qemu-img writes into a flat disk. `reserved`: keep the space, as lazy disks do."""
    flat = disk.with_name(f"{disk.stem}-flat.vmdk")
    if flat.exists():
        with flat.open("r+b") as file:
            file.truncate(0)
            file.truncate(4 * MIB)
            if reserved:
                os.posix_fallocate(file.fileno(), 0, 4 * MIB)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
def test_zeros_that_are_written_allocate_and_the_handle_does_not_list_them(run, tmp_path, subformat):
    hollow(remote(run, tmp_path, subformat=subformat))
    assert run(fill, PLACE, THUMBPRINT.encode()) == [[], [], [[2048, 2048], [6144, 128]]]


def test_an_eager_disk_is_allocated_from_the_start_and_a_lazy_one_by_writing(run, tmp_path):
    remote(run, tmp_path, subformat="monolithicFlat", eager=PLACE)
    assert run(fill, PLACE, THUMBPRINT.encode()) == [[[0, 8192]]] * 3
    lazy = create(tmp_path / "datastores" / "ds1" / "vm" / "lazy.vmdk", "4M", "monolithicFlat")
    hollow(lazy, reserved=True)
    assert run(fill, "[ds1] vm/lazy.vmdk", THUMBPRINT.encode())[::2] == [[], [[2048, 2048], [6144, 128]]]


def test_a_full_datastore_fails_the_writes_that_allocate(run, tmp_path):
    disk = remote(run, tmp_path)

    def fill_up(client, path, thumbprint):
        handle = client.open(path, 0, thumbprint=thumbprint)
        data = b"\1" * (1 << 18)
        numbers = [(ctypes.c_uint64(512 * number), ctypes.c_uint64(512)) for number in (*range(8), 0)]
        codes = [client.call("Write", handle, *each, data) for each in numbers]
        client.finish(handle)
        return codes

    codes = run(fill_up, PLACE, THUMBPRINT.encode(), VADPIPE_VDDK_SPACE_MIB="1")
    assert codes == [0] * 4 + [DISK_FULL] * 4 + [0]
    assert raw_of(disk) == b"\1" * MIB + bytes(3 * MIB)


def test_a_disk_without_a_vm_is_opened_by_its_datastore(run, tmp_path):
    remote(run, tmp_path, datastore="datastore-11")

    def by_datastore(client, path, thumbprint, moref):
        params = client.c.VixDiskLib_AllocateConnectParams()
        params[0].serverName, params[0].credType, params[0].thumbPrint = b"vc01", 1, thumbprint
        params[0].userName, params[0].password, params[0].specType = b"backup", b"secret", 2
        names = [ctypes.create_string_buffer(text) for text in (moref, b"vm")]
        for place, name in enumerate(names):
            params[0].spec[place] = ctypes.addressof(name)
        connection, handle = ctypes.c_void_p(), ctypes.c_void_p()
        error = client.call("ConnectEx", params, ctypes.c_char(0), None, None, ctypes.byref(connection))
        client.c.VixDiskLib_FreeConnectParams(params)
        if error:
            return error, "".join(client.log)
        return client.call("Open", connection, path, 0, ctypes.byref(handle)), "".join(client.log)

    assert run(by_datastore, PLACE.encode(), THUMBPRINT.encode(), b"datastore-11")[0] == 0
    code, log = run(by_datastore, PLACE.encode(), THUMBPRINT.encode(), b"datastore-12")
    assert (code, "there is no datastore 'datastore-12'" in log) == (4, True)
    run.library = run.library.replace(".so.8", ".so.7")  # it came with 8.0.1
    assert run(by_datastore, PLACE.encode(), THUMBPRINT.encode(), b"datastore-11")[0] == NOT_SUPPORTED


def test_a_new_metadata_key_keeps_the_others(run, tmp_path):
    disk = remote(run, tmp_path)

    def write(client, path, thumbprint):
        handle = client.open(path, 0, thumbprint=thumbprint)
        assert client.call("WriteMetadata", handle, b"uuid", b"60 00") == 0
        client.finish(handle)

    before = disk.read_bytes()[512:2048].split(b"\0")[0]
    run(write, PLACE, THUMBPRINT.encode())
    after = disk.read_bytes()[512:2048].split(b"\0")[0]
    assert after == before + b'ddb.uuid = "60 00"\n'
    assert json.loads(qemu_img("info", "--output=json", disk))["virtual-size"] == 4 * MIB
