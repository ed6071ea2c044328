"""Misuse of the interface ends the process, with a message that names the mistake."""

import ctypes
import os
import re
import signal
import threading
import time

import pytest

from tests.vadpipe.lab.vddk.conftest import THUMBPRINT, create, needs_qemu


def misuse_two_threads(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    thread = threading.Thread(target=client.read, args=(handle, 0, 1))
    thread.start()
    client.read(handle, 0, 1)


def misuse_close_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.call("Close", handle)


def misuse_disconnect_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.call("Disconnect", client.connection)


def misuse_exit_outstanding(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: None))
    client.c.VixDiskLib_Exit()


def misuse_after_close(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Close", handle)
    client.read(handle, 0, 1)


def misuse_after_disconnect(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Disconnect", client.connection)
    client.read(handle, 0, 1)


def misuse_after_exit(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.c.VixDiskLib_Exit()
    client.read(handle, 0, 1)


def misuse_after_fork(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    if (pid := os.fork()) == 0:
        client.read(handle, 0, 1)
    os.kill(os.getpid(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * -1)


def misuse_open_overlaps_close(client, path, thumbprint):
    other, handle = client.connect(thumbprint=thumbprint)[1], client.open(path, thumbprint=thumbprint)
    # The environment makes the second Open hang; once the log says so, it is inside.
    threading.Thread(target=client.open, args=(path, 4, other), daemon=True).start()
    while not any("open call 2 hangs" in line for line in client.log):
        time.sleep(0.01)
    client.call("Close", handle)


def misuse_null_buffer(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.call("Read", handle, ctypes.c_uint64(0), ctypes.c_uint64(1), None)


def misuse_null_handle(client, path, thumbprint):
    client.read(None, 0, 1)


def misuse_unknown_handle(client, path, thumbprint):
    client.read(ctypes.c_void_p(4096), 0, 1)


def misuse_null_user(client, path, thumbprint):
    client.connect(user=None)


def misuse_null_vm(client, path, thumbprint):
    client.connect(vm=None)


def misuse_double_free(client, path, thumbprint):
    params = client.c.VixDiskLib_AllocateConnectParams()
    client.c.VixDiskLib_FreeConnectParams(params)
    client.c.VixDiskLib_FreeConnectParams(params)


def misuse_foreign_free(client, path, thumbprint):
    client.c.VixDiskLib_FreeInfo(client.c.VixDiskLib_AllocateConnectParams())


def misuse_call_in_callback(client, path, thumbprint):
    handle = client.open(path, thumbprint=thumbprint)
    client.submit(handle, 0, 1, client.Done(lambda *result: client.call("Wait", handle)))
    client.call("Wait", handle)


@needs_qemu
@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (
            misuse_two_threads,
            r"thread \d+ calls while thread \d+ is inside VixDiskLib_Read of the same disk handle",
        ),
        (misuse_close_outstanding, "VixDiskLib_Close: 1 asynchronous requests are outstanding"),
        (misuse_disconnect_outstanding, "VixDiskLib_Disconnect: 1 asynchronous requests are outstanding"),
        (misuse_exit_outstanding, "VixDiskLib_Exit: 1 asynchronous requests are outstanding"),
        (misuse_after_close, "VixDiskLib_Read: the disk handle was used after Close"),
        (misuse_after_disconnect, "VixDiskLib_Read: the disk handle was used after Disconnect"),
        (misuse_after_exit, "VixDiskLib_Read: called after Exit"),
        (misuse_after_fork, "VixDiskLib_Read: called after fork"),
        (misuse_open_overlaps_close, r"VixDiskLib_Close: .* is inside VixDiskLib_Open \(Open and Close"),
        (misuse_null_buffer, "VixDiskLib_Read: required parameter buffer is NULL"),
        (misuse_null_handle, "VixDiskLib_Read: required parameter diskHandle is NULL"),
        (misuse_unknown_handle, "VixDiskLib_Read: 0x1000 is not a disk handle"),
        (misuse_null_user, "VixDiskLib_ConnectEx: required parameter creds.uid.userName is NULL"),
        (misuse_null_vm, "VixDiskLib_ConnectEx: required parameter vmxSpec is NULL"),
        (misuse_double_free, "VixDiskLib_FreeConnectParams: .* was freed before"),
        (misuse_foreign_free, "VixDiskLib_FreeInfo: .* does not come from the matching call"),
        (misuse_call_in_callback, "VixDiskLib_Wait: called from inside a completion callback"),
    ],
)
def test_misuse_aborts_and_names_the_mistake(run, tmp_path, scenario, says):
    run.remote()
    create(tmp_path / "datastores" / "ds1" / "vm" / "a.vmdk", "1M")
    env = {} if scenario is misuse_call_in_callback else {"VADPIPE_VDDK_LATENCY_MS": "500"}
    if scenario is misuse_open_overlaps_close:
        env = {"VADPIPE_VDDK_HANG": "open:2"}
    ended = run.start(scenario, "[ds1] vm/a.vmdk", THUMBPRINT.encode(), **env)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert re.search(rf"^vixDiskLib stand-in: misuse in .*{says}", ended.stderr, re.MULTILINE), ended.stderr
