"""A running lab vCenter, VMs in it, and a reader that takes the bytes from the lab's own disks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pipeline.buffers import BufferPool
from pipeline.units import MiB
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.lab.campaigns.disks import LabOpenDisk, open_disk
from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter.server import LabVcenter
from vadpipe.vddk.access import DiskAccess
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.journal.intents import Journal

CAPACITY = 4 * MiB


class LabReader:
    """Reads the VMDK chains in the lab's datastores.

    `opened`: what was asked for; `closed`: how many snapshots the lab had been told to remove at each closing.
    """

    def __init__(self, lab: LabVcenter) -> None:
        self.lab = lab
        self.opened: list[DiskAccess] = []
        self.closed: list[int] = []

    @asynccontextmanager
    async def open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[LabOpenDisk]:
        self.opened.append(access)
        datastore, _, path = access.path.removeprefix("[").partition("] ")
        try:
            with open_disk(self.lab.datastore(datastore) / path) as disk:
                yield disk
        finally:
            self.closed.append(self.lab.calls.get("RemoveSnapshot_Task", 0))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabVcenter]:
    with LabVcenter(tmp_path / "lab", task_s=0.02) as running:
        yield running


@pytest.fixture
def vcenter(lab: LabVcenter) -> Vcenter:
    return settings_of(lab, patience_s=1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def reader(lab: LabVcenter) -> LabReader:
    return LabReader(lab)


@pytest.fixture
def reader_of() -> Callable[[LabVcenter], LabReader]:
    """A reader for a lab that a test made itself."""
    return LabReader


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Waits until something that threads do has come true."""

    async def wait(is_so: Callable[[], bool]) -> None:
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.001)

    return wait


@pytest.fixture
def add_vm(lab: LabVcenter) -> Callable[..., str]:
    """Registers a VM with small disks; returns its moref."""

    def add(name: str = "web01", *, disks: int = 1, **settings: object) -> str:
        directory = lab.datastore("datastore1") / name.replace("/", "_")
        made = [LabDisk.create(directory, f"disk{number}", CAPACITY) for number in range(disks)]
        return lab.register_vm(directory, name, made, **settings)

    return add


@pytest.fixture
def wait_for_call() -> Callable[[LabVcenter, str], Awaitable[None]]:
    """Waits until the lab was called by this method; it has threads, so there is no event of trio's."""

    async def wait(lab: LabVcenter, method: str) -> None:
        while not lab.calls.get(method):  # noqa: ASYNC110
            await trio.sleep(0.001)

    return wait
