"""qemu-img as the witness, and small writers for the formats that it reads but does not write."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.extents import Extents
from pipeline.units import SPAN, KiB, MiB
from vadpipe.vmdk.local import LocalDisk

SECTOR = 512
DATABASE = '\n# The Disk Data Base\n#DDB\nddb.adapterType = "lsilogic"\n'


class Qemu:
    """qemu-img and qemu-io of this machine."""

    def img(self, *arguments: object) -> str:
        done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True)
        return done.stdout

    def io(self, path: Path, *commands: str) -> None:
        asked = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(["qemu-io", "-f", "vmdk", *asked, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert "fail" not in done.stdout, done.stdout

    def raw(self, path: Path) -> np.ndarray:
        """The bytes of a disk."""
        target = path.with_suffix(".raw")
        self.img("convert", "-f", "vmdk", "-O", "raw", path, target)
        return np.fromfile(target, dtype=np.uint8)

    def allocated(self, path: Path) -> Extents:
        """What the disk's tables hold as data."""
        entries = json.loads(self.img("map", "-f", "vmdk", "--output=json", path))
        return Extents.of((entry["start"], entry["length"]) for entry in entries if entry["data"])


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    missing = [tool for tool in ("qemu-img", "qemu-io") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]}, the witness for VMDK files, is not installed")
    return Qemu()


@pytest.fixture(scope="session")
def content() -> Callable[[int, int], np.ndarray]:
    """A disk's bytes: random pieces of odd sizes, explicit zeros and holes."""

    def make(capacity: int, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        disk = np.zeros(capacity, dtype=np.uint8)
        for start in random.integers(0, capacity, size=12).tolist():
            length = min(int(random.integers(1, 400 * KiB)), capacity - start)
            disk[start : start + length] = random.integers(0, 256, size=length, dtype=np.uint8)
        disk[-700:] = 0xA5
        return disk

    return make


@pytest.fixture(scope="session")
def read_all() -> Callable:
    """Read a whole disk span by span, with every byte wanted."""

    async def read(disk: LocalDisk) -> np.ndarray:
        image = np.empty(disk.capacity, dtype=np.uint8)
        for offset in range(0, disk.capacity, SPAN):
            length = min(SPAN, disk.capacity - offset)
            buffer = await disk.pool.acquire()
            buffer.array.fill(0xEE)
            await disk.read(buffer, offset, Extents.whole(length, offset))
            image[offset : offset + length] = buffer.array[:length]
            buffer.release()
        return image

    return read


@pytest.fixture(scope="session")
def write_descriptor() -> Callable[..., None]:
    def write(
        path: Path,
        extents: str,
        *,
        create_type: str = "vmfs",
        content_id: str = "11111111",
        parent_id: str = "ffffffff",
        hint: str = "",
    ) -> None:
        lines = ["# Disk DescriptorFile", "version=1", f"CID={content_id}", f"parentCID={parent_id}"]
        lines += [f'createType="{create_type}"', *([f'parentFileNameHint="{hint}"'] if hint else []), extents]
        path.write_text("\n".join(lines) + DATABASE)

    return write


def sectors(length: int) -> int:
    return -(-length // SECTOR)


@pytest.fixture(scope="session")
def write_cowd() -> Callable[[Path, int, Mapping[int, bytes]], None]:
    """A COWD file of `capacity` sectors with the given sectors, appended in the given order."""

    def write(path: Path, capacity: int, held: Mapping[int, bytes]) -> None:
        tables = -(-capacity // 4096)
        directory = np.zeros(sectors(tables * 4) * SECTOR // 4, dtype="<u4")
        body, free = [], 4 + len(directory) * 4 // SECTOR
        index: dict[int, np.ndarray] = {}
        for number in dict.fromkeys(sector // 4096 for sector in held):
            index[number], directory[number] = np.zeros(4096, dtype="<u4"), free
            body.append(index[number])
            free += 32
        for sector, data in held.items():
            index[sector // 4096][sector % 4096] = free
            body.append(data)
            free += 1
        header = struct.pack("<4sIIIIIII", b"COWD", 1, 3, capacity, 1, 4, tables, free)
        path.write_bytes(b"".join([header.ljust(2048, b"\0"), directory.tobytes(), *map(bytes, body)]))

    return write


@pytest.fixture(scope="session")
def write_se_sparse() -> Callable[..., None]:
    """An SE-sparse file: `held` are grains of 4 KiB, `zeroed` and `unmapped` grain numbers."""

    def write(
        path: Path,
        capacity: int,
        held: Mapping[int, bytes],
        zeroed: tuple[int, ...] = (),
        unmapped: tuple[int, ...] = (),
        replay: int = 0,
    ) -> None:
        count = -(-capacity // (4096 * 8))
        directory = np.zeros(sectors(count * 8) * SECTOR // 8, dtype="<u8")
        entries = {
            number: 0x3 << 60 | (place & 0xFFF) << 48 | place >> 12 for place, number in enumerate(held)
        }
        entries |= dict.fromkeys(zeroed, 0x2 << 60) | dict.fromkeys(unmapped, 0x1 << 60)
        used = list(dict.fromkeys(number // 4096 for number in entries))
        tables = np.zeros((len(used), 4096), dtype="<u8")
        for number, entry in entries.items():
            tables[used.index(number // 4096), number % 4096] = entry
        for place, number in enumerate(used):
            directory[number] = 0x1000_0000 << 32 | place
        where, area = 8 + len(directory) * 8 // SECTOR, tables.nbytes // SECTOR
        fields = [0xCAFEBABE, 0x200000001, capacity, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 1, 3, 1]
        fields += [8, len(directory) * 8 // SECTOR, where, area, 4, 1, 5, 1, where + area, len(held) * 8]
        header = struct.pack("<26Q", *fields).ljust(SECTOR, b"\0")
        volatile = struct.pack("<4Q", 0xCAFECAFE, 0, 0, replay).ljust(SECTOR, b"\0")
        front = (header + volatile).ljust(8 * SECTOR, b"\0")
        path.write_bytes(b"".join([front, directory.tobytes(), tables.tobytes(), *held.values()]))

    return write


@pytest.fixture(scope="session")
def small_sparse(qemu: Qemu, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a monolithicSparse file of 1 MiB, whose last bytes are data."""
    path = tmp_path_factory.mktemp("small") / "small.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", path, MiB)
    qemu.io(path, "write -P 7 960k 64k", "write -P 9 100k 64k")
    return path.read_bytes()
