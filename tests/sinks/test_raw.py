import os
import subprocess
import sys

import pytest

from pipeline import SPAN, ContractError, TransferFailed, Unchanged, Zeros
from pipeline.testing.checks import check_sink
from pipeline.testing.fakes import Items, PatternDisk
from pipeline.testing.views import all_free
from sinks import NullSink, RawFile
from stages import AllocatedExtents, MarkZeros, ReadSpans

SIZE = 3 * SPAN + 512


@pytest.fixture
def disk():
    return PatternDisk(SIZE, hole_ratio=0.4, zero_ratio=0.3)


def whole(disk):
    return AllocatedExtents(disk) | ReadSpans(disk) | MarkZeros()


async def test_the_image_is_the_disk(disk, tmp_path):
    path = tmp_path / "new" / "disk.raw"
    receipt = await (whole(disk) | RawFile(path, SIZE)).run()
    assert path.read_bytes() == disk.bytes_at(0, SIZE).tobytes()
    assert (receipt.path, receipt.capacity) == (path, SIZE)
    assert os.stat(path).st_blocks * 512 <= receipt.written + 8192  # what is zero takes no space
    assert os.listdir(path.parent) == ["disk.raw"]
    assert all_free(disk.pool)


async def test_an_image_appears_only_when_it_is_complete(disk, tmp_path):
    path = tmp_path / "disk.raw"
    items = [Zeros(0, SPAN), Zeros(SPAN, SIZE - SPAN)]
    await check_sink(
        lambda: RawFile(path, SIZE, force=True), lambda: items, published=lambda: sorted(os.listdir(tmp_path))
    )


@pytest.mark.parametrize(
    "items",
    [
        [Zeros(0, SPAN)],  # too short
        [Zeros(SPAN, SPAN)],  # begins late
        [Zeros(0, SPAN), Zeros(2 * SPAN, SIZE - 2 * SPAN)],  # a gap
        [Unchanged(0, SIZE)],  # what should be there?
    ],
)
async def test_a_disk_that_is_not_whole_is_refused(items, tmp_path):
    with pytest.raises(TransferFailed) as failed:
        await (Items(items) | RawFile(tmp_path / "disk.raw", SIZE)).run()
    assert failed.group_contains(ContractError)
    assert os.listdir(tmp_path) == []


FULL = """
import resource, signal, sys, trio
from pathlib import Path
from pipeline import MiB
from vadpipe.cli.output import error_lines
from pipeline.testing import PatternDisk
from sinks import RawFile
from stages import AllocatedExtents, ReadSpans

resource.setrlimit(resource.RLIMIT_FSIZE, (40 * MiB, 40 * MiB))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
disk = PatternDisk(48 * MiB)
try:
    trio.run((AllocatedExtents(disk) | ReadSpans(disk) | RawFile(Path(sys.argv[1]), 48 * MiB)).run)
except Exception as failed:
    print(error_lines(failed)[0])
"""


@pytest.mark.slow
def test_a_target_that_takes_no_more_is_named(tmp_path):
    path = tmp_path / "disk.raw"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{path} cannot be written: File too large."), done.stderr
    assert os.listdir(tmp_path) == []


async def test_null_gives_buffers_back(disk):
    assert (await (whole(disk) | NullSink()).run()).new > 0
    assert all_free(disk.pool)


async def test_null_keeps_the_contract():
    await check_sink(NullSink, lambda: [Zeros(0, SPAN)])
