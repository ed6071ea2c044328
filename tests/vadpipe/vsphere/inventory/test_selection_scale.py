"""A thousand VMs: selected in one look at the inventory, for less than two CPU-seconds of this process.

The lab runs in a process of its own, so that only the client's work is counted.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.secrets import Secret
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import find_vms
from vadpipe.vsphere.inventory.selection import SelectVms, select_vms

COUNT = 1000
ROOT = Path(__file__).parents[4]
LAB = """
import sys
from pathlib import Path

from vadpipe.lab.vcenter import LabVcenter
from vadpipe.lab.vcenter.service import Service
from vadpipe.lab.vcenter.state.inventory import Inventory

save, write = Inventory.save, Service._write_vddk_conf
Inventory.save = Service._write_vddk_conf = lambda self: None  # once at the end, not once per VM
with LabVcenter(Path(sys.argv[1]), page_size=500) as lab:
    datastore = lab.datastore("datastore1")
    daily = lab.tags.create("backup", "daily")
    lab.tags._save = lambda: None
    for number in range(int(sys.argv[2])):
        name = f"vm{number:04}"
        moref = lab.register_vm(datastore / name, name, [], folder=f"Folder{number % 50}/Below")
        lab.tags.attach(daily, moref)
    Inventory.save, Service._write_vddk_conf = save, write
    print(lab.port, lab.thumbprint, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Vcenter]:
    """Settings for a lab with many VMs in many folders."""
    command = [sys.executable, "-c", LAB, str(tmp_path), str(COUNT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        port, thumbprint = process.stdout.readline().split()
        yield Vcenter("127.0.0.1", "backup", Secret.from_text("lab"), thumbprint=thumbprint, port=int(port))
        process.communicate()  # the end of its input ends it


@pytest.mark.slow
async def test_a_thousand_vms_cost_less_than_two_cpu_seconds(crowd):
    async with crowd.connect() as session:
        begun = time.process_time()
        every = SelectVms("vm*", inside="/Datacenter/vm", tag="backup/daily", exclude=["*7", "/*/Folder3/*"])
        found = await select_vms(session, [every])
        selecting_s = time.process_time() - begun
        begun = time.process_time()
        again = await find_vms(session, found)
        finding_s = time.process_time() - begun
    print(f"selecting {selecting_s:.2f} CPU-s, finding again {finding_s:.2f} CPU-s")
    assert len(found) == COUNT - COUNT // 10 - 20  # none of Folder3 ends in 7
    assert again == found
    assert selecting_s < 2
