"""Where a VM was, and what of it cannot be had later. Kept with each point, so that the VM can come back.

Beside the parsed configuration: the server's own answer, the firmware variables, the places and networks by name,
tags, custom attributes, storage policies, how each disk was allocated, and by which key the VM was encrypted.

None of this decides about a backup. What cannot be read is a sentence in the report.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import urlsplit

import trio
from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import MoverError
from pipeline.units import MiB
from vadpipe.vmdk.vmx import NVRAM_DOCUMENT

from ..api.faults import ConnectionLost, NotOffered, SessionExpired
from ..api.http import HttpClient, Refusal
from ..api.properties import Row, read_each, read_from
from ..api.session import VcenterSession
from ..api.soap import raw_property
from .datastore import DatastorePath, folder_url
from .hardware import VmDisk, provisioning_of, vm_disks
from .lookup import Inventory, Vm, name_of
from .policies import storage_policies
from .raw_config import NotAConfigurationError, blotted, parse_config
from .tags import tags_of

log = logging.getLogger(__name__)

# The document of a point with the server's own answer.
CONFIG_DOCUMENT: Final = "vm-config.xml"

_MAX_CONFIG: Final = 32 * MiB  # a VM with 256 disks and long chains answers a few MiB
_MAX_NVRAM: Final = 4 * MiB  # EFI variable stores have some 270 KB
_WITHIN_S: Final = 60.0
_VM_PATHS: Final = ("runtime.host", "resourcePool", "network", "layoutEx", "customValue", "availableField")
_PLACED: Final = ("name", "parent")
_ABOVE: Final[Mapping[type[ManagedObject], Sequence[str]]] = {
    vim.HostSystem: _PLACED,
    vim.ComputeResource: _PLACED,
    vim.ResourcePool: _PLACED,
    vim.VirtualApp: _PLACED,
    vim.Folder: _PLACED,
    vim.Datacenter: _PLACED,
    vim.Network: ("name", "summary"),
}
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)  # an answer of another shape
_REFUSALS = {
    http.client.UNAUTHORIZED: Refusal("it requires a login", error=SessionExpired),
    http.client.NOT_FOUND: Refusal("there is no such file"),
    http.client.FORBIDDEN: Refusal(
        "the account may not read files there (privileges Datastore.Browse and Datastore.FileManagement)",
        "Give the account these privileges on the datastore.",
    ),
}


@dataclass
class Origin:
    """What is kept: `facts` as JSON values, and `documents` by name. `remarks`: what could not be read."""

    facts: dict[str, object] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


async def origin_of(session: VcenterSession, vm: Vm, snapshot: str) -> Origin:
    """Read all of it. Raises nothing of ours; it takes a minute at most, and some eight calls.

    Args:
        session: The session.
        vm: The VM.
        snapshot: The moref of the snapshot whose configuration is kept.
    """
    reading = _Reading(session, vm, snapshot)
    parts = (
        ("The server's own answer with the configuration", reading.configuration),
        ("Where the VM was", reading.places),
        ("The firmware variables", reading.nvram),
        ("The tags", reading.tags),
        ("The storage policies", reading.policies),
    )
    with trio.move_on_after(_WITHIN_S) as limit:
        for what, part in parts:
            await reading.attempt(what, part)
    if limit.cancelled_caught:
        reading.remark(
            "What a later restore needs beside the disks", f"it took longer than {_WITHIN_S:.0f} s"
        )
    return reading.origin


class _Reading:
    def __init__(self, session: VcenterSession, vm: Vm, snapshot: str) -> None:
        self.session, self.vm = session, vm
        self.snapshot = vim.vm.Snapshot(snapshot, session.stub)
        self.origin = Origin()
        self.config: vim.vm.ConfigInfo | None = None
        self.layout: vim.vm.FileLayoutEx | None = None

    async def attempt(self, what: str, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except MoverError as exc:
            self.remark(what, exc.problem.rstrip("."))
        except _UNREADABLE as exc:
            log.warning("%s: %s: the answer has another shape", self.vm.name, what, exc_info=True)
            self.remark(what, f"the answer has another shape ({type(exc).__name__})")

    def remark(self, what: str, why: str) -> None:
        sentence = f"{what} could not be kept for a restore: {why}."
        log.info("%s: %s", self.vm.name, sentence)
        self.origin.remarks.append(sentence)

    async def configuration(self) -> None:
        """The raw answer in the newest version; where that fails, pyVmomi's own writing of it."""
        session, facts = self.session, self.origin.facts
        version = getattr(session.stub, "newest", "") or str(session.content.about.apiVersion)
        try:
            answer = await session.call("RetrievePropertiesEx config", lambda: self._raw(version))
            document, _ = blotted(answer)
            self.config = parse_config(document).config
        except (MoverError, NotAConfigurationError) as exc:
            log.info("%s: the raw configuration cannot be kept: %s", self.vm.name, exc)
            self.remark("The server's own answer with the configuration", f"{exc}".rstrip("."))
            version = VmomiSupport.versionIdMap[session.stub.version]
            row = await session.properties(self.snapshot, ["config"])
            self.config = row.get("config")
            document, _ = blotted(_written(row.get("config"), session.stub.version))
        self.origin.documents[CONFIG_DOCUMENT] = document
        facts |= {"api_version": version, "server": session.server, "path": self.vm.path}
        facts["folder"] = self.vm.path.rpartition("/")[0]
        if encryption := _encryption(self.config):
            facts["encryption"] = encryption

    def _raw(self, version: str) -> bytes:
        session = self.session
        collector = str(session.content.propertyCollector._moId)
        with HttpClient(session.endpoint) as http_client:
            return raw_property(
                http_client, session.cookie, version, collector, self.snapshot, "config", _MAX_CONFIG
            )

    async def places(self) -> None:
        """The VM's host, cluster, pool, networks, attributes and files: one call for it, one for those."""
        session, facts = self.session, self.origin.facts
        subject = self.vm.reference(session)
        [row] = await session.call(
            "RetrieveProperties", lambda: read_each(session.content, [subject], _VM_PATHS)
        )
        self.layout = row.get("layoutEx")
        facts["attributes"] = _attributes(row)
        disks = vm_disks(self.config.hardware.device) if self.config is not None else []
        facts["disks"] = {disk.key: self._disk(disk) for disk in disks}
        around = await session.call("RetrieveProperties", lambda: self._around(row))
        places = {one.moref: one for one in around}
        inventory = Inventory(around)
        if (host := _found(places, row.get("runtime.host"))) is not None:
            facts["host"] = name_of(host)
            owner = _found(places, host.get("parent"))
            facts["cluster"] = name_of(owner) if owner and owner.kind == "ClusterComputeResource" else ""
        if (pool := _found(places, row.get("resourcePool"))) is not None:
            facts["pool"] = inventory.path(pool)
        facts["networks"] = self._networks(around)

    def _around(self, row: Row) -> list[Row]:
        """The VM's host and pool with all places above, and its networks. Blocks."""
        content = self.session.content
        starts = []
        for number, one in enumerate(filter(None, (row.get("runtime.host"), row.get("resourcePool")))):
            name = f"up{number}"
            again = vmodl.query.PropertyCollector.SelectionSpec(name=name)
            up = vmodl.query.PropertyCollector.TraversalSpec(
                name=name, type=vim.ManagedEntity, path="parent", skip=False, selectSet=[again]
            )
            starts.append(vmodl.query.PropertyCollector.ObjectSpec(obj=one, skip=False, selectSet=[up]))
        starts += [
            vmodl.query.PropertyCollector.ObjectSpec(obj=one, skip=False) for one in row.get("network") or ()
        ]
        root = str(content.rootFolder._moId)
        return [one for one in read_from(content, starts, _ABOVE) if one.moref != root] if starts else []

    def _disk(self, disk: VmDisk) -> dict[str, object]:
        assert self.config is not None
        backing = next(one.backing for one in self.config.hardware.device if one.key == disk.device_key)
        return {
            "datastore": disk.datastore,
            "provisioning": provisioning_of(backing),
            "allocated": _allocated(self.layout, disk.device_key),
        }

    def _networks(self, around: Sequence[Row]) -> dict[str, object]:
        """The network of each NIC by its device key, which is text in JSON."""
        groups = {one.moref: name_of(one) for one in around}  # a port group's key is its moref
        segments = {
            summary.opaqueNetworkId: name_of(one)
            for one in around
            if isinstance(summary := one.get("summary"), vim.OpaqueNetwork.Summary)
        }
        networks: dict[str, object] = {}
        for device in self.config.hardware.device if self.config is not None else ():
            if isinstance(device, vim.vm.device.VirtualEthernetCard):
                networks[str(device.key)] = _network(device, groups, segments)
        return networks

    async def nvram(self) -> None:
        """The file with the firmware variables; a VM that never ran has none."""
        files = cast("Sequence[Any]", self.layout.file if self.layout is not None else [])
        path = next((str(one.name) for one in files if one.type == "nvram"), "")
        if not path:
            return
        place = DatastorePath.parse(path)
        content = await self.session.call(f"GET {place}", lambda: self._file(place))
        self.origin.documents[NVRAM_DOCUMENT] = content

    def _file(self, place: DatastorePath) -> bytes:
        session = self.session
        datacenter = self.vm.datacenter if session.is_vcenter else None
        parts = urlsplit(folder_url("server", place, datacenter))
        with HttpClient(session.endpoint) as http_client:
            response = http_client.request(
                "GET",
                f"{parts.path}?{parts.query}",
                call=f"GET {place}",
                limit=_MAX_NVRAM,
                headers={"Cookie": session.cookie},
            )
        return response.require_success(_REFUSALS)

    async def tags(self) -> None:
        """By category and name. A session by cookie and an ESXi host have none."""
        if not self.session.is_vcenter or self.session.settings.password is None:
            return
        found = await tags_of(self.session, "VirtualMachine", self.vm.moref)
        self.origin.facts["tags"] = [{"category": category, "name": name} for category, name in found]

    async def policies(self) -> None:
        """The storage policies of the VM and of its disks, where the server has a service for them."""
        if not self.session.is_vcenter or self.config is None:
            return
        disks = {disk.key: disk.device_key for disk in vm_disks(self.config.hardware.device)}
        try:
            self.origin.facts["storage_policies"] = await storage_policies(self.session, self.vm.moref, disks)
        except (NotOffered, ConnectionLost) as exc:
            log.info("%s: storage policies are not offered: %s", self.vm.name, exc.problem)


def _written(config: vim.vm.ConfigInfo | None, version: str) -> bytes:
    """The configuration as pyVmomi writes it."""
    if config is None:
        raise ValueError("the snapshot has no configuration")
    kind = VmomiSupport.Object(name="config", type=vim.vm.ConfigInfo, version=version, flags=0)
    text = SoapAdapter.SerializeToStr(config, kind, version)
    return text if isinstance(text, bytes) else str(text).encode()


def _encryption(config: vim.vm.ConfigInfo | None) -> dict[str, object]:
    """By which key it was encrypted; the key itself is nowhere."""
    if config is None or config.keyId is None:
        return {}
    provider = config.keyId.providerId
    return {
        "key_id": config.keyId.keyId,
        "provider": provider.id if provider is not None else "",
        "bundle": any(option.key == "encryption.bundle" for option in config.extraConfig),
    }


def _attributes(row: Row) -> dict[str, str]:
    """The custom attributes by name; their keys mean something on this server only."""
    names = {one.key: str(one.name) for one in row.get("availableField") or ()}
    return {
        names[one.key]: str(one.value)
        for one in row.get("customValue") or ()
        if one.key in names and isinstance(one, vim.CustomFieldsManager.StringValue)
    }


def _allocated(layout: vim.vm.FileLayoutEx | None, device_key: int) -> int | None:
    """Bytes of the files of a disk's chain; None when the server does not tell."""
    if layout is None:
        return None
    found = cast("Sequence[Any]", layout.file)
    sizes: dict[int, int] = {one.key: one.size for one in found}
    files = [
        key for disk in layout.disk if disk.key == device_key for part in disk.chain for key in part.fileKey
    ]
    known = [sizes[key] for key in files if key in sizes]
    return sum(known) if known else None


def _network(
    nic: vim.vm.device.VirtualEthernetCard, groups: Mapping[str, str], segments: Mapping[str, str]
) -> dict[str, object]:
    backing, card = nic.backing, vim.vm.device.VirtualEthernetCard
    if isinstance(backing, card.DistributedVirtualPortBackingInfo):
        key = backing.port.portgroupKey or ""
        ids = {"switch_uuid": backing.port.switchUuid, "portgroup_key": key}
        return {"name": groups.get(key, ""), "kind": "distributed", "ids": ids}
    if isinstance(backing, card.OpaqueNetworkBackingInfo):
        opaque = {"opaque_id": backing.opaqueNetworkId, "opaque_type": backing.opaqueNetworkType}
        return {"name": segments.get(backing.opaqueNetworkId, ""), "kind": "opaque", "ids": opaque}
    return {"name": getattr(backing, "deviceName", None) or "", "kind": "standard", "ids": {}}


def _found(places: Mapping[str, Row], reference: ManagedObject | None) -> Row | None:
    return places.get(str(reference._moId)) if reference is not None else None
