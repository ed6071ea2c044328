"""What the planning of a restore takes and gives, as values.

`Wanted` is what the user asks for, `Site` what the target has. Both are plain facts, so that `plan.plan_restore` is
a kernel: it asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from pyVmomi import vim

from pipeline.errors import ConfigError
from pipeline.units import GiB
from vadpipe.words import counted

Mode = Literal["copy", "replace"]
Provisioning = Literal["thin", "lazy", "eager"]
Outcome = Literal["carried", "mapped", "changed", "left out", "asked"]
NetworkKind = Literal["standard", "distributed", "opaque"]

# Source: vSphere configuration maximums: a virtual disk has at most 62 TiB.
LARGEST_DISK: Final = 62 * 1024 * GiB


class StoredDiskFacts(Protocol):
    """What planning needs to know of a disk of the point."""

    @property
    def key(self) -> str:
        """Its place on its controller, e.g. 'scsi0:0'."""
        ...

    @property
    def capacity(self) -> int: ...

    @property
    def data(self) -> int:
        """Bytes of it that are not zero; what a thin disk will take."""
        ...


@dataclass(frozen=True)
class PointDisk:
    """A disk of the point: key, capacity and bytes of data."""

    key: str
    capacity: int
    data: int


@dataclass(frozen=True)
class Wanted:
    """What the user asks for. A place is named by name, inventory path or managed object reference; empty: where
    the VM was.

    Args:
        mode: 'copy' makes another VM beside the original: new UUIDs, generated MAC addresses, NICs not connected.
            'replace' makes the lost VM again: its identities are kept where nobody else has them.
        name: Of the new VM; empty: that of the saved VM.
        folder: The folder of VMs.
        pool: A resource pool, or the cluster or host whose root pool is meant.
        host: The ESXi host to make it on; empty: any of its pool.
        datastore: Of the configuration, and of the disks that `datastores` does not name.
        datastores: The datastore of a disk, by its key.
        networks: The new network for an old one, by name, or for a NIC by its label; an empty name leaves the NIC
            out.
        provisioning: 'thin', 'lazy' or 'eager' for all disks; empty: as they were.
        power_on: Switch it on at the end.
        connect_nics: Whether NICs are connected at power-on; None: only in mode 'replace'.
        nvram: 'restore' uploads the saved firmware variables, 'fresh' lets the server make new ones.
        reservations: Keep reservations, limits and shares of CPU and memory; None: only in mode 'replace'.
        lower_hardware: Permits an older hardware version than the saved one where the target has no newer.
        drop_encryption: Permits restoring an encrypted VM without encryption, and without its virtual TPM.
        empty_disks: Make the disks that the backup does not hold, empty.
        keep: Patterns of extraConfig keys to carry that would be left out.
        drop: Patterns of extraConfig keys, and labels of devices, to leave out.
        change_tracking: Switch it on at the end; None: as it was.
        tags: Attach the saved tags.
        attributes: Set the saved custom attributes.
    """

    mode: Mode = "copy"
    name: str = ""
    folder: str = ""
    pool: str = ""
    host: str = ""
    datastore: str = ""
    datastores: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    provisioning: Provisioning | Literal[""] = ""
    power_on: bool = False
    connect_nics: bool | None = None
    nvram: Literal["restore", "fresh"] = "restore"
    reservations: bool | None = None
    lower_hardware: bool = False
    drop_encryption: bool = False
    empty_disks: bool = False
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    change_tracking: bool | None = None
    tags: bool = True
    attributes: bool = True


@dataclass(frozen=True)
class Place:
    """A folder, a resource pool or a host of the target.

    Args:
        moref: Its managed object reference.
        name: Its name as people write it.
        path: Its inventory path, e.g. '/DC/vm/Web'.
        datacenter: The inventory path of its datacenter, e.g. 'Folder/DC'; empty on an ESXi host.
        owner: Of a pool and of a host: the moref of its cluster (or of the host that stands alone).
        root: Of a pool: it is the root pool of `owner`.
        owner_name: The name of `owner`.
        taken: Of a folder: the names of the VMs and of other entries in it.
        accessible: False for a host that is not connected, or in maintenance mode.
    """

    moref: str
    name: str
    path: str
    datacenter: str = ""
    owner: str = ""
    root: bool = False
    owner_name: str = ""
    taken: frozenset[str] = frozenset()
    accessible: bool = True


@dataclass(frozen=True)
class Store:
    """A datastore of the target.

    Args:
        free: Bytes; None when unknown.
        hosts: Morefs of the hosts that mount it; None when unknown.
        largest_disk: Bytes of the largest disk that it takes.
    """

    moref: str
    name: str
    datacenter: str = ""
    kind: str = ""
    free: int | None = None
    accessible: bool = True
    hosts: frozenset[str] | None = None
    largest_disk: int = LARGEST_DISK


@dataclass(frozen=True)
class Net:
    """A network of the target. `ids`: 'switch_uuid' and 'portgroup_key' of a distributed one, 'opaque_id' and
    'opaque_type' of an opaque one; `hosts`: morefs of the hosts that have it, None when unknown."""

    moref: str
    name: str
    kind: NetworkKind = "standard"
    ids: Mapping[str, str] = field(default_factory=dict)
    datacenter: str = ""
    hosts: frozenset[str] | None = None


@dataclass(frozen=True)
class Site:
    """What the target has, as far as the account can see it.

    Args:
        server: Its name, for messages.
        is_vcenter: False for an ESXi host.
        api_version: E.g. '8.0.3.0'.
        hardware_versions: The ones that the target can make, e.g. 'vmx-19'; empty when unknown.
        guest_ids: The ones that the target knows; empty when unknown.
        folders: Folders of VMs.
        pools: Resource pools.
        hosts: ESXi hosts.
        datastores: Datastores.
        networks: Networks.
        uuids: Which VM has a BIOS or instance UUID, in lower case; the name of the VM by UUID.
        macs: Which VM has a MAC address, in lower case; the name of the VM by address.
        attributes: The names of its custom attributes for VMs; None when unknown.
        tags: Its tags as (category, name); None when unknown.
        storage_policies: The ids of its storage policies by name; None when unknown.
        key_providers: The ids of its key providers; None when unknown.
    """

    server: str
    is_vcenter: bool = True
    api_version: str = ""
    hardware_versions: Sequence[str] = ()
    guest_ids: frozenset[str] = frozenset()
    folders: Sequence[Place] = ()
    pools: Sequence[Place] = ()
    hosts: Sequence[Place] = ()
    datastores: Sequence[Store] = ()
    networks: Sequence[Net] = ()
    uuids: Mapping[str, str] = field(default_factory=dict)
    macs: Mapping[str, str] = field(default_factory=dict)
    attributes: frozenset[str] | None = None
    tags: frozenset[tuple[str, str]] | None = None
    storage_policies: Mapping[str, str] | None = None
    key_providers: frozenset[str] | None = None


@dataclass(frozen=True)
class Decision:
    """What happens to one fact of the saved VM.

    Args:
        subject: 'VM', 'extraConfig' or the label of a device.
        field: The name of the field in the API; empty for a device as a whole.
        outcome: 'carried' as it was; 'mapped' to what the target has; 'changed'; 'left out'; or 'asked': a default
            was taken, and the user may decide otherwise.
        old: The saved value as text; never a secret.
        new: The value in the restored VM; empty: none.
        reason: One sentence.
    """

    subject: str
    field: str
    outcome: Outcome
    old: str = ""
    new: str = ""
    reason: str = ""


@dataclass(frozen=True)
class PlannedDisk:
    """A disk to make and to write.

    Args:
        key: In the point, e.g. 'scsi0:0'.
        label: For people.
        controller: The bus and the number of its controller, e.g. 'scsi0'.
        unit: Its number on the controller.
        capacity: Bytes.
        data: Bytes that the point has for it; 0 for a disk that is made empty.
        provisioning: How it is allocated.
        datastore: The name of its datastore.
        datastore_moref: Its reference.
        mode: The disk mode of the API.
        sharing: The API's word for sharing between VMs; empty: none.
        uuid: The identity that the guest sees; None: the server makes one.
        write: False for a disk of which the point has no data.
        policy: The id of its storage policy; None: the default of the datastore.
    """

    key: str
    label: str
    controller: str
    unit: int
    capacity: int
    data: int
    provisioning: Provisioning
    datastore: str
    datastore_moref: str
    mode: str = "persistent"
    sharing: str = ""
    uuid: str | None = None
    write: bool = True
    policy: str | None = None

    def spec(self, controller_key: int, *, device_key: int = -1) -> vim.vm.device.VirtualDeviceSpec:
        """The change that adds this disk to the VM, with a file that the server names.

        Args:
            controller_key: The key of the controller `controller` in the VM as it is now.
            device_key: A temporary key.
        """
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{self.datastore}]",
            datastore=vim.Datastore(self.datastore_moref),
            diskMode=self.mode,
            thinProvisioned=self.provisioning == "thin",
            eagerlyScrub=self.provisioning == "eager",
        )
        if self.uuid:
            backing.uuid = self.uuid
        if self.sharing:
            backing.sharing = self.sharing
        disk = vim.vm.device.VirtualDisk(
            key=device_key,
            controllerKey=controller_key,
            unitNumber=self.unit,
            capacityInKB=self.capacity // 1024,
            capacityInBytes=self.capacity,
            backing=backing,
        )
        change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
        if self.policy:
            change.profile = [vim.vm.DefinedProfileSpec(profileId=self.policy)]
        return change


@dataclass(frozen=True)
class BootEntry:
    """An entry of the boot order. `kind`: 'disk', 'network', 'cdrom' or 'floppy'; `key`: of a disk its key in the
    point; `number`: of a NIC its place among the NICs of the specification, from 0."""

    kind: Literal["disk", "network", "cdrom", "floppy"]
    key: str = ""
    number: int = 0


@dataclass(frozen=True)
class After:
    """What follows the data, in this order.

    Args:
        nvram: Upload the saved firmware variables, before the VM is first switched on.
        boot_order: Empty: the firmware's own.
        tags: To attach, as (category, name); the target has them.
        attributes: Custom attributes to set, by name; the target has them.
        change_tracking: Switch it on.
        power_on: Switch the VM on.
    """

    nvram: bool = False
    boot_order: Sequence[BootEntry] = ()
    tags: Sequence[tuple[str, str]] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    change_tracking: bool = False
    power_on: bool = False


@dataclass(frozen=True)
class Problem:
    """What forbids the restore. `what`: a short name for programs, e.g. 'name taken'."""

    what: str
    sentence: str
    remedy: str


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do.

    Args:
        mode: 'copy' or 'replace'.
        name: Of the new VM.
        folder: Where it will be; None while that is a problem. Likewise `pool`, `host` (None: the server chooses)
            and `datastore`, which takes its configuration.
        spec: The new VM without disks.
        disks: The disks to add, one by one and in this order.
        after: What follows the data.
        decisions: What happens to every field, setting and device of the saved VM.
        problems: What forbids the restore; empty: it can begin.
        warnings: What a person should know before, a sentence each.
    """

    mode: Mode
    name: str
    folder: Place | None
    pool: Place | None
    host: Place | None
    datastore: Store | None
    spec: vim.vm.ConfigSpec = field(repr=False)
    disks: Sequence[PlannedDisk]
    after: After
    decisions: Sequence[Decision]
    problems: Sequence[Problem] = ()
    warnings: Sequence[str] = ()

    def require_possible(self) -> None:
        """Raises ConfigError with every problem and its remedy."""
        if not self.problems:
            return
        first, *others = self.problems
        if not others:
            raise ConfigError(first.sentence, remedy=first.remedy, what=first.what)
        every = " ".join(
            f"({number}) {one.sentence} {one.remedy}" for number, one in enumerate(self.problems, 1)
        )
        raise ConfigError(
            f"{self.name} cannot be restored for {counted(len(self.problems), 'reason')}: {every}",
            remedy="Remove these causes.",
            what=first.what,
        )

    def table(self) -> list[tuple[str, str, str, str, str, str]]:
        """A row per decision: subject, field, outcome, old value, new value, reason."""
        return [(one.subject, one.field, one.outcome, one.old, one.new, one.reason) for one in self.decisions]

    def as_dict(self) -> dict[str, object]:
        """The plan as JSON values, without the specification."""
        return {
            "mode": self.mode,
            "name": self.name,
            "folder": self.folder.path if self.folder else None,
            "pool": self.pool.path if self.pool else None,
            "host": self.host.name if self.host else None,
            "datastore": self.datastore.name if self.datastore else None,
            "disks": [_fields_of(disk) for disk in self.disks],
            "after": {
                **_fields_of(self.after),
                "boot_order": [_fields_of(entry) for entry in self.after.boot_order],
            },
            "decisions": [_fields_of(one) for one in self.decisions],
            "problems": [_fields_of(one) for one in self.problems],
            "warnings": list(self.warnings),
        }


def _fields_of(value: object) -> dict[str, object]:
    return {
        name: list(one) if isinstance(one, tuple) else dict(one) if isinstance(one, Mapping) else one
        for name, one in vars(value).items()
    }
