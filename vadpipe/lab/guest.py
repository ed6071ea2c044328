"""A Windows-like VM for the lab: two disks with real content, and a guest that works on them.

Each disk has a raw working image beside it (`guest/<disk>.raw`, sparse). The guest's file system is changed there
with ordinary tools; then the clusters that differ are written through the LabDisk. So its redo logs and its
change tracking see exactly what a guest would have written, whatever the tools did.

The system disk is one NTFS volume without a partition table (as on a removable disk), so that any tool for such
images reads the whole disk. The data disk is what a database server keeps there: a tar archive, and
a file of 4 KiB pages that is written at random.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID, uuid5

from pipeline.units import CLUSTER, GiB, KiB, MiB, format_size

from .disks import Fork, LabDisk
from .guest_content import Database, fill_data_image, log_file, machine_files
from .guest_volumes import FileSystem, best_file_system, volume_in
from .vmdk_files import LabDiskError, opened, pieces_of, replace_text, write_at

GUEST_OS = "windows2019srv-64"

# What VSS writers change in a quiesced image: a file on the system disk, the first pages of the database.
VSS_FILE = "vss-writers.log"
_VSS_FILE_SIZE = 8 * KiB
_VSS_PAGES = 4

# Sizes of the files that the guest writes.
_SMALLEST, _LARGEST = 64 * KiB, MiB

_BIOS_UUIDS = UUID("1c4f7ab0-2f3d-4c39-9d6e-6f0d1f3f7b52")  # a name space of our own for uuid5


@dataclass
class _Knowledge:
    """What a guest keeps about itself in `guest/<name>.json`."""

    seed: int
    filesystem: FileSystem
    files: list[str]
    database: Database


class Guest:
    """A built VM; `disks`: system disk, data disk. Its methods may be called from any thread."""

    def __init__(self, directory: Path, name: str, disks: list[LabDisk], knowledge: _Knowledge) -> None:
        self.directory = directory
        self.name = name
        self.disks = disks
        self._knowledge = knowledge
        self._lock = threading.Lock()

    @classmethod
    def load(cls, directory: Path, name: str = "web01") -> Guest:
        """A guest built before. Raises LabDiskError."""
        path = _knowledge_path(directory, name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            knowledge = _Knowledge(**{**values, "database": Database(**values["database"])})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise LabDiskError(
                f"{path} does not describe a guest of the lab ({exc}).", remedy="Build the lab's VM again."
            ) from exc
        disks = [LabDisk.load(directory, disk) for disk in _disk_names(name)]
        return cls(directory, name, disks, knowledge)

    @property
    def filesystem(self) -> FileSystem:
        """Of the system disk: what this machine had tools for when the guest was built."""
        return self._knowledge.filesystem

    @property
    def files(self) -> list[str]:
        """Names of the files on the system disk, sorted."""
        return sorted(self._knowledge.files)

    def image_of(self, disk: LabDisk) -> Path:
        """The raw image in which the guest works on this disk: what the running VM sees."""
        return self._raw(disk)

    def work(self, seed: int, amount: int = 24 * MiB) -> list[str]:
        """The guest works: writes about `amount` bytes through the running VM's disks; says what it did.

        A third each goes into new log files, into rewritten files, and into single pages of the database at
        random; one file is removed. The same seed on the same state does the same.
        """
        with self._lock:
            rng = random.Random(seed)
            done = [*self._write_files(rng, seed, amount // 3), self._write_pages(rng, amount // 3)]
            for disk in self.disks:
                disk.apply_raw_difference(self._raw(disk))
            self._save()
            return done

    def vss_writers(self, forks: Sequence[Fork]) -> None:
        """What VSS writers change in the quiesced images after the freeze; the running VM does not see it.

        `forks`: of the disks, in their order, each with a redo log for this. The file system of the image
        stays whole: the change is made in the working image, carried over and taken back.
        """
        with self._lock:
            rng = random.Random(f"{self._knowledge.seed} {forks[0].frozen.name}")
            system, data = (self._raw(disk) for disk in self.disks)
            volume_in(system, self.filesystem).put(VSS_FILE, log_file(rng, _VSS_FILE_SIZE))
            with opened(data, os.O_RDWR) as image:
                pages = range(min(_VSS_PAGES, self._knowledge.database.pages))
                self._knowledge.database.write(image, rng, pages)
            for disk, fork in zip(self.disks, forks, strict=True):
                self._carry_over(disk, fork)

    def write_vmx(self) -> None:
        """Write `<name>.vmx` as a running VM's: it names the leaves, so it is due after a fork or a merge."""
        bios = uuid5(_BIOS_UUIDS, f"{self.name} {self._knowledge.seed}").bytes
        digits = [f"{byte:02x}" for byte in (0x56, 0x4D, *bios[2:])]  # "VM", as in VMware's own
        values = {
            ".encoding": "UTF-8",
            "config.version": "8",
            "virtualHW.version": "19",
            "displayName": self.name,
            "guestOS": GUEST_OS,
            "uuid.bios": f"{' '.join(digits[:8])}-{' '.join(digits[8:])}",
            "numvcpus": "2",
            "memSize": "4096",
            "firmware": "bios",
            "disk.EnableUUID": "TRUE",
            "scsi0.present": "TRUE",
            "scsi0.virtualDev": "lsisas1068",
        }
        if any(disk.change_id for disk in self.disks):
            values["ctkEnabled"] = "TRUE"
        for unit, disk in enumerate(self.disks):
            values[f"scsi0:{unit}.present"] = "TRUE"
            values[f"scsi0:{unit}.deviceType"] = "scsi-hardDisk"
            values[f"scsi0:{unit}.fileName"] = disk.leaf.name
            if disk.change_id:
                values[f"scsi0:{unit}.ctkEnabled"] = "TRUE"
        text = "".join(f'{key} = "{value}"\n' for key, value in values.items())
        replace_text(self.directory / f"{self.name}.vmx", text)

    def _write_files(self, rng: random.Random, seed: int, budget: int) -> list[str]:
        """Up to `budget` bytes of new files, as many of rewritten ones, one removed."""
        volume = volume_in(self._raw(self.disks[0]), self.filesystem)
        old = self.files
        rng.shuffle(old)
        removed = old.pop()
        volume.remove(removed)
        done, written = [f"removed {removed}"], list[str]()
        new = [f"orders-{seed}-{number:03d}.log" for number in range(-(-budget // _SMALLEST))]
        for verb, names in (("wrote", new), ("rewrote", old)):
            for name, size in zip(names, _sizes(rng, budget), strict=False):
                volume.put(name, log_file(rng, size))
                written.append(name)
                done.append(f"{verb} {name} ({format_size(size)})")
        kept = set(self.files) - {removed}
        self._knowledge.files = sorted(kept | {*written})
        return done

    def _write_pages(self, rng: random.Random, budget: int) -> str:
        """Up to `budget` bytes of database pages."""
        database, disk = self._knowledge.database, self.disks[1]
        pages = sorted(rng.sample(range(database.pages), min(budget // CLUSTER, database.pages)))
        with opened(self._raw(disk), os.O_RDWR) as image:
            database.write(image, rng, pages)
        return f"wrote {len(pages)} of {database.pages} pages of 4 KiB of the database on {disk.name}"

    def _carry_over(self, disk: LabDisk, fork: Fork) -> None:
        """Move what differs between a working image and the running disk into the fork's quiesced image."""
        raw = self._raw(disk)
        changed = disk.differences(raw)
        with opened(raw, os.O_RDWR) as image:
            for offset, length in pieces_of(changed):
                disk.write_frozen(fork.frozen, offset, os.pread(image, length, offset))
                write_at(image, offset, disk.read(offset, length))

    def _raw(self, disk: LabDisk) -> Path:
        return _image_path(self.directory, disk.name)

    def _save(self) -> None:
        text = json.dumps(asdict(self._knowledge), indent=1)
        replace_text(_knowledge_path(self.directory, self.name), text + "\n")


def build_windows_guest(
    directory: Path,
    name: str = "web01",
    *,
    system_capacity: int = 8 * GiB,
    data_capacity: int = 2 * GiB,
    fill: int = 300 * MiB,
    seed: int = 1,
) -> Guest:
    """Build a VM in `directory`: two disks, `.vmx`, working images in `guest/`.

    About `fill` bytes of the machine's own files go onto the system disk, a quarter of that into the archive and
    another quarter into the database of the data disk. The same seed on the same machine chooses the same. Where
    there are no tools for NTFS it is ext4, else plain bytes; `Guest.filesystem` says so. Raises LabDiskError.
    """
    files = machine_files(fill, seed)
    if not files:
        raise LabDiskError(f"No file of this machine fits into {format_size(fill)}.", remedy="Raise `fill`.")
    system, data = _disk_names(name)
    filesystem = best_file_system()
    _new_image(_image_path(directory, system), system_capacity)
    volume_in(_image_path(directory, system), filesystem).make(files)
    _new_image(_image_path(directory, data), data_capacity)
    database = fill_data_image(_image_path(directory, data), files, fill // 4, seed)
    disks = [
        LabDisk.create(directory, system, system_capacity),
        LabDisk.create(directory, data, data_capacity, provisioning="flat"),
    ]
    for disk in disks:
        disk.import_raw(_image_path(directory, disk.name))
    guest = Guest(directory, name, disks, _Knowledge(seed, filesystem, sorted(files), database))
    guest._save()
    guest.write_vmx()
    return guest


def _sizes(rng: random.Random, budget: int) -> Iterator[int]:
    """Sizes of files that add up to `budget`."""
    while budget:
        size = min(budget, rng.randrange(_SMALLEST, _LARGEST))
        yield size
        budget -= size


def _disk_names(name: str) -> tuple[str, str]:
    """As vSphere names them: the first disk as the VM, the others numbered."""
    return name, f"{name}_1"


def _image_path(directory: Path, disk: str) -> Path:
    return directory / "guest" / f"{disk}.raw"


def _knowledge_path(directory: Path, name: str) -> Path:
    return directory / "guest" / f"{name}.json"


def _new_image(path: Path, capacity: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as image:
        os.truncate(image, capacity)
