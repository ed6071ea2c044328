"""Damaged, cut and changing files: one SourceError that says what and where, never wrong data."""

import os
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.extents import Extents
from pipeline.units import KiB, MiB
from stages import LocalVm
from vadpipe.vmdk.chain import open_layout
from vadpipe.vmdk.files import OpenFiles
from vadpipe.vmdk.reading import read_plan


def read_disk(path, limit=16 * MiB) -> np.ndarray:
    """Open a disk, ask what is allocated, and read up to `limit` bytes of that, all on this thread."""
    files = OpenFiles()
    try:
        layout = open_layout(path, files)
        image = np.zeros(min(layout.capacity, limit), dtype=np.uint8)
        wanted = layout.allocated(0, layout.capacity).within(0, len(image))
        read_plan(layout.plan(wanted), layout.sources, image, 0)
        return image
    finally:
        files.close()


def refusal(path) -> str | None:
    """The SourceError that reading ends with, or None; another exception fails the test."""
    try:
        read_disk(path)
    except SourceError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_a_file_cut_off_anywhere_is_refused(small_sparse, tmp_path):
    path = tmp_path / "small.vmdk"
    path.write_bytes(small_sparse)
    whole = read_disk(path)
    assert (whole[960 * KiB :] == 7).all()
    positions = [
        *range(520),
        *random.Random(1).sample(range(520, len(small_sparse)), 150),
        len(small_sparse) - 1,
    ]
    for length in positions:
        path.write_bytes(small_sparse[:length])
        with pytest.raises(SourceError) as caught:
            read_disk(path)
        assert "small.vmdk" in str(caught.value)
        assert caught.value.remedy


def test_an_empty_disk_cut_off_in_its_tables_is_refused(qemu, tmp_path):
    path = tmp_path / "a.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", path, MiB)
    whole = path.read_bytes()
    assert not read_disk(path).any()
    path.write_bytes(whole[:-512])
    with pytest.raises(SourceError, match="but its metadata lies at"):
        read_disk(path)


def test_a_stream_cut_off_anywhere_is_refused(qemu, tmp_path):
    source, path = tmp_path / "source.bin", tmp_path / "a.vmdk"
    np.random.default_rng(1).integers(0, 256, 300 * KiB, dtype=np.uint8).tofile(source)
    qemu.img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", source, path)
    stream = path.read_bytes().rstrip(b"\0")
    for length in (10, 600, 66000, len(stream) // 2, len(stream) - 5, len(stream) - 1):
        path.write_bytes(stream[:length])
        with pytest.raises(SourceError, match=r"a\.vmdk"):
            read_disk(path)


def test_a_damaged_compressed_grain_is_refused(qemu, tmp_path):
    source, path = tmp_path / "source.bin", tmp_path / "a.vmdk"
    source.write_bytes(b"abcd" * 64 * KiB)
    qemu.img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", source, path)
    stream = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", stream, struct.unpack_from("<I", stream, _directory(stream))[0] * 512)
    assert len(read_disk(path)) == 256 * KiB
    for position in (first * 512 + 8, first * 512 + 11, first * 512 + 12, first * 512 + 40):
        damaged = bytearray(stream)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"grain at|lies at"):
            read_disk(path)
    (size,) = struct.unpack_from("<I", stream, first * 512 + 8)
    struct.pack_into(
        "<I", stream, first * 512 + 8, size - 4
    )  # the checksum at the end of the grain is missing
    path.write_bytes(stream)
    with pytest.raises(SourceError, match="does not end with its grain"):
        read_disk(path)


def test_the_redundant_directory_serves_where_the_first_is_lost(small_sparse, tmp_path):
    path = tmp_path / "small.vmdk"
    path.write_bytes(small_sparse)
    whole = read_disk(path)
    for lost in (0, 1 << 40):
        content = bytearray(small_sparse)
        struct.pack_into("<Q", content, 56, lost)
        path.write_bytes(content)
        assert np.array_equal(read_disk(path), whole)
        struct.pack_into("<I", content, 8, 1)  # the header no longer says that there is a redundant one
        path.write_bytes(content)
        with pytest.raises(SourceError, match="grain directory"):
            read_disk(path)


def _directory(stream: bytes) -> int:
    return int(struct.unpack_from("<Q", stream, 56)[0]) * 512


HOSTED = (
    ("<I", 4),
    ("<I", 8),
    ("<Q", 12),
    ("<Q", 20),
    ("<Q", 28),
    ("<Q", 36),
    ("<I", 44),
    ("<Q", 48),
    ("<Q", 56),
)
FIELDS = (*HOSTED, ("<Q", 64), ("<H", 77))
numbers = st.integers(0, 2**64 - 1) | st.integers(0, 600) | st.sampled_from([2**k for k in range(64)])


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(FIELDS), numbers), min_size=1, max_size=3), st.booleans())
def test_any_header_is_read_or_refused_in_bounded_memory(small_sparse, tmp_path, changes, in_tables):
    content = bytearray(small_sparse)
    for (kind, position), value in changes:
        struct.pack_into(kind, content, position, value & (256 ** struct.calcsize(kind) - 1))
    if in_tables:  # the first entries of the directory and of the first table
        struct.pack_into("<I", content, _directory(small_sparse), changes[0][1] & 0xFFFFFFFF)
        struct.pack_into("<I", content, _directory(small_sparse) + 512, changes[-1][1] & 0xFFFFFFFF)
    path = tmp_path / "small.vmdk"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        problem = refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MiB
    assert problem is None or "small.vmdk" in problem


@pytest.mark.parametrize("kind", ["cowd", "sesparse"])
def test_any_redo_log_is_read_or_refused(write_cowd, write_se_sparse, write_descriptor, tmp_path, kind):
    path, data = tmp_path / "a.vmdk", tmp_path / "a-data.vmdk"
    if kind == "cowd":
        write_cowd(data, 8192, {1: bytes(512), 8000: b"\1" * 512})
        word, count = "<I", 8
    else:
        write_se_sparse(data, 8192, {1: bytes(4096), 1000: b"\1" * 4096}, zeroed=(5,))
        word, count = "<Q", 26
    write_descriptor(path, 'RW 8192 VMFSSPARSE "a-data.vmdk"')
    good = data.read_bytes()
    assert read_disk(path).any()
    dice = random.Random(7)
    size, refused = struct.calcsize(word), 0
    positions = [number * size for number in range(count)] + [
        dice.randrange(0, len(good) - 8) for _ in range(60)
    ]
    for position in positions:
        content = bytearray(good)
        struct.pack_into(word, content, position, dice.choice([0, 1, 3, dice.getrandbits(size * 8), 1 << 31]))
        data.write_bytes(content)
        problem = refusal(path)
        assert problem is None or "a-data.vmdk" in problem
        refused += problem is not None
    assert refused > 5
    for length in [*range(0, 520, 7), len(good) - 1]:
        data.write_bytes(good[:length])
        with pytest.raises(SourceError):
            read_disk(path)


def _shorten(path):
    os.truncate(path, 64 * KiB)


def _remove(path):
    path.unlink()


def _overwrite(path):
    with path.open("r+b") as file:
        file.write(b"new")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_shorten, "ends at 65536 bytes, but its data lies at"),
        (_remove, "was removed while it was read"),
        (_overwrite, "was changed while it was read"),
    ],
)
async def test_a_file_that_changes_while_it_is_read_is_an_error(write_descriptor, tmp_path, change, message):
    flat = tmp_path / "a-flat.vmdk"
    flat.write_bytes(b"\1" * MiB)
    write_descriptor(tmp_path / "a.vmdk", f'RW {MiB // 512} FLAT "a-flat.vmdk" 0')
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        buffer = await disk.pool.acquire()
        await disk.read(buffer, 0, Extents.whole(64 * KiB))
        change(flat)
        with pytest.raises(SourceError, match=message) as caught:
            await disk.read(buffer, 0, Extents.of([(8 * KiB, 4 * KiB), (512 * KiB, 64 * KiB)]))
    facts = caught.value.facts
    assert (facts["disk"], facts["offset"], facts["length"]) == ("a", 8 * KiB, 568 * KiB)
    assert facts["file"] == str(flat)
    assert "disk a could not be read at offset 8192, length 581632" in str(caught.value)
