"""A case in which every condition holds, and how to change it."""

from dataclasses import replace

from pipeline.units import GiB
from vadpipe.preflight.facts import (
    Case,
    DatastoreFacts,
    HostFacts,
    JobFacts,
    ProxyFacts,
    ServerFacts,
    VddkFacts,
    VmFacts,
    Volume,
)
from vadpipe.vsphere.inventory.hardware import VmController, VmDisk
from vadpipe.vsphere.snapshot.tree import SnapshotNode

SERVICES = {
    "VSS": "manual",
    "vmvss": "manual",
    "swprv": "manual",
    "EventSystem": "automatic",
    "COMSysApp": "manual",
}
DISKS = (
    VmDisk("scsi0:0", 2000, "Hard disk 1", "[gold] web01/web01.vmdk", 100 * GiB, "c/1"),
    VmDisk("scsi0:1", 2001, "Hard disk 2", "[gold] web01/web01_1.vmdk", 200 * GiB, "c/2"),
)
CONTROLLER = VmController("scsi0", "ParaVirtualSCSIController", "noSharing", 3)

VM = VmFacts(
    moref="vm-1",
    name="web01",
    guest_id="windows2019srv_64Guest",
    reported_guest_id="windows2019srv_64Guest",
    guest_build=(17763, 5122),
    hardware_version=19,
    enable_uuid=True,
    encrypted=False,
    host="host-1",
    change_tracking=True,
    change_tracking_supported=True,
    disks=DISKS,
    controllers=(CONTROLLER,),
    boot_bus="scsi",
    tools_running=True,
    tools_version=12448,
    tools_status="guestToolsCurrent",
    heartbeat="green",
    volumes=(
        Volume("C:\\", 99 * GiB, 40 * GiB, frozenset({2000})),
        Volume("E:\\", 199 * GiB, 90 * GiB, frozenset({2001})),
    ),
    services=SERVICES,
    missing_privileges=frozenset(),
)
HOST = HostFacts("host-1", "esxi01", (8, 0, 3), "24022510", unresolved="", closed_ports={443: "", 902: ""})
HEALTHY = Case(
    vm=VM,
    server=ServerFacts("vc01", True, (8, 0, 3), (8, 0, 3, 0), clock_ahead_s=0.4),
    job=JobFacts(vddk=VddkFacts((8, 0, 3))),
    host=HOST,
    hosts=(HOST,),
    datastores=(DatastoreFacts("datastore-1", "gold", free=900 * GiB, hosts=("host-1",)),),
    proxy=ProxyFacts(False),
)


def snapshot(name, created=None):
    return SnapshotNode("snapshot-1", name, "", False, None, None, created=created)


def vm(case=HEALTHY, **changes):
    return replace(case, vm=replace(case.vm, **changes))


def job(case=HEALTHY, **changes):
    return replace(case, job=replace(case.job, **changes))


def server(case=HEALTHY, **changes):
    return replace(case, server=replace(case.server, **changes))


def host(case=HEALTHY, **changes):
    """The host that the VM runs on."""
    changed = replace(HOST, **changes)
    return replace(case, host=changed, hosts=(changed,))


def datastore(case=HEALTHY, **changes):
    return replace(case, datastores=(replace(case.datastores[0], **changes),))


def last_disk(case=HEALTHY, **changes):
    *others, last = case.vm.disks
    return vm(case, disks=(*others, replace(last, **changes)))


def transports(*names, case=HEALTHY):
    return job(case, vddk=replace(case.job.vddk, transports=names))


def hotadd(**changes):
    """A job that may only hot-add, and its proxy, a VM of the same server."""
    proxy = replace(VM, moref="vm-9", name="proxy01", controllers=(CONTROLLER,), **changes)
    return replace(transports("hotadd"), proxy=ProxyFacts(True, proxy))
