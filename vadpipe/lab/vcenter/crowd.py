"""`python -m vadpipe.lab.vcenter.crowd ROOT COUNT`: a lab with many VMs, in a process of its own.

It prints its port, its thumbprint and the morefs of the VMs, and serves until standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from pyVmomi import vim

from pipeline.secrets import Secret
from vadpipe.lab.disks import LabDisk
from vadpipe.vsphere.api.session import Vcenter

from .server import LabVcenter
from .service import Service
from .state import vm_properties
from .state.inventory import GuestVolume, Inventory, SnapshotState, VmState, VmTraits


@contextmanager
def crowd(root: Path, count: int) -> Iterator[tuple[Vcenter, Sequence[str]]]:
    """A process that serves `count` VMs. The value: settings for it, and the morefs of the VMs."""
    command = [sys.executable, "-m", __name__, str(root), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, thumbprint, *morefs = process.stdout.readline().split()
        password = Secret.from_text("lab")
        yield Vcenter("127.0.0.1", "backup", password, thumbprint=thumbprint, port=int(port)), morefs
        process.communicate()  # the end of its input ends it


def _serve(root: Path, count: int) -> None:
    made: dict[str, vim.vm.ConfigInfo] = {}
    make = vm_properties.config

    def made_once(
        inventory: Inventory, vm: VmState, snapshot: SnapshotState | None = None
    ) -> vim.vm.ConfigInfo:
        """Nothing changes here, so a configuration need not be made anew for every path of it."""
        if snapshot is not None:
            return make(inventory, vm, snapshot)
        if vm.moref not in made:
            made[vm.moref] = make(inventory, vm)
        return made[vm.moref]

    with LabVcenter(root, page_size=500) as lab, ExitStack() as replaced:
        replaced.enter_context(patch.object(vm_properties, "config", made_once))
        for kind, saving in ((Inventory, "save"), (Service, "_write_vddk_conf")):
            replaced.enter_context(patch.object(kind, saving))
        datastore = lab.datastore("datastore1")
        # As many devices as a VM usually has.
        traits = VmTraits(volumes=[GuestVolume("C:\\", 1 << 40, 1 << 39, [2000])], cdroms=12)
        for number in range(count):
            name = f"vm{number:04}"
            disks = [LabDisk.create(datastore / name, f"{name}_{disk}", 1 << 20) for disk in range(2)]
            lab.register_vm(datastore / name, name, disks, change_tracking=True, traits=traits)
        print(lab.port, lab.thumbprint, *lab._inventory.vms, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
