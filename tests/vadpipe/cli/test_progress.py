"""What is shown while disks run: bars on a terminal, lines in a pipe."""

import os
import pty
import subprocess
import sys

import pytest

CONFIG = """
import trio
from pipeline import DiskReceipt, Job, Sink
from pipeline.testing import FakeMachine, FakeTarget, PatternDisk
from stages import AllocatedExtents, ReadSpans

class Slow(Sink):
    def __init__(self, disk):
        self.disk = disk
    async def run(self, inbox):
        async for item in inbox:
            await trio.sleep(0.1)
            if hasattr(item, "release"):
                item.release()
        return DiskReceipt(self.disk.key, "a disk", self.disk.capacity, "", 1, 0, 0, 0, 0, 1, 1)

def path(disk, point):
    return AllocatedExtents(disk) | ReadSpans(disk) | Slow(disk)

job = Job(FakeMachine([PatternDisk(32 << 20, key="scsi0:3")]), path, into=FakeTarget())
"""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_rate_and_remaining_time(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vadpipe", "run", config],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the other end was closed
            pass
        finally:
            os.close(ours)
        assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "scsi0:3" in text
    assert "MiB/s" in text
    assert "%" in text
    assert "0:00:0" in text  # what remains
