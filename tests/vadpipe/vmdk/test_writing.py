"""Writing VMDKs: qemu-img and our own reader are the witnesses, for random disks in every format."""

from __future__ import annotations

import json
import os
from contextlib import closing

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import ConfigError, Extents, Source, Span, Zeros
from pipeline.buffers import BufferPool
from pipeline.units import GiB, KiB, MiB, TiB
from sinks.vmdk import FORMATS, SPLIT_EXTENT, StreamFile, VmdkFile, check_format
from vadpipe.vmdk.build import GRAIN, GrainCutter, held_grains
from vadpipe.vmdk.chain import open_layout
from vadpipe.vmdk.describe import DiskFacts, adapter_of, describe, disk_uuid, geometry
from vadpipe.vmdk.files import OpenFiles
from vadpipe.vmdk.local import LocalDisk
from vadpipe.vmdk.stream import stream_optimized

SPAN = 4 * MiB
SPARSE_FORMS = tuple(form for form in FORMATS if form != "monolithicFlat")


class Pieces(Source[Span | Zeros]):
    """A disk with data at the given (offset, bytes), as spans cut where a reader cuts them."""

    def __init__(self, capacity, data, pool=None):
        self.capacity, self.data, self.pool = capacity, data, pool or BufferPool(8 * SPAN)

    async def run(self, outbox):
        held = Extents.of((offset, len(content)) for offset, content in self.data)
        reached = 0
        for start in sorted({offset // SPAN * SPAN for offset, _ in self._cut()}):
            if start > reached:
                await outbox.send(Zeros(reached, start - reached))
            length = min(SPAN, self.capacity - start)
            buffer = await self.pool.acquire()
            buffer.array[:] = 0xEE  # undefined outside of the data
            for offset, content in self._cut():
                if start <= offset < start + length:
                    buffer.array[offset - start : offset - start + len(content)] = content
            data = held.within(start, length)
            zeros = data.inverted(start, length)
            await outbox.send(Span(offset=start, length=length, data=data, zeros=zeros, buffer=buffer))
            reached = start + length
        if reached < self.capacity:
            await outbox.send(Zeros(reached, self.capacity - reached))

    def _cut(self):
        for offset, content in self.data:
            while len(content):
                size = min(len(content), SPAN - offset % SPAN)
                yield offset, content[:size]
                offset, content = offset + size, content[size:]

    def content(self):
        disk = np.zeros(self.capacity, np.uint8)
        for offset, content in self.data:
            disk[offset : offset + len(content)] = content
        return disk


def random_data(capacity, seed, count=9):
    """Pieces of whole sectors: random bytes, and pieces of zeros that count as data."""
    random = np.random.default_rng(seed)
    data = []
    for place in np.sort(random.integers(0, capacity // 512, count)).tolist():
        offset = place * 512
        if data and offset < data[-1][0] + len(data[-1][1]):
            continue
        length = min(int(random.integers(1, 600)) * 512, capacity - offset)
        zeros = random.random() < 0.3
        data.append(
            (offset, np.zeros(length, np.uint8) if zeros else random.integers(0, 256, length, np.uint8))
        )
    return data


def write(source, path, form, **options):
    if form == "streamOptimized":
        flow = stream_optimized(source, source.capacity, name=path.name, facts=options.pop("facts", None))
        return trio.run((flow | StreamFile(path, source.capacity, **options)).run)
    return trio.run((source | VmdkFile(path, source.capacity, form, **options)).run)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    capacity=st.integers(1, 40 * MiB // 512).map(lambda sectors: sectors * 512), seed=st.integers(0, 1 << 32)
)
def test_what_qemu_reads_is_what_was_written(qemu, tmp_path_factory, form, capacity, seed):
    directory = tmp_path_factory.mktemp("written")
    source = Pieces(capacity, random_data(capacity, seed))
    path = directory / "disk.vmdk"
    write(source, path, form)
    if form in ("monolithicSparse", "streamOptimized"):
        qemu.img("check", "-f", "vmdk", path)
    assert np.array_equal(qemu.raw(path)[:capacity], source.content())
    assert not [name for name in os.listdir(directory) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
async def test_our_own_reader_reads_what_was_written(read_all, tmp_path, form):
    capacity = 70 * MiB + 512
    source = Pieces(capacity, random_data(capacity, 3, 40))
    path = tmp_path / "disk.vmdk"
    await trio.to_thread.run_sync(write, source, path, form)
    files = OpenFiles([tmp_path])
    try:
        disk = LocalDisk("scsi0:0", "disk", open_layout(path, files), BufferPool())
        assert disk.capacity == capacity
        assert np.array_equal(await read_all(disk), source.content())
    finally:
        files.close()


@pytest.mark.slow
@pytest.mark.parametrize("form", SPARSE_FORMS)
def test_grains_of_zeros_take_no_space(qemu, tmp_path, form):
    zeros, held = np.zeros(8 * MiB, np.uint8), np.full(3 * GRAIN, 7, np.uint8)
    source = Pieces(3 * GiB, [(GiB, zeros), (2 * GiB + 5 * GRAIN, held)])
    receipt = write(source, tmp_path / "disk.vmdk", form)
    if form == "streamOptimized":
        assert receipt.written < 128 * KiB + 16 * KiB
    else:
        assert receipt.written == 3 * GRAIN
        assert qemu.allocated(tmp_path / "disk.vmdk") == Extents.of([(2 * GiB + 5 * GRAIN, 3 * GRAIN)])
        used = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
        assert used < 3 * GRAIN + 512 * KiB


@pytest.mark.slow
def test_a_split_disk_has_extents_of_2047_mib(qemu, tmp_path):
    end = 2 * SPLIT_EXTENT + 1536
    across = np.full(2 * MiB, 9, np.uint8)  # over the border of two files
    source = Pieces(end, [(SPLIT_EXTENT - MiB, across), (end - 512, np.full(512, 3, np.uint8))])
    write(source, tmp_path / "disk.vmdk", "twoGbMaxExtentSparse")
    names = ["disk-s001.vmdk", "disk-s002.vmdk", "disk-s003.vmdk", "disk.vmdk"]
    assert sorted(os.listdir(tmp_path)) == names
    text = (tmp_path / "disk.vmdk").read_text()
    assert 'RW 4192256 SPARSE "disk-s001.vmdk"\nRW 4192256 SPARSE "disk-s002.vmdk"\nRW 3 SPARSE' in text
    found = json.loads(qemu.img("info", "-f", "vmdk", "--output=json", tmp_path / "disk.vmdk"))
    assert found["virtual-size"] == end
    assert np.array_equal(qemu.raw(tmp_path / "disk.vmdk"), source.content())


@pytest.mark.slow
def test_a_stream_is_the_same_with_one_and_several_workers():
    capacity = 40 * MiB
    data = random_data(capacity, 5, 60)
    facts = DiskFacts(content_id=7)

    async def stream(workers):
        flow = stream_optimized(Pieces(capacity, data), capacity, facts=facts, workers=workers, level=1)
        async with flow.open() as pieces:
            return b"".join([piece.content async for piece in pieces])

    one, four = trio.run(stream, 1), trio.run(stream, 4)
    assert one == four
    assert len(one) % 512 == 0
    assert one[-512:] == bytes(512)  # the mark of the end


def test_the_descriptor_says_what_the_disk_is(qemu, tmp_path):
    facts = DiskFacts("ide", 19, disk_uuid("6000c29e-0102-0304-0506-0708090a0b0c"), 0xABCD)
    text = describe("monolithicFlat", 8 * GiB, [], facts).decode()
    for line in (
        "CID=0000abcd",
        "parentCID=ffffffff",
        'createType="monolithicFlat"',
        'ddb.adapterType = "ide"',
        'ddb.virtualHWVersion = "19"',
        'ddb.geometry.cylinders = "16383"',
        'ddb.geometry.heads = "16"',
        'ddb.uuid = "60 00 c2 9e 01 02 03 04-05 06 07 08 09 0a 0b 0c"',
    ):
        assert line in text.split("\n")


@pytest.mark.parametrize(
    ("capacity", "adapter", "expected"),
    [
        (512 * MiB, "lsilogic", (512, 64, 32)),
        (GiB, "lsilogic", (512, 128, 32)),
        (8 * GiB, "lsilogic", (1044, 255, 63)),
        (TiB, "lsilogic", (65535, 255, 63)),
        (TiB, "ide", (16383, 16, 63)),
    ],
)
def test_the_geometry_is_that_of_vmwares_products(capacity, adapter, expected):
    assert geometry(capacity, adapter) == expected


def test_the_adapter_comes_from_the_controller():
    assert adapter_of("ide0:1") == "ide"
    assert adapter_of("scsi0:0", "VirtualBusLogicController") == "buslogic"
    assert adapter_of("scsi0:0", "ParaVirtualSCSIController") == "lsilogic"
    assert disk_uuid("no uuid") == ""
    with pytest.raises(ConfigError, match="is no adapter of a VMDK"):
        DiskFacts("pvscsi")


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match=r"at most 2 TiB with its tables.*twoGbMaxExtentSparse"):
        check_format("monolithicSparse", 2 * TiB)
    check_format("monolithicSparse", 2 * TiB - GiB)
    check_format("streamOptimized", 62 * TiB)
    with pytest.raises(ConfigError, match="'vmfs' is no format of a VMDK"):
        check_format("vmfs", GiB)
    with pytest.raises(ConfigError, match="whole sectors"):
        describe("monolithicFlat", 1000, [], DiskFacts())


@pytest.mark.slow
def test_a_disk_of_62_tib_is_a_small_stream(qemu, tmp_path):
    end = 62 * TiB
    source = Pieces(end, [(end - MiB, np.full(MiB, 5, np.uint8))])
    receipt = write(source, tmp_path / "disk.vmdk", "streamOptimized")
    assert receipt.written < 9 * MiB  # the directory has 4 bytes for each 32 MiB
    with closing(OpenFiles([tmp_path])) as files:
        layout = open_layout(tmp_path / "disk.vmdk", files)
        assert layout.capacity == end
        assert layout.allocated(0, end) == Extents.of([(end - MiB, MiB)])


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 16 * 16), st.integers(1, 40), st.booleans()), min_size=1, max_size=8
    ).map(sorted)
)
def test_cut_grains_hold_every_byte_once(places):
    """Extents in clusters, whatever borders of grains they cross."""
    pool = BufferPool(SPAN)
    disk = np.zeros(SPAN, np.uint8)
    extents, reached = [], 0
    for start, length, zero in places:
        begin, end = max(start, reached) * 4096, min((start + length) * 4096, SPAN)
        if end <= begin:
            continue
        reached = end // 4096 + 1
        extents.append((begin, end - begin))
        disk[begin:end] = 0 if zero else start % 255 + 1
    buffer = pool.acquire_nowait()
    buffer.array[:] = 0xEE
    for offset, length in extents:
        buffer.array[offset : offset + length] = disk[offset : offset + length]
    data = Extents.of(extents)
    span = Span(offset=0, length=SPAN, data=data, zeros=data.inverted(0, SPAN), buffer=buffer)
    cutter = GrainCutter(SPAN)
    found, last = np.zeros(SPAN, np.uint8), -1
    for number, piece in [*cutter.cut(span), *cutter.end()]:
        assert len(piece) % GRAIN == 0
        assert number > last
        last = number + len(piece) // GRAIN - 1
        for first, content in held_grains(number, piece):
            assert content.reshape(-1, GRAIN).any(axis=1).all()
            found[first * GRAIN : first * GRAIN + len(content)] = content
    assert np.array_equal(found, disk)
    buffer.release()
