"""`VddkDisk` as a disk of the engine, without vCenter: the stages work on it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import ChangeTrackingInvalid, Disk
from pipeline.buffers import BufferPool
from stages import AllocatedExtents, MarkZeros, ReadSpans
from tests.vadpipe.vddk.conftest import CAPACITY, Lab, quick
from vadpipe.vddk import DiskAccess, VddkDisk


def as_disk(disk: VddkDisk) -> Disk:
    """The type checker's proof."""
    return disk


async def test_the_stages_read_an_open_disk(libdir: Path, made_lab: Lab) -> None:
    expected = made_lab.chains["grandchild"]
    image = np.full(CAPACITY, 0xEE, np.uint8)
    async with quick(libdir).open(DiskAccess.local(expected.leaf)) as disk:
        flow = AllocatedExtents(as_disk(disk)) | ReadSpans(disk) | MarkZeros()
        async with flow.open() as spans:
            async for span in spans:
                for start, length in span.data:
                    at = start - span.offset
                    image[start : start + length] = span.buffer.array[at : at + length]
                for start, length in span.zeros:
                    image[start : start + length] = 0
                span.release()
    assert np.array_equal(image, expected.raw)


async def test_an_open_disk_says_what_it_is_and_has_no_change_tracking(
    libdir: Path, lab: Lab, pool: BufferPool
) -> None:
    async with quick(libdir).open(lab.access(), pool) as disk:
        assert (disk.key, disk.label) == ("[ds1] web01/grandchild.vmdk", "grandchild.vmdk")
        assert disk.change_id is None
        assert disk.pool is pool
        with pytest.raises(ChangeTrackingInvalid, match="has no change tracking"):
            await disk.changed("52 1b/3", 0)
