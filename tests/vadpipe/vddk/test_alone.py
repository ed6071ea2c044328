"""`VddkDisk` as a disk of the engine, without vCenter: the stages work on it alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipeline import ChangeTrackingInvalid, Disk, Span, Zeros
from pipeline.testing import check_reader
from stages import AllocatedExtents, MarkZeros, ReadSpans
from tests.conftest import EXAMPLES
from tests.vadpipe.vddk.conftest import CAPACITY, quick
from vadpipe.vddk import DiskAccess, VddkDisk


def as_disk(disk: VddkDisk) -> Disk:
    """The type checker's proof."""
    return disk


async def test_the_stages_read_an_open_disk(libdir, made_lab):
    expected = made_lab.chains["grandchild"]
    image = np.zeros(CAPACITY, np.uint8)
    covered = 0
    async with (
        quick(libdir).open(DiskAccess.local(expected.leaf)) as disk,
        (AllocatedExtents(as_disk(disk)) | ReadSpans(disk) | MarkZeros()).open() as pieces,
    ):
        async for piece in pieces:
            match piece:
                case Span():
                    for start, length in piece.data:
                        image[start : start + length] = np.frombuffer(piece.bytes_of(start, length), np.uint8)
                    covered += piece.data.total + piece.zeros.total
                    piece.release()
                case Zeros(_, length):
                    covered += length
    assert np.array_equal(image, expected.raw)
    assert covered == CAPACITY


@pytest.mark.slow
def test_the_example_writes_the_disk_that_qemu_reads(libdir, made_lab, tmp_path):
    expected = made_lab.chains["child"]
    command = [sys.executable, EXAMPLES / "vddk_alone.py", libdir, expected.leaf, tmp_path / "disk.raw"]
    told = subprocess.check_output([str(word) for word in command], text=True)
    assert f"of {CAPACITY} bytes read over file" in told
    assert np.array_equal(np.fromfile(tmp_path / "disk.raw", np.uint8), expected.raw)


async def test_an_open_disk_says_what_it_is_and_has_no_change_tracking(libdir, lab, pool):
    async with quick(libdir).open(lab.access(), pool) as disk:
        assert (disk.key, disk.label) == ("[ds1] web01/grandchild.vmdk", "grandchild.vmdk")
        assert disk.change_id is None
        assert disk.pool is pool
        with pytest.raises(ChangeTrackingInvalid, match="has no change tracking"):
            await disk.changed("52 1b/3", 0)


@pytest.mark.parametrize("name", ["child", "grandchild"])
async def test_an_open_disk_keeps_the_rules_of_disks(libdir, made_lab, name):
    expected = made_lab.chains[name]
    async with quick(libdir).open(DiskAccess.local(expected.leaf)) as disk:
        await check_reader(disk, lambda offset, length: expected.raw[offset : offset + length].tobytes())
