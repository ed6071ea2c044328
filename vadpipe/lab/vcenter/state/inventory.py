"""What the lab's vCenter remembers: plain dataclasses, kept in `inventory.json`.

Layout of a lab directory:

    datastores/<datastore>/<directory>/...   the VMs' files
    inventory.json                           this module's state, replaced atomically at each change
    vddk.conf                                what the VDDK stand-in may accept, replaced likewise
    server.json                              where the server listens, written when it does
    server.crt, server.key                   the TLS identity (`vadpipe.lab.certificate`)

Nothing here knows the vSphere API: `vm_properties` and `entities` render this state, `snapshots` changes it.
"""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ...disks import Fork, LabDisk
from .networks import NETWORK, NetworkTraits
from .quiescing import Quiescing

QuiescedForm = Literal["one snapshot", "siblings", "unmarked sibling"]
"""One that names the second redo logs; two siblings; the same, and the second's description is empty."""

Heartbeat = Literal["gray", "yellow", "green", "red"]

FIRST_HOST = "host-8"
_FIRST_DISK_KEY = 2000  # vSphere numbers a VM's SCSI disks 2000 + 16 * bus + unit


@dataclass
class DiskState:
    """One disk of a VM. key: vSphere's device key; name: of the `LabDisk` in `directory`.

    directory: below `datastores`, empty for the VM's own.
    """

    key: int
    name: str
    directory: str = ""


@dataclass
class SnapshotState:
    """One snapshot; a VM's snapshots form a chain, oldest first.

    manifest: file name of its VSS manifest; redo_logs: by device key, the redo log that it made. That name
    stays, while the frozen file below may get another one when an older snapshot is removed. side: of a quiesced
    snapshot that shows as two siblings, which follow each other and share their redo logs: "fixed" names what was
    frozen, "writable" the second redo log, which VSS writers may change.
    """

    number: int
    name: str
    description: str
    created: str
    power: str
    quiesced: bool
    manifest: str | None
    redo_logs: dict[int, str]
    side: Literal["", "fixed", "writable"] = ""

    @property
    def moref(self) -> str:
        return f"snapshot-{self.number}"


@dataclass
class GuestVolume:
    """A file system of a guest. disks: keys of the virtual disks that it lies on, None: Tools do not tell."""

    path: str
    capacity: int
    free: int
    disks: list[int] | None


@dataclass
class VmTraits:
    """What a VM is made of, and what is the matter with it; the defaults are a healthy one of today.

    controller: of its disks: pvscsi, lsi-sas, ide, sata, nvme; disk_mode, raw (physicalMode, virtualMode, or empty)
    and multi_writer: of its last disk; cdroms: on its first controller; question: one that it waits for;
    quiesced_form: how a snapshot with a second redo log per disk shows; directory_slash: whether the names of its
    directories end in one; relative_manifest: `backupManifest` names the file only; proxy: it is the machine to
    which VDDK hot-adds disks; vapp: name of the vApp that it is in; linked_to: the datastore path of another VM's
    disk, which the bases of its own disks are said to hang on, as those of a linked clone.
    """

    template: bool = False
    connection: str = "connected"
    hardware_version: int = 19  # ESXi 7.0 U2 and later
    controller: str = "pvscsi"
    bus_sharing: str = "noSharing"
    disk_mode: str = "persistent"
    raw: str = ""
    multi_writer: bool = False
    cdroms: int = 0
    passthrough: bool = False
    encrypted: bool = False
    snapshots_disabled: bool = False
    snapshots_locked: bool = False
    question: str = ""
    tools_status: str = ""  # toolsVersionStatus2, derived when empty
    reported_guest_id: str = ""  # by Tools, the configured one when empty
    quiesced_form: QuiescedForm = "one snapshot"
    directory_slash: bool = True
    relative_manifest: bool = False
    proxy: bool = False
    vapp: str = ""
    linked_to: str = ""
    volumes: list[GuestVolume] = field(default_factory=list)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VmTraits:
        fields["volumes"] = [GuestVolume(**volume) for volume in fields.get("volumes", ())]
        return cls(**fields)


@dataclass
class HostTraits:
    """An ESXi host. memory_mb: what reservations can have of it."""

    name: str = "esxi01.lab.local"
    port: int = 443
    version: str = "8.0.3"
    build: str = "24022510"
    connection: str = "connected"
    maintenance: bool = False
    memory_mb: int = 262144


@dataclass
class DatastoreTraits:
    """A datastore. free: bytes, None for what the file system below has; hosts: that mount it, None for all."""

    kind: str = "VMFS"
    accessible: bool = True
    maintenance: str = "normal"
    free: int | None = None
    hosts: list[str] | None = None


@dataclass
class CustomField:
    """The definition of a custom attribute. kind: of the objects that have it, empty for all."""

    name: str
    kind: str = ""


@dataclass
class VmState:
    """One VM.

    files_name: what its own files are called: its first name, which a rename does not change;
    quiescing: what its guest can do, None to derive it; folder: its path below the folder of all VMs; host: the
    moref of where it runs; disabled_methods: by their WSDL names; devices: by key, as XML, None: derived from
    `traits`; settings: what a spec said, by the path in the configuration, as XML; custom_values: by the field's
    key; heartbeat: what the guest's Tools say while it is on.
    """

    moref: str
    name: str
    files_name: str
    datastore: str
    directory: str
    uuid: str
    instance_uuid: str
    guest_id: str
    power: str
    tools_version: int
    quiescing: Quiescing | None
    change_tracking: bool
    extra_config: dict[str, str]
    disks: list[DiskState]
    snapshots: list[SnapshotState] = field(default_factory=list)
    traits: VmTraits = field(default_factory=VmTraits)
    folder: str = ""
    host: str = FIRST_HOST
    disabled_methods: list[str] = field(default_factory=list)
    devices: dict[int, str] | None = None
    settings: dict[str, str] = field(default_factory=dict)
    custom_values: dict[int, str] = field(default_factory=dict)
    heartbeat: Heartbeat = "green"

    @property
    def created(self) -> bool:
        """Whether it was made by the API, so that its guest has to boot before it lives."""
        return "createDate" in self.settings

    @property
    def tools_running(self) -> bool:
        return self.power == "poweredOn" and self.tools_version > 0 and self.heartbeat != "gray"

    def datastore_path(self, file_name: str = "") -> str:
        return f"[{self.datastore}] {self.directory}/{file_name}"

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VmState:
        fields["disks"] = [DiskState(**disk) for disk in fields["disks"]]
        for snapshot in fields["snapshots"]:
            snapshot["redo_logs"] = {int(key): name for key, name in snapshot["redo_logs"].items()}
        fields["snapshots"] = [SnapshotState(**snapshot) for snapshot in fields["snapshots"]]
        fields["traits"] = VmTraits.from_json(fields.get("traits", {}))
        if fields.get("devices") is not None:
            fields["devices"] = {int(key): text for key, text in fields["devices"].items()}
        custom_values = fields.get("custom_values", {})
        fields["custom_values"] = {int(key): value for key, value in custom_values.items()}
        return cls(**fields)


@dataclass
class Inventory:
    """All state of one lab directory.

    datastores: their morefs by name; disks: the open disks by VM moref and device key; in_work: VMs whose
    redo logs are being merged now; hosts: by moref; datastore_traits: by name, of those that are not as the
    defaults; folders: morefs of the folders of VMs, by path; networks: by moref; custom_fields: by key.
    """

    root: Path
    datacenter: str
    instance_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    next_number: int = 100  # below: the fixed objects of `entities.build`
    datastores: dict[str, str] = field(default_factory=dict)
    vms: dict[str, VmState] = field(default_factory=dict)
    disks: dict[str, dict[int, LabDisk]] = field(default_factory=dict)
    in_work: set[str] = field(default_factory=set)
    hosts: dict[str, HostTraits] = field(default_factory=lambda: {FIRST_HOST: HostTraits()})
    datastore_traits: dict[str, DatastoreTraits] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    networks: dict[str, NetworkTraits] = field(default_factory=lambda: {NETWORK: NetworkTraits()})
    custom_fields: dict[int, CustomField] = field(default_factory=dict)

    def add_datastore(self, name: str) -> str:
        """Make datastore `name` unless there is one; its moref."""
        self.datastore_root(name).mkdir(parents=True, exist_ok=True)
        return self.datastores.setdefault(name, f"datastore-{self.number()}")

    @cached_property
    def _datastores_root(self) -> Path:
        return (self.root / "datastores").resolve()

    def datastore_root(self, datastore: str) -> Path:
        return self.root / "datastores" / datastore

    def allocate(self, datastore: str, size: int) -> None:
        """Take bytes from what a datastore is said to have free, or give them back when negative."""
        traits = self.datastore_traits.get(datastore)
        if traits is not None and traits.free is not None:
            traits.free -= size

    def hosts_of(self, datastore: str) -> list[str]:
        """The morefs of the hosts that mount a datastore, none for one that there is not."""
        if datastore not in self.datastores:
            return []
        mounting = self.datastore_traits.get(datastore, DatastoreTraits()).hosts
        return [moref for moref in self.hosts if mounting is None or moref in mounting]

    def directory_of(self, vm: VmState) -> Path:
        return self.datastore_root(vm.datastore) / vm.directory

    def directory_of_disk(self, vm: VmState, disk: DiskState) -> Path:
        return self.root / "datastores" / disk.directory if disk.directory else self.directory_of(vm)

    def datastore_path(self, file: Path) -> str:
        """The API's name of a file in a datastore."""
        datastore, _, path = file.resolve().relative_to(self._datastores_root).as_posix().partition("/")
        return f"[{datastore}] {path}"

    def directories_of(self, vm: VmState) -> list[Path]:
        """The VM's own directory, and those of its disks elsewhere."""
        return list(
            dict.fromkeys([self.directory_of(vm), *(disk.directory for disk in self.disks_of(vm).values())])
        )

    def datastores_of(self, vm: VmState) -> list[str]:
        """The names of the datastores that hold files of the VM."""
        elsewhere = (disk.directory.partition("/")[0] for disk in vm.disks if disk.directory)
        return list(dict.fromkeys([vm.datastore, *elsewhere]))

    def disks_of(self, vm: VmState) -> dict[int, LabDisk]:
        """The VM's disks by device key."""
        return self.disks[vm.moref]

    def fork_of(self, vm: VmState, snapshot: SnapshotState, key: int) -> Fork:
        """What `snapshot` did to the disk with device key `key`."""
        redo_log = snapshot.redo_logs[key]
        return next(fork for fork in self.disks_of(vm)[key].forks if fork.live.name == redo_log)

    def forgotten_forks(self, vm: VmState) -> Iterator[tuple[LabDisk, Fork]]:
        """Redo logs that no snapshot names: removed without consolidation, or left by a killed server."""
        named = {(key, name) for snapshot in vm.snapshots for key, name in snapshot.redo_logs.items()}
        for key, disk in self.disks_of(vm).items():
            for fork in disk.forks:
                if (key, fork.live.name) not in named:
                    yield disk, fork

    def consolidation_needed(self, vm: VmState) -> bool:
        if vm.moref in self.in_work:
            return False
        disks = self.disks_of(vm).values()
        return any(self.forgotten_forks(vm)) or any(disk.consolidation_needed for disk in disks)

    def number(self) -> int:
        """A number that no moref of this lab directory had before."""
        self.next_number += 1
        return self.next_number - 1

    def save(self) -> None:
        document = {
            "datacenter": self.datacenter,
            "instance_uuid": self.instance_uuid,
            "next_number": self.next_number,
            "datastores": self.datastores,
            "folders": self.folders,
            "vms": [asdict(vm) for vm in self.vms.values()],
            "hosts": {moref: asdict(traits) for moref, traits in self.hosts.items()},
            "datastore_traits": {name: asdict(traits) for name, traits in self.datastore_traits.items()},
            "networks": {moref: asdict(traits) for moref, traits in self.networks.items()},
            "custom_fields": {key: asdict(one) for key, one in self.custom_fields.items()},
        }
        replace_file(self.root / "inventory.json", json.dumps(document))

    @classmethod
    def load_or_create(cls, root: Path, datacenter: str) -> Inventory:
        """The inventory kept in `root`; an empty one with one datastore when there is none yet."""
        path = root / "inventory.json"
        if not path.exists():
            inventory = cls(root, datacenter)
            inventory.add_datastore("datastore1")
            return inventory
        document = json.loads(path.read_text())
        inventory = cls(
            root,
            document["datacenter"],
            document["instance_uuid"],
            document["next_number"],
            document["datastores"],
            hosts={moref: HostTraits(**fields) for moref, fields in document["hosts"].items()},
            datastore_traits={
                name: DatastoreTraits(**fields)
                for name, fields in document.get("datastore_traits", {}).items()
            },
            folders=document.get("folders", {}),
            custom_fields={
                int(key): CustomField(**fields) for key, fields in document.get("custom_fields", {}).items()
            },
        )
        if "networks" in document:
            networks = document["networks"].items()
            inventory.networks = {moref: NetworkTraits(**fields) for moref, fields in networks}
        opened: dict[Path, LabDisk] = {}
        for fields in document["vms"]:
            vm = VmState.from_json(fields)
            inventory.vms[vm.moref] = vm
            inventory.disks[vm.moref] = {}
            for disk in vm.disks:
                directory = inventory.directory_of_disk(vm, disk)
                path = directory / disk.name  # a disk that two VMs have is one object
                opened[path] = opened.get(path) or LabDisk.load(directory, disk.name)
                inventory.disks[vm.moref][disk.key] = opened[path]
        return inventory


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` at once, readable by the owner only: readers see the old or the new whole file."""
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def disk_keys(count: int) -> Iterator[int]:
    """Device keys of `count` SCSI disks; unit 7 of each controller is the controller itself."""
    slots = (16 * bus + unit for bus in range(4) for unit in range(16) if unit != 7)
    return (_FIRST_DISK_KEY + slot for slot in itertools.islice(slots, count))


def controller_and_unit(key: int) -> tuple[int, int]:
    """SCSI controller number and unit of the disk with device key `key`."""
    return divmod(key - _FIRST_DISK_KEY, 16)
