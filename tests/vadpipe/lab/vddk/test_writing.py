"""Writing: what qemu-img reads back, and what it does to grain tables and children."""

import ctypes
import random
from pathlib import Path

import pytest

from tests.vadpipe.lab.vddk.conftest import SECTOR, chain, create, needs_qemu, qemu_img, raw_of


def write_patches(client, path, seed, count, asynchronous=False):
    """Random writes; the same generator gives the test what to expect."""
    handle = client.open(path, 0)
    generator, kept = random.Random(seed), []
    keep = client.Done(lambda data, result: kept.append(result))
    capacity = client.info(handle)[0].capacity
    for number in range(count):
        length = generator.choice([1, 7, 128, 130, 700])
        start = generator.randrange(capacity - length)
        data = bytes([number + 1]) * (length * 512)
        if asynchronous:
            numbers = (ctypes.c_uint64(start), ctypes.c_uint64(length))
            assert client.call("WriteAsync", handle, *numbers, data, keep, None) == 25000
        else:
            client.write(handle, start, data)
        # What was written is seen at once through the same handle, with its surroundings.
        assert client.read(handle, start, length) == data
    assert client.call("Flush", handle) == 0
    client.finish(handle)
    return kept


@pytest.mark.slow
@needs_qemu
@pytest.mark.parametrize("base", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("leaf", ["base", "redo2"])
def test_writes_are_what_qemu_reads_back(run, tmp_path, base, leaf):
    chain(tmp_path, base)
    disk = tmp_path / f"{leaf}.vmdk"
    expected = bytearray(raw_of(disk))
    parent = raw_of(tmp_path / "redo1.vmdk")
    written = run(write_patches, str(disk), 5, 40, base == "monolithicFlat")
    generator = random.Random(5)
    for number in range(40):
        length = generator.choice([1, 7, 128, 130, 700])
        start = generator.randrange(len(expected) // SECTOR - length)
        expected[start * SECTOR : (start + length) * SECTOR] = bytes([number + 1]) * (length * SECTOR)
    assert raw_of(disk) == expected
    assert set(written) <= {0}
    if (leaf, base) != ("base", "monolithicFlat"):
        assert "No errors were found" in qemu_img("check", "-f", "vmdk", disk)
    if leaf == "redo2":
        assert raw_of(tmp_path / "redo1.vmdk") == parent


@needs_qemu
def test_redundant_grain_tables_are_kept_equal(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "64M")
    run(write_patches, str(disk), 1, 20)
    content = disk.read_bytes()

    def tables(directory: int) -> list[bytes]:
        first = int.from_bytes(content[directory * SECTOR :][:4], "little")
        second = int.from_bytes(content[directory * SECTOR + 4 :][:4], "little")
        return [content[table * SECTOR :][:2048] for table in (first, second)]

    redundant, primary = (int.from_bytes(content[at : at + 8], "little") for at in (48, 56))
    assert any(tables(primary)[0])
    assert tables(redundant) == tables(primary)


def rename_tables_away(disk: Path) -> None:
    """Make the disk one whose grain directories are empty, as writers that allocate tables late leave it."""
    content = bytearray(disk.read_bytes())
    for at in (48, 56):
        directory = int.from_bytes(content[at : at + 8], "little") * SECTOR
        content[directory : directory + 8] = bytes(8)
    disk.write_bytes(content)


@needs_qemu
def test_missing_grain_tables_are_added(run, tmp_path):
    disk = create(tmp_path / "a.vmdk", "64M")
    rename_tables_away(disk)

    def fill(client, path):
        handle = client.open(path, 0)
        assert client.read(handle, 0, 128) == bytes(65536)
        client.write(handle, 65500, b"\5" * 512 * 100)
        own = client.allocated(handle, 0, 131072)
        assert client.call("Close", handle) == 0
        handle = client.open(path, connection=client.connection)
        later = client.allocated(handle, 0, 131072)
        client.finish(handle)
        return own, later

    assert run(fill, str(disk)) == [[], [[65408, 256]]]  # a handle does not list what it allocated itself
    assert raw_of(disk) == bytes(65500 * SECTOR) + b"\5" * SECTOR * 100 + bytes((131072 - 65600) * SECTOR)


@needs_qemu
def test_a_write_invalidates_the_children(run, tmp_path):
    leaf = chain(tmp_path)
    run(write_patches, str(tmp_path / "redo1.vmdk"), 1, 1)

    def refused(client, path):
        client.open(path, expect=16008)
        return client.log  # a thread that starts may write its own line last

    log = run(refused, str(leaf))
    assert any("content id" in line and "redo1.vmdk" in line for line in log), log
