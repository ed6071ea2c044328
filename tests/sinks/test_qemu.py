"""The qemu-nbd that serves an image: it ends however the process ends that started it."""

import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import MiB

SERVING = """
import sys, trio
from sinks.qemu import _serving

async def main(image):
    async with _serving(image, "raw") as server:
        print(server.server, flush=True)
        await trio.sleep_forever()

trio.run(main, sys.argv[1])
"""


def processes_with(text):
    """The processes that have this text on their command lines."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if text.encode() in place.read_bytes():
                found.append(place.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system has no /proc")
@pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="qemu-nbd is missing")
def test_a_qemu_nbd_of_a_killed_process_ends_though_nobody_has_connected_to_it(tmp_path):
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(MiB))
    command = [sys.executable, "-c", SERVING, image]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        socket = process.stdout.readline().strip()
        serving = processes_with(socket)
        process.kill()
    assert serving
    deadline = time.monotonic() + 10
    while processes_with(socket):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)
