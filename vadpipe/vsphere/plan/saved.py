"""What a restore point says of its VM, whichever version of vadpipe or kind of machine it came from.

A kernel. Whatever the source, the VM's configuration becomes a `ConfigInfo` of pyVmomi: the server's own answer, or
one with the few fields that an older point or a .vmx has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast
from urllib.parse import unquote

from pyVmomi import vim

from pipeline.errors import IntegrityError
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.vmdk.vmx import NVRAM_DOCUMENT, REDACTED

from ..inventory.hardware import VmDisk, provisioning_of, vm_disks
from ..inventory.origin import CONFIG_DOCUMENT
from ..inventory.raw_config import NotAConfigurationError, ParsedConfig, parse_config
from ..inventory.reduced_config import config_of_summary, config_of_vmx

Source = Literal["configuration", "summary", "vmx", "nothing"]

# The documents of a point that `saved_vm` reads where the point has them.
DOCUMENTS: Final[Sequence[str]] = (CONFIG_DOCUMENT,)


@dataclass(frozen=True)
class SavedDisk:
    """A disk of the saved VM, also one that the point has no data of.

    Args:
        key: Its place on its controller, e.g. 'scsi0:0'.
        device_key: The number of the device in the saved configuration.
        label: For people.
        capacity: Bytes.
        datastore: The name of its datastore; empty when unknown.
        provisioning: 'thin', 'lazy' or 'eager'; empty when unknown.
        mode: The disk mode of the API.
        uuid: What the guest sees as its serial number; None when unknown.
        sharing: The API's word for sharing between VMs; empty: none.
        raw: 'physical' or 'virtual' for a raw device mapping, else empty.
        encrypted: It was encrypted.
        allocated: Bytes that it took on its datastore; None when unknown.
        policy: The name of its storage policy; empty when unknown or none.
    """

    key: str
    device_key: int
    label: str
    capacity: int
    datastore: str = ""
    provisioning: str = ""
    mode: str = "persistent"
    uuid: str | None = None
    sharing: str = ""
    raw: str = ""
    encrypted: bool = False
    allocated: int | None = None
    policy: str = ""


@dataclass(frozen=True)
class SavedNetwork:
    """The network of a NIC. `kind`: 'standard', 'distributed', 'opaque'; empty when unknown."""

    name: str
    kind: str = ""
    ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedVm:
    """A VM as its restore point knows it.

    Args:
        name: Its name.
        config: Its configuration; of a reduced one, most fields are unset.
        source: 'configuration' for the server's own answer, 'summary' for a point of an older version, 'vmx' for a
            VM that was read from its files, 'nothing' for disks without a VM.
        created: When the point was made, ISO 8601.
        point: The id of the point.
        server: The server that it was on; empty when unknown.
        api_version: The version that the answer was asked with; empty when unknown.
        unknown: Names of fields and types in it that this version does not know.
        unknown_devices: The names of types of devices that this version does not know, by device key.
        folder: The inventory path of its folder; empty when unknown. Likewise `pool`, `host`, `cluster`.
        datastore: The name of the datastore of its configuration; empty when unknown.
        disks: Its disks.
        networks: The network of each NIC, by its device key.
        nvram: The point holds its firmware variables.
        tags: As (category, name).
        attributes: Custom attributes by name.
        policy: The name of the storage policy of its configuration; empty when unknown or none.
        key_provider: The provider of the keys that it was encrypted with; empty when it was not, or is not known.
        encrypted: It was encrypted.
        secrets: Keys of settings whose values were not stored.
    """

    name: str
    config: vim.vm.ConfigInfo = field(repr=False)
    source: Source
    created: str = ""
    point: str = ""
    server: str = ""
    api_version: str = ""
    unknown: Sequence[str] = ()
    unknown_devices: Mapping[int, str] = field(default_factory=dict)
    folder: str = ""
    pool: str = ""
    host: str = ""
    cluster: str = ""
    datastore: str = ""
    disks: Sequence[SavedDisk] = ()
    networks: Mapping[int, SavedNetwork] = field(default_factory=dict)
    nvram: bool = False
    tags: Sequence[tuple[str, str]] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    policy: str = ""
    key_provider: str = ""
    encrypted: bool = False
    secrets: Sequence[str] = ()


def saved_vm(point: RestorePoint, documents: Mapping[str, bytes]) -> SavedVm:
    """The VM of a point.

    Args:
        point: The point.
        documents: The contents of those documents of the point that `DOCUMENTS` names.

    Raises:
        IntegrityError: The stored configuration cannot be parsed.
    """
    source, parsed = _parsed(point, documents)
    vm = saved_from(
        point.machine.name,
        parsed.config,
        source,
        origin=_mapping(point.configuration.get("origin")),
        unknown=parsed.unknown,
        unknown_devices=parsed.unknown_devices,
    )
    return replace(vm, created=point.created, point=point.id, nvram=NVRAM_DOCUMENT in point.documents)


def saved_from(
    name: str,
    config: vim.vm.ConfigInfo,
    source: Source = "configuration",
    *,
    origin: Mapping[str, object] | None = None,
    unknown: Sequence[str] = (),
    unknown_devices: Mapping[int, str] | None = None,
) -> SavedVm:
    """The same from a configuration and what the backup noted of where the VM was."""
    origin = origin or {}
    devices = config.hardware.device if config.hardware else []
    disks = _mapping(origin.get("disks"))
    encryption = _mapping(origin.get("encryption"))
    key = config.keyId
    provider = key.providerId.id if key is not None and key.providerId is not None else ""
    policies = _mapping(origin.get("storage_policies"))
    return SavedVm(
        name=unquote(config.name) if source == "configuration" and config.name else config.name or name,
        config=config,
        source=source,
        server=_text(origin, "server"),
        api_version=_text(origin, "api_version"),
        unknown=unknown,
        unknown_devices=unknown_devices or {},
        folder=_text(origin, "folder"),
        pool=_text(origin, "pool"),
        host=_text(origin, "host"),
        cluster=_text(origin, "cluster"),
        datastore=_datastore(config.files.vmPathName if config.files else None),
        disks=[
            _saved_disk(disk, devices, _mapping(disks.get(disk.key)), policies) for disk in vm_disks(devices)
        ],
        networks=_networks(origin, devices),
        tags=[
            (str(one.get("category")), str(one.get("name"))) for one in map(_mapping, _list(origin, "tags"))
        ],
        attributes={key: str(value) for key, value in _mapping(origin.get("attributes")).items()},
        policy=str(policies.get("vm") or ""),
        key_provider=provider or _text(encryption, "provider"),
        encrypted=key is not None or bool(encryption),
        secrets=[option.key for option in config.extraConfig if str(option.value) == REDACTED],
    )


def _parsed(point: RestorePoint, documents: Mapping[str, bytes]) -> tuple[Source, ParsedConfig]:
    content = documents.get(CONFIG_DOCUMENT)
    if content is not None:
        try:
            return "configuration", parse_config(content)
        except NotAConfigurationError as exc:
            raise IntegrityError(
                f"{CONFIG_DOCUMENT} in point {point.id} of {point.machine.name} is no configuration: {exc}.",
                remedy="Restore the disks to files, or from another point.",
                point=point.id,
            ) from exc
    if "vmx" in point.configuration:
        capacities = {disk.key: disk.capacity for disk in point.disks}
        return "vmx", ParsedConfig(config_of_vmx(_mapping(point.configuration["vmx"]), capacities))
    if "hardware_version" in point.configuration:
        return "summary", ParsedConfig(config_of_summary(point.configuration))
    return "nothing", ParsedConfig(vim.vm.ConfigInfo(name=point.machine.name))


def _saved_disk(
    disk: VmDisk,
    devices: Sequence[vim.vm.device.VirtualDevice],
    noted: Mapping[str, object],
    policies: Mapping[str, object],
) -> SavedDisk:
    backing = next(device.backing for device in devices if device.key == disk.device_key)
    allocated = noted.get("allocated")
    return SavedDisk(
        key=disk.key,
        device_key=disk.device_key,
        label=disk.label,
        capacity=disk.capacity,
        datastore=_text(noted, "datastore") or disk.datastore,
        provisioning=_text(noted, "provisioning") or provisioning_of(backing),
        mode=disk.mode or "persistent",
        uuid=disk.uuid,
        sharing=str(getattr(backing, "sharing", None) or ""),
        raw=disk.raw,
        encrypted=disk.encrypted,
        allocated=allocated if isinstance(allocated, int) else None,
        policy=str(_mapping(policies.get("disks")).get(disk.key) or ""),
    )


def _networks(
    origin: Mapping[str, object], devices: Sequence[vim.vm.device.VirtualDevice]
) -> dict[int, SavedNetwork]:
    noted = {
        int(key): _mapping(value) for key, value in _mapping(origin.get("networks")).items() if key.isdigit()
    }
    networks = {}
    for device in devices:
        if not isinstance(device, vim.vm.device.VirtualEthernetCard):
            continue
        if (one := noted.get(device.key)) is not None:
            ids = {key: str(value) for key, value in _mapping(one.get("ids")).items()}
            networks[device.key] = SavedNetwork(_text(one, "name"), _text(one, "kind"), ids)
        else:
            networks[device.key] = network_of(device)
    return networks


def network_of(nic: vim.vm.device.VirtualEthernetCard) -> SavedNetwork:
    """The network of a NIC as its own backing tells; a distributed one has no name there."""
    backing = nic.backing
    card = vim.vm.device.VirtualEthernetCard
    if isinstance(backing, card.NetworkBackingInfo):
        return SavedNetwork(backing.deviceName or "", "standard")
    if isinstance(backing, card.DistributedVirtualPortBackingInfo):
        ids = {"switch_uuid": backing.port.switchUuid, "portgroup_key": backing.port.portgroupKey or ""}
        return SavedNetwork("", "distributed", ids)
    if isinstance(backing, card.OpaqueNetworkBackingInfo):
        opaque = {"opaque_id": backing.opaqueNetworkId, "opaque_type": backing.opaqueNetworkType}
        return SavedNetwork("", "opaque", opaque)
    return SavedNetwork(nic.deviceInfo.summary if nic.deviceInfo else "")


def _datastore(path: str | None) -> str:
    return path[1 : path.index("]")] if path and path.startswith("[") and "]" in path else ""


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _list(holder: Mapping[str, object], name: str) -> Sequence[object]:
    value = holder.get(name)
    return value if isinstance(value, list) else []


def _text(holder: Mapping[str, object], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""
