"""A thousand VMs: their facts in one pass, for less than five CPU-seconds of this process.

The lab runs in a process of its own, so that only the client's work is counted.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.secrets import Secret
from vadpipe.preflight import gather
from vadpipe.preflight.facts import JobFacts
from vadpipe.preflight.rules import RULES
from vadpipe.rules import judge
from vadpipe.vsphere.api.session import Vcenter

COUNT = 1000
ROOT = Path(__file__).parents[3]
LAB = '''
import sys
from pathlib import Path

from vadpipe.lab.disks import LabDisk
from vadpipe.lab.vcenter import LabVcenter
from vadpipe.lab.vcenter.state import vm_properties
from vadpipe.lab.vcenter.service import Service
from vadpipe.lab.vcenter.state.inventory import GuestVolume, Inventory, VmTraits

made, make = {}, vm_properties.config


def config_once(inventory, vm, snapshot=None):
    """Nothing changes here, so the lab need not make a configuration anew for every path of it."""
    if vm.moref not in made:
        made[vm.moref] = make(inventory, vm)
    return made[vm.moref]


vm_properties.config = config_once
save, write = Inventory.save, Service._write_vddk_conf
Inventory.save = Service._write_vddk_conf = lambda self: None  # once at the end, not once per VM
with LabVcenter(Path(sys.argv[1]), page_size=500) as lab:
    datastore = lab.datastore("datastore1")
    disks = [LabDisk.create(datastore / "disks", f"disk{number}", 1 << 20) for number in range(2)]
    # As many devices as a VM usually has.
    traits = VmTraits(volumes=[GuestVolume("C:\\\\", 1 << 40, 1 << 39, [2000])], cdroms=12)
    for number in range(int(sys.argv[2])):
        name = f"vm{number:04}"
        lab.register_vm(datastore / name, name, disks, change_tracking=True, traits=traits)
    Inventory.save, Service._write_vddk_conf = save, write
    print(lab.port, lab.thumbprint, *lab._inventory.vms, flush=True)
    sys.stdin.read()
'''


@pytest.fixture
def crowd(tmp_path):
    """Settings for a lab with many VMs, and their morefs."""
    command = [sys.executable, "-c", LAB, str(tmp_path), str(COUNT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        port, thumbprint, *morefs = process.stdout.readline().split()
        yield (
            Vcenter("127.0.0.1", "backup", Secret.from_text("lab"), thumbprint=thumbprint, port=int(port)),
            morefs,
        )
        process.communicate()  # the end of its input ends it


@pytest.mark.slow
async def test_a_thousand_vms_cost_less_than_five_cpu_seconds(crowd, record_property):
    vcenter, morefs = crowd
    assert len(morefs) == COUNT
    async with vcenter.connect() as session:
        begun = time.process_time()
        gathered = await gather(session, morefs)
        gathering_s = time.process_time() - begun
        reports = [judge(RULES, gathered.case(moref, JobFacts())) for moref in morefs]
        judging_s = time.process_time() - begun - gathering_s
    record_property("gathering_cpu_s", round(gathering_s, 2))
    print(f"gathering {gathering_s:.2f} CPU-s, judging {judging_s:.2f} CPU-s")
    assert set(gathered.vms) == set(morefs)
    assert {len(vm.disks) for vm in gathered.vms.values()} == {2}
    assert len(reports) == COUNT
    assert all(vm.missing_privileges == frozenset() for vm in gathered.vms.values())
    assert gathering_s + judging_s < 5
