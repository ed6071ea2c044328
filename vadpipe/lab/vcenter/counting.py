"""What hosts and datastores of a lab bear at a time: open disks, NFC buffers, snapshots; and the most of each.

A real host refuses a connection too many, or lets it wait; this one counts it, and a test compares.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.buffers import BufferPool
from vadpipe.fleet.limits import SESSION_BYTES
from vadpipe.fleet.values import connections, nfc_bytes, snapshots, streams
from vadpipe.vddk.access import DiskAccess

from .server import LabVcenter


@dataclass
class CountingReader:
    """A reader of disks around another one. `most`: of each resource, by its name in `vadpipe.fleet.values`.

    A disk counts as a stream of its datastore from its opening to its closing, also while it is not read.
    """

    reader: Any
    lab: LabVcenter
    now: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @asynccontextmanager
    async def open(self, access: DiskAccess, pool: BufferPool) -> AsyncIterator[Any]:
        used = self._used(access)
        async with self.reader.open(access, pool) as disk:
            self._count(used, 1)
            try:
                yield disk
            finally:
                self._count(used, -1)

    def _used(self, access: DiskAccess) -> dict[str, int]:
        [vm] = [vm for vm in self.lab.vms if vm.moref == access.vm]
        host = self.lab.hosts[vm.host].name
        datastore = access.path.removeprefix("[").partition("]")[0]
        return {connections(host): 1, nfc_bytes(host): SESSION_BYTES, streams(datastore): 1}

    def _count(self, used: dict[str, int], sign: int) -> None:
        with self._lock:
            for name, amount in used.items():
                self.now[name] += sign * amount
            # Snapshots stand on the home datastore of their VM.
            standing: Counter[str] = Counter()
            for vm in self.lab.vms:
                standing[snapshots(vm.datastore)] += bool(vm.snapshots)
            for name, amount in (self.now | standing).items():
                self.most[name] = max(self.most[name], amount)
