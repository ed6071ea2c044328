"""Chains of redo logs, as qemu-img makes and reads them."""

import os
from itertools import pairwise

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.extents import Extents
from pipeline.units import KiB, MiB
from stages import LocalVm


def make_chain(qemu, directory, capacity, base="monolithicSparse"):
    """base <- middle <- leaf, with writes and zeroed grains on top of each other."""
    paths = [directory / f"{name}.vmdk" for name in ("base", "middle", "leaf")]
    source = directory / "source.raw"
    image = np.zeros(capacity, dtype=np.uint8)
    image[: 3 * MiB], image[5 * MiB : 5 * MiB + 700 * KiB], image[-512:] = 1, 2, 3
    image.tofile(source)
    qemu.img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={base}", source, paths[0])
    for number, (parent, child) in enumerate(pairwise(paths), 1):
        qemu.img(
            "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", "-F", "vmdk", "-b", parent.name, child
        )
        qemu.io(
            child,
            f"write -P {number * 16} {number * 200}k 130k",
            f"write -P {number * 16 + 1} {6 * MiB + number * 512} 1536",
            f"write -z {number}M 256k",
            f"write -z {number * 64 + 5 * 1024}k 64k",
        )
    return paths


@pytest.mark.parametrize(
    "base", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentFlat", "streamOptimized"]
)
async def test_a_chain_of_three_links_reads_as_qemu_reads_it(qemu, read_all, tmp_path, base):
    capacity = 8 * MiB + 7 * 512
    leaf = make_chain(qemu, tmp_path, capacity, base)[-1]
    expected = qemu.raw(leaf)
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert disk.label == "leaf.vmdk"
        assert [os.path.basename(link["file"]) for link in capture.configuration["disks"]["leaf"]] == [
            "leaf.vmdk",
            "middle.vmdk",
            "base.vmdk",
        ]
        assert np.array_equal(await read_all(disk), expected)
        allocated = await disk.allocated(0, capacity)
        grains = qemu.allocated(leaf)
        if base.endswith("Flat"):
            assert not (grains - allocated).total or not expected[_bytes(grains - allocated)].any()
        else:
            assert allocated == grains.aligned(64 * KiB, capacity)
        # Zeroed grains hide the parent's data: the last link zeroed what the base holds.
        assert not (allocated & Extents.whole(256 * KiB, 2 * MiB)).total


def _bytes(extents: Extents) -> np.ndarray:
    return np.concatenate([np.arange(offset, offset + length) for offset, length in extents])


async def test_a_child_that_was_grown_is_zero_beyond_its_parent(qemu, read_all, tmp_path):
    base, leaf = tmp_path / "base.vmdk", tmp_path / "leaf.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", base, MiB)
    qemu.io(base, "write -P 1 0 1M")
    qemu.img("create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base.name, leaf, 3 * MiB)
    qemu.io(leaf, "write -P 2 2500k 100k")
    async with LocalVm(tmp_path).capture() as capture:
        assert np.array_equal(await read_all(capture.disks[0]), qemu.raw(leaf))


async def test_a_parent_is_found_by_its_path_or_beside_its_child(qemu, tmp_path):
    """A hint of another host's path is followed to the file of that name beside the child."""
    *_, middle, leaf = make_chain(qemu, tmp_path, 8 * MiB)
    for hint in ("C:\\VMs\\old place\\middle.vmdk", "/vmfs/volumes/0123/vm/middle.vmdk", str(middle)):
        text = leaf.read_bytes()
        start = text.index(b'parentFileNameHint="')
        end = text.index(b'"\n', start + 20) + 2
        changed = text[:start] + b'parentFileNameHint="' + hint.encode() + b'"\n' + text[end:]
        shift = len(changed) - len(text)
        room = changed.index(b"\0" * 200, start)
        changed = changed[:room] + (b"\0" * -shift + changed[room:] if shift < 0 else changed[room + shift :])
        leaf.write_bytes(changed)
        async with LocalVm(tmp_path).capture() as capture:
            assert len(capture.disks[0].layout.links) == 3


async def failure(directory) -> SourceError:
    with pytest.raises(SourceError) as caught:
        async with LocalVm(directory).capture():
            pass
    assert caught.value.remedy
    return caught.value


async def test_a_missing_parent_is_refused(qemu, tmp_path):
    base, *_ = make_chain(qemu, tmp_path, 8 * MiB)
    base.unlink()
    error = await failure(tmp_path)
    assert "parent of" in str(error)
    assert "'base.vmdk', is missing" in str(error)


async def test_a_parent_changed_after_its_child_was_made_is_refused(qemu, tmp_path):
    base, *_ = make_chain(qemu, tmp_path, 8 * MiB)
    qemu.io(base, "write -P 5 0 64k")  # which gives it a new content id
    error = await failure(tmp_path)
    assert "the parent was changed after the child was made" in str(error)
    assert "correct parentCID" in error.remedy


async def test_a_chain_that_loops_is_refused(write_descriptor, tmp_path):
    for name, parent in (("a", "b"), ("b", "a"), ("leaf", "a")):
        path = tmp_path / f"{name}.vmdk"
        write_descriptor(path, "RW 8 ZERO", parent_id="11111111", hint=f"{parent}.vmdk")
    assert "loops" in str(await failure(tmp_path))
    (tmp_path / "leaf.vmdk").unlink()
    assert "loops" in str(await failure(tmp_path))


@pytest.mark.parametrize(
    ("extent", "message"),
    [
        ('RW 16 VMFSRDM "a-rdm.vmdk"', "not in a file"),
        ('NOACCESS 16 FLAT "a-flat.vmdk"', "not in a file"),
        ('RW 16 FLAT "a-flat.vmdk" 1', r"ends at 8192 bytes, but its part named in .* lies at 512 to 8704"),
        ('RW 16 SPARSE "a-flat.vmdk"', "named as a sparse extent, but begins with"),
        ('RW 16 FLAT "../../none/none.vmdk"', "is missing"),
        ('RW 16 FLAT "fifo.vmdk"', "is missing"),
        (f'RW 16 FLAT "{"n" * 300}.vmdk"', "is missing"),
    ],
)
async def test_extents_that_are_not_in_files_are_refused(write_descriptor, tmp_path, extent, message):
    (tmp_path / "a-flat.vmdk").write_bytes(bytes(8192))
    os.mkfifo(tmp_path / "fifo.vmdk")
    (tmp_path / "vm.vmx").write_text('scsi0:0.present = "TRUE"\nscsi0:0.fileName = "a.vmdk"\n')
    write_descriptor(tmp_path / "a.vmdk", extent)
    with pytest.raises(SourceError, match=message):
        raise await failure(tmp_path)


async def test_extents_of_several_kinds_make_one_disk(write_descriptor, read_all, tmp_path):
    data = np.random.default_rng(1).integers(1, 256, 12 * KiB, dtype=np.uint8)
    with (tmp_path / "flat 1.bin").open("wb") as file:
        file.write(data)
        file.truncate(64 * KiB)
    write_descriptor(
        tmp_path / "a.vmdk",
        'RW 120 FLAT "flat 1.bin" 8\nRW 0 ZERO\nRW 3 ZERO\nNOACCESS 5 ZERO\nRDONLY 16 FLAT "flat 1.bin" 0',
    )
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        expected = np.concatenate((data[4 * KiB :], np.zeros(56 * KiB, np.uint8), data[: 8 * KiB]))
        assert np.array_equal(await read_all(disk), expected)
        assert await disk.allocated(0, disk.capacity) == Extents.of([(0, 8 * KiB), (64 * KiB, 8 * KiB)])
