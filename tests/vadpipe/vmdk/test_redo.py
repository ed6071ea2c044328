"""COWD and SE-sparse, written by small writers of the tests and read by qemu-img as well."""

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.extents import Extents
from pipeline.units import KiB, MiB
from stages import LocalVm

CAPACITY = 5 * MiB + 512 * 3  # of COWD, three grain tables


def grains(seed: int, size: int, count: int, number: int) -> dict[int, bytes]:
    """Random grains in random order, as a guest writes them."""
    random = np.random.default_rng(seed)
    return {int(n): random.bytes(size) for n in random.permutation(count)[:number]}


@pytest.mark.slow
async def test_a_cowd_chain_reads_as_qemu_reads_it(
    qemu, content, read_all, write_cowd, write_descriptor, tmp_path
):
    content(CAPACITY, seed=1).tofile(tmp_path / "vm-flat.vmdk")
    write_descriptor(tmp_path / "vm.vmdk", f'RW {CAPACITY // 512} VMFS "vm-flat.vmdk"')
    parent, sectors = "vm.vmdk", CAPACITY // 512
    for number in (1, 2):
        held = grains(number, 512, sectors, 600) | {sectors - number: b"\x77" * 512}
        if number == 2:  # the second redo log leaves a whole grain table out
            held = {sector: data for sector, data in held.items() if not 4096 <= sector < 8192}
        name = f"vm-00000{number}"
        write_cowd(tmp_path / f"{name}-delta.vmdk", sectors, held)
        write_descriptor(
            tmp_path / f"{name}.vmdk",
            f'RW {sectors} VMFSSPARSE "{name}-delta.vmdk"',
            create_type="vmfsSparse",
            content_id=str(number) * 8,
            parent_id=str(number - 1 or 1) * 8,
            hint=parent,
        )
        parent = f"{name}.vmdk"
    expected = qemu.raw(tmp_path / parent)
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert disk.key == "vm-000002"
        assert np.array_equal(await read_all(disk), expected)
        allocated = await disk.allocated(0, CAPACITY)
        assert not expected[_outside(allocated)].any()


async def test_cowd_alone_holds_only_its_grains(write_cowd, write_descriptor, tmp_path):
    held = {5: b"\x05" * 512, 8191: b"\x06" * 512}
    write_cowd(tmp_path / "a-delta.vmdk", 16384, held)
    write_descriptor(tmp_path / "a.vmdk", 'RW 16384 VMFSSPARSE "a-delta.vmdk"')
    async with LocalVm(tmp_path).capture() as capture:
        allocated = await capture.disks[0].allocated(0, 16384 * 512)
        assert allocated == Extents.of([(0, 4096), (8184 * 512, 4096)])


@pytest.mark.slow
async def test_a_se_sparse_chain_reads_as_qemu_reads_it(
    qemu, content, read_all, write_se_sparse, write_descriptor, tmp_path
):
    capacity = 40 * MiB  # three grain tables
    content(capacity, seed=2).tofile(tmp_path / "vm-flat.vmdk")
    write_descriptor(tmp_path / "vm.vmdk", f'RW {capacity // 512} VMFS "vm-flat.vmdk"')
    held = grains(7, 4 * KiB, 4000, 300) | grains(8, 4 * KiB, 10240, 4200)
    free = [number for number in range(4096) if number not in held]
    path = tmp_path / "vm-000001-sesparse.vmdk"
    write_se_sparse(path, capacity // 512, held, zeroed=tuple(free[:500]), unmapped=tuple(free[500:900]))
    write_descriptor(
        tmp_path / "vm-000001.vmdk",
        f'RW {capacity // 512} SESPARSE "vm-000001-sesparse.vmdk"',
        create_type="seSparse",
        parent_id="1" * 8,
        hint="vm.vmdk",
    )
    expected = qemu.raw(tmp_path / "vm-000001.vmdk")
    assert expected.any()
    async with LocalVm(tmp_path).capture() as capture:
        (disk,) = capture.disks
        assert np.array_equal(await read_all(disk), expected)
        allocated = await disk.allocated(0, capacity)
        assert allocated.total >= len(held) * 4 * KiB
        hidden = Extents.of((number * 4 * KiB, 4 * KiB) for number in free[:900])
        assert not (allocated & hidden).total


async def test_se_sparse_with_a_journal_is_refused(write_se_sparse, write_descriptor, tmp_path):
    write_se_sparse(tmp_path / "a-sesparse.vmdk", 8192, {1: bytes(4096)}, replay=1)
    write_descriptor(tmp_path / "a.vmdk", 'RW 8192 SESPARSE "a-sesparse.vmdk"')
    with pytest.raises(SourceError, match="journal that was not replayed"):
        async with LocalVm(tmp_path).capture():
            pass


def _outside(allocated: Extents) -> np.ndarray:
    mask = np.ones(CAPACITY, dtype=np.bool_)
    for offset, length in allocated:
        mask[offset : offset + length] = False
    return mask
