"""What the rules read: plain frozen facts about a VM, its surroundings, this machine and the job.

None always means "not known": a property that may not be read, that this server's version does not have, or that
cannot be found out. Rules report that instead of guessing. Sizes are bytes, versions tuples of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vadpipe.exclude import matching_keys
from vadpipe.vsphere.inventory.hardware import VmController, VmDisk
from vadpipe.vsphere.snapshot.tree import SnapshotNode

from .guests import GuestOs, guest_os

Version = tuple[int, ...]

EX_SINCE: Version = (6, 5)  # the API version that has CreateSnapshotEx_Task
TOOLS_UNMANAGED = 0x7FFFFFFF  # open-vm-tools: the guest's own package, its version is not in this field
_TOOLS_VERSIONLESS = (TOOLS_UNMANAGED, 0xFFFFFFFF)  # the second: not available
_TOOLS_BITS = 5  # vm_tools_version.h of open-vm-tools: (major << 10) + (minor << 5) + base


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Volume:
    """A file system of the guest, as VMware Tools report it. `disks`: device keys, None where Tools do not tell."""

    path: str
    capacity: int
    free: int
    disks: frozenset[int] | None


@dataclass(frozen=True)
class VmFacts:
    """A VM.

    Args:
        readable: The server has its configuration.
        agent: vSphere manages it itself, as the VMs of vCLS.
        guest_build: Of the running Windows, e.g. (20348, 2582).
        methods_disabled: API calls that the server refuses for it now.
        services: Start modes of guest services by name, which vSphere itself does not report.
        missing_privileges: Privileges that a job may need and the account lacks.
    """

    moref: str
    name: str
    readable: bool = True
    template: bool = False
    agent: bool = False
    guest_id: str = ""
    reported_guest_id: str | None = None
    guest_build: Version | None = None
    hardware_version: int | None = None
    enable_uuid: bool | None = None
    encrypted: bool | None = None
    power: str = "poweredOn"
    connection: str = "connected"
    host: str | None = None
    question: str = ""
    methods_disabled: frozenset[str] = frozenset()
    tasks: Sequence[str] = ()
    snapshots_supported: bool | None = True
    snapshots_disabled: bool = False
    snapshots_locked: bool = False
    max_snapshots: int | None = None
    own_snapshots: Sequence[SnapshotNode] = ()
    foreign_snapshots: Sequence[SnapshotNode] = ()
    consolidation_needed: bool = False
    change_tracking: bool | None = None
    change_tracking_supported: bool | None = None
    disks: Sequence[VmDisk] = ()
    controllers: Sequence[VmController] = ()
    passthrough: Sequence[str] = ()
    boot_bus: str | None = None
    tools_running: bool | None = None
    tools_version: int | None = None
    tools_status: str | None = None
    heartbeat: str | None = None
    volumes: Sequence[Volume] | None = None
    services: Mapping[str, str] | None = None
    missing_privileges: frozenset[str] | None = None

    @property
    def guest(self) -> GuestOs | None:
        """Its row in the table of guests; None: a Windows that the table does not have."""
        return guest_os(self.guest_id)

    @property
    def snapshots(self) -> int:
        return len(self.own_snapshots) + len(self.foreign_snapshots)

    @property
    def tools_release(self) -> Version | None:
        """Version of VMware Tools as (major, minor, base); None: not installed, unmanaged, or not known."""
        if not self.tools_version or self.tools_version in _TOOLS_VERSIONLESS:
            return None
        mask = (1 << _TOOLS_BITS) - 1
        number = self.tools_version
        return number >> 2 * _TOOLS_BITS, number >> _TOOLS_BITS & mask, number & mask


@dataclass(frozen=True)
class HostFacts:
    """An ESXi host.

    Args:
        moref: Its reference.
        name: Its name in the inventory.
        address: Where it is reached: by its name through a vCenter, as configured when it is the server itself.
        unresolved: Why the address has no IP address; empty: it has one; None: not tried.
        closed_ports: Why a port cannot be reached, by port. A port that was reached has an empty reason; one
            that was not tried is absent.
    """

    moref: str
    name: str
    version: Version | None = None
    build: str = ""
    connection: str = "connected"
    maintenance: bool = False
    unresolved: str | None = None
    closed_ports: Mapping[int, str] = field(default_factory=dict)
    address: str = ""

    @property
    def reached_at(self) -> str:
        return self.address or self.name


@dataclass(frozen=True)
class DatastoreFacts:
    """A datastore. `kind`: VMFS, NFS, vsan, VVOL... `hosts`: morefs of the hosts that mount it."""

    moref: str
    name: str
    kind: str = "VMFS"
    accessible: bool = True
    maintenance: str = "normal"
    free: int | None = None
    hosts: Sequence[str] = ()


@dataclass(frozen=True)
class ServerFacts:
    """The vCenter or ESXi host that we are logged in to.

    `clock_ahead_s`: how far its clock is ahead of ours, None: not known. `editions`: its licences' edition keys.
    """

    name: str
    is_vcenter: bool
    version: Version
    api_version: Version
    clock_ahead_s: float | None = None
    editions: Sequence[str] | None = None


@dataclass(frozen=True)
class VddkFacts:
    """The VDDK of the job. `version` None with an empty `problem`: found, but its file does not name a version.

    `transports`: in the order wanted; empty: what the library prefers.
    """

    version: Version | None
    problem: str = ""
    transports: Sequence[str] = ()


@dataclass(frozen=True)
class ProxyFacts:
    """The machine that this program runs on. `vm`: itself as a VM of the same server, None: not one, not known."""

    virtual: bool | None
    vm: VmFacts | None = None


@dataclass(frozen=True)
class JobFacts:
    """What the job requests. `quiescing`: 'application', 'file-system' or 'none'.

    `may_degrade`: less quiescing than requested is a warning, not an error. `backup_type`: of VSS.
    `vddk` None: the disks are not read through VDDK. `exclude`: patterns of disks that it leaves out on purpose.
    """

    quiescing: str = "application"
    may_degrade: bool = False
    backup_type: str = "copy"
    enable_change_tracking: bool = False
    vddk: VddkFacts | None = None
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    """All facts about one job. `host`: where its VM runs. `hosts`: all that see its datastores.

    A rule about reading a disk looks at `disks`; one about the snapshot of the VM, which no disk can be left out
    of, looks at `vm.disks`.
    """

    vm: VmFacts
    server: ServerFacts
    job: JobFacts
    host: HostFacts | None = None
    hosts: Sequence[HostFacts] = ()
    datastores: Sequence[DatastoreFacts] = ()
    proxy: ProxyFacts | None = None

    @property
    def disks(self) -> Sequence[VmDisk]:
        """The disks of the VM that the job does not exclude."""
        excluded = {key for pattern in self.job.exclude for key in matching_keys(self.vm.disks, pattern)}
        return [disk for disk in self.vm.disks if disk.key not in excluded]

    @property
    def quiesces(self) -> bool:
        return self.job.quiescing != "none"

    @property
    def application(self) -> bool:
        """The job requests application quiescing, and VMware Tools quiesce this guest through VSS writers."""
        guest = self.vm.guest
        return self.job.quiescing == "application" and guest is not None and guest.reaches == "application"

    @property
    def transports(self) -> Sequence[str]:
        return self.job.vddk.transports if self.job.vddk else ()

    def only(self, *transports: str) -> bool:
        """True when the job names its transports, and all are among these."""
        return bool(self.transports) and set(self.transports) <= set(transports)
