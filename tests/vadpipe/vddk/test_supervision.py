"""The deadlines of a child process: only what is outstanding has one."""

from __future__ import annotations

import math

import trio

from pipeline.extents import Extents
from pipeline.units import SPAN
from tests.vadpipe.vddk.conftest import quick


async def test_a_disk_that_nobody_reads_has_no_deadline_and_one_that_is_read_has(lab, libdir, pool):
    async with quick(libdir, call_timeout_s=50.0).open(lab.access(), pool) as disk:
        child = disk._connection._child
        assert child._silence.deadline == math.inf
        buffer = await pool.acquire()
        deadlines = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, buffer, 0, Extents.whole(SPAN))
            while not deadlines or deadlines[-1] == math.inf:
                await trio.lowlevel.checkpoint()
                deadlines.append(child._silence.deadline)
        assert deadlines[-1] - trio.current_time() <= 50.0
        assert child._silence.deadline == math.inf
        buffer.release()
    assert child._silence.deadline < math.inf  # it was asked to leave
    assert disk.statistics().restarts == 0
