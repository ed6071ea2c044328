"""What is shown while disks run: bars on a terminal, lines in a pipe; in percent of the data to read."""

import os
import pty
import re
import subprocess
from dataclasses import dataclass

import pytest
import trio

from pipeline.meters import PipelineReport, StageMeter
from tests.conftest import command
from vadpipe.cli.progress import RunningDisk, shortened

LONG = "a-very-long-virtual-machine-name-production-sqlserver-cluster-node-01_1"

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

job = Job(FakeMachine([PatternDisk(32 << 20, key="KEY")]), path, into=FakeTarget())
"""


@dataclass
class Size:
    key: str
    capacity: int


def running(read, source, position, capacity=1000):
    stages = [StageMeter("extents", bytes=source, position=position), StageMeter("read", bytes=read)]
    return RunningDisk(Size("disk", capacity), PipelineReport(stages))


async def test_progress_counts_the_data_to_read_not_the_position_on_the_disk():
    assert running(read=257, source=276, position=1000).share == pytest.approx(257 / 276)


async def test_what_the_source_has_not_reached_is_taken_to_be_like_the_rest():
    disk = running(read=50, source=100, position=500)
    assert (disk.total, disk.share) == (200, 0.25)


async def test_a_disk_without_data_is_done_by_position():
    assert running(read=0, source=0, position=1000).share == 0.0
    assert running(read=0, source=0, position=0).total == 1000


async def test_a_line_has_share_amount_rate_and_remaining_time(autojump_clock):
    disk = running(read=25, source=100, position=1000)
    await trio.sleep(10)
    assert disk.line() == "disk: 25%, 25 B of 100 B read at 2 B/s, 30 s left"


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert shortened("scsi0:0", 10) == "scsi0:0"
    assert shortened(LONG, 20) == LONG[:10] + "…" + LONG[-9:]
    assert len(shortened(LONG, 20)) == 20


def shown_on_a_terminal(tmp_path, columns, key="scsi0:3", *options):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("KEY", key))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("run", config, *options),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
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
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("key", ["scsi0:3", LONG])
def test_a_terminal_gets_name_bar_share_rate_and_remaining_time_in_one_line(tmp_path, columns, key):
    lines = re.split(r"[\r\n]+", shown_on_a_terminal(tmp_path, columns, key))
    full = [line for line in lines if re.search(r"━.*\d %.*MiB/s +0:00:\d\d", line)]
    assert full
    assert all(len(line) <= columns for line in lines)
    assert all(line.startswith(key[:9]) and (key if len(key) < 20 else key[-9:]) in line for line in full)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--no-progress", "-q", "--json"])
def test_progress_can_be_switched_off(tmp_path, option):
    assert shown_on_a_terminal(tmp_path, 80, "scsi0:3", option) == ""
