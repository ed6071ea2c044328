"""Knobs: injected faults, allocated blocks, counters."""

import ctypes
import json
import os
import signal
import threading

import pytest

from tests.vadpipe.lab.vddk.conftest import ASYNC, SECTOR, THUMBPRINT, create, needs_qemu


@pytest.mark.slow
@needs_qemu
def test_faults_fire_at_their_number_and_once(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "1M")
    faults = {
        "VADPIPE_VDDK_FAULT": "read:2:14011,open:2:4,connect:3:14009",
        "VADPIPE_VDDK_ONCE": str(tmp_path),
    }

    def codes(client, path):
        handle = client.open(path)
        seen = [client.call("Open", client.connection, os.fsencode(path), 4, ctypes.byref(ctypes.c_void_p()))]
        seen += [client.connect()[0] for _ in range(2)]
        results = []
        keep = client.Done(lambda data, result: results.append(result & 0xFFFF))
        buffer = ctypes.create_string_buffer(512)
        for call in ("Read", "ReadAsync", "Read"):
            more = (keep, None) if call == "ReadAsync" else ()
            seen.append(client.call(call, handle, ctypes.c_uint64(0), ctypes.c_uint64(1), buffer, *more))
        return seen, results

    assert run(codes, str(disk), **faults) == [[4, 0, 14009, 0, ASYNC, 0], [14011]]
    assert run(codes, str(disk), **faults) == [[0, 0, 0, 0, ASYNC, 0], [0]]
    assert {path.name for path in tmp_path.glob("fault-*")} == {
        "fault-read-2",
        "fault-open-2",
        "fault-connect-3",
    }


@needs_qemu
def test_a_chosen_call_hangs_or_crashes(run, tmp_path):
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")

    def three(client, thumbprint):
        handle = client.open("[ds1] vm/a.vmdk", thumbprint=thumbprint)
        answered, count = [], threading.Semaphore(0)
        keep = client.Done(lambda data, result: (answered.append(data or 0), count.release()))
        for number in range(3):
            client.submit(handle, number, 1, keep, data=number)
        assert count.acquire()
        assert count.acquire()
        return [sorted(answered), client.log]

    answered, log = run(three, THUMBPRINT.encode(), VADPIPE_VDDK_HANG="read:2")
    assert answered == [0, 2]
    assert "read call 2 hangs as asked\n" in log
    ended = run.start(three, THUMBPRINT.encode(), VADPIPE_VDDK_CRASH="read:2")
    assert ended.returncode == -signal.SIGABRT
    assert "crash as asked at read call 2" in ended.stderr


@pytest.mark.parametrize(
    "knob",
    [
        "FAULT=read:1", "FAULT=end:1+", "HANG=reed:1", "CRASH=read:0", "CRASH=read:1+", "CRASH=end:1++",
        "LATENCY_MS=soon", "QAB=maybe", "THREADS=0",
    ],
)  # fmt: skip
def test_a_knob_that_cannot_be_parsed_ends_the_process(run, knob):
    name, value = knob.split("=")

    def nothing(client):
        return None

    ended = run.start(nothing, **{f"VADPIPE_VDDK_{name}": value})
    assert ended.returncode == -signal.SIGABRT
    assert f"VADPIPE_VDDK_{name}" in ended.stderr


@needs_qemu
def test_allocated_blocks_may_be_unsupported_or_useless(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "1M")

    def query(client, path, expect):
        return client.allocated(client.open(path), 0, 1024, expect=expect)

    assert run(query, str(disk), 6, VADPIPE_VDDK_QAB="unsupported") is None
    assert run(query, str(disk), 0, VADPIPE_VDDK_QAB="all") == [[0, 1024]]

    def query_without_list(client, path):
        blocks = ctypes.c_void_p(1)
        numbers = map(ctypes.c_uint64, (0, 1024, 128))
        code = client.call("QueryAllocatedBlocks", client.open(path), *numbers, ctypes.byref(blocks))
        return [code, blocks.value]

    assert run(query_without_list, str(disk), VADPIPE_VDDK_QAB="null") == [0, None]


@needs_qemu
def test_counters_show_calls_bytes_and_leaks(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "1M")

    def leak(client, path):
        handle = client.open(path)
        client.read(handle, 0, 100)
        client.submit(handle, 0, 20, client.Done(lambda *result: None))
        client.info(handle)
        client.c.VixDiskLib_Exit()

    counters = tmp_path / "counters"
    for _ in range(2):
        run(leak, str(disk), VADPIPE_VDDK_COUNTERS=str(counters))
    first, second = map(json.loads, counters.read_text().splitlines())
    assert first["pid"] != second["pid"]
    assert first["calls"]["read"] == 2
    assert first["bytes_read"] == 120 * SECTOR
    assert first["live"] == {
        "connections": 1,
        "disks": 1,
        "params": 0,
        "infos": 1,
        "block_lists": 0,
        "texts": 0,
    }
