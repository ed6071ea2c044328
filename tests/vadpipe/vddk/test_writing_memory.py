"""A thin disk of 4 TiB is restored in bounded memory, and stays thin."""

from __future__ import annotations

import json
import os
import sys

import pytest

from pipeline.units import GiB, MiB, TiB
from tests.vadpipe.vddk.conftest import qemu
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.process_tree import run_measured

LIMIT = 256 * MiB
CAPACITY = 4 * TiB

PROGRAM = """
import json, sys
from dataclasses import dataclass

import numpy as np
import trio

from pipeline import SPAN, BufferPool, Extents, Source, Span, Zeros
from sinks import IntoVddkDisk
from vadpipe.vddk import DiskAccess, Vddk


@dataclass(frozen=True)
class Spread(Source[Span | Zeros]):
    capacity: int
    spans: int
    pool: BufferPool

    async def run(self, outbox):
        step = self.capacity // self.spans
        for number in range(self.spans):
            offset = number * step
            buffer = await self.pool.acquire()
            buffer.array.fill(number % 255 + 1)
            none, whole = Extents.empty(), Extents.whole(SPAN, offset)
            span = Span(offset=offset, length=SPAN, data=whole, zeros=none, buffer=buffer)
            del buffer
            await outbox.send(span)
            del span
            await outbox.send(Zeros(offset + SPAN, step - SPAN))


async def main(libdir, path, capacity, spans):
    pool = BufferPool()
    async with Vddk(libdir).open(DiskAccess.local(path), pool, write=True) as disk:
        receipt = await (Spread(disk.capacity, spans, pool) | IntoVddkDisk(disk)).run()
    print(json.dumps([receipt.written, receipt.zeros_written, receipt.allocated]))


trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "amount", [pytest.param(128 * MiB, id="short"), pytest.param(GiB, id="1GiB", marks=pytest.mark.campaign)]
)
def test_a_disk_of_4_tib_stays_thin_in_bounded_memory(tmp_path, libdir, amount):
    disk = LabDisk.create(tmp_path, "big", CAPACITY)
    spans = amount // (4 * MiB)
    command = [sys.executable, "-c", PROGRAM, str(libdir), str(disk.base), str(CAPACITY), str(spans)]
    done = run_measured(command, {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")})
    assert done.returncode == 0, done.stderr
    written, zeros_written, allocated = json.loads(done.stdout)
    print(f"peak {done.peak_rss / MiB:.0f} MiB, allocated {allocated / written:.4f} of what was written")
    assert (written, zeros_written) == (amount, 0)
    assert written <= allocated <= 1.02 * written
    assert done.peak_rss < LIMIT
    step = CAPACITY // spans
    for number in (0, spans // 2, spans - 1):
        command = f"read -P {number % 255 + 1} {number * step} {4 * MiB}"
        assert b"Pattern verification failed" not in qemu(
            "qemu-io", "-r", "-f", "vmdk", "-c", command, disk.base
        )
