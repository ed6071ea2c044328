"""A VM whose disks are read from NBD servers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from pipeline import BufferPool, ConfigError, MachineId
from pipeline.buffers import DEFAULT_POOL
from vadpipe.nbd import Bitmaps, Nbd, NbdDisk


@dataclass(frozen=True)
class NbdCapture:
    """Open exports. Whoever runs the servers makes sure that nobody writes to them meanwhile."""

    machine: MachineId
    disks: Sequence[NbdDisk]
    configuration: Mapping[str, object]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    quiescing_asked: str = "none"
    left_out: Sequence[str] = ()
    attention: Sequence[str] = ()
    remarks: Sequence[str] = ()
    preflight: None = None
    snapshots_left: None = None

    async def confirm(self) -> None:
        """Nothing to do: NBD cannot tell whether an export was changed."""


@dataclass(frozen=True)
class NbdVm:
    """NBD exports as the disks of a VM, for the `machine` of a job.

    Args:
        name: Names the VM in the repository; the same name continues its restore points.
        disks: The settings of each disk, by a name that stays the same from run to run.
        pool_size: Bytes of the buffers that its disks are read into.
        bitmaps: QEMU's dirty bitmaps, which tell what changed since the previous point; None: every disk is read in
            full each time.

    Raises:
        ConfigError: There is no disk.
    """

    name: str
    disks: Mapping[str, Nbd]
    pool_size: int = DEFAULT_POOL
    bitmaps: Bitmaps | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.disks:
            raise ConfigError("An NbdVm needs a name and at least one disk.", remedy="Give both.")

    def effects(self) -> Sequence[str]:
        """Reading changes nothing."""
        return ()

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[NbdCapture]:
        """Connect to all exports, and disconnect at the end. Raises NbdError."""
        pool = BufferPool(self.pool_size)
        async with AsyncExitStack() as stack:
            disks = [
                await stack.enter_async_context(settings.open(pool=pool, key=key, bitmaps=self.bitmaps))
                for key, settings in self.disks.items()
            ]
            exports = {key: {"server": nbd.server, "export": nbd.export} for key, nbd in self.disks.items()}
            known = uuid.uuid5(uuid.NAMESPACE_URL, f"nbd:{self.name}")
            yield NbdCapture(MachineId(str(known), self.name), disks, {"exports": exports})
