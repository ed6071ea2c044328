"""What the target of a restore has, read from its server: the `Site` that a plan is made for.

What only some restores need is asked only for them: the MAC addresses of all VMs, tags, custom attributes, storage
policies and key providers. What the server does not tell, for want of a privilege or because it is an ESXi host, is
unknown in the plan; it never makes a restore fail by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from pipeline.errors import MoverError

from ..api.faults import ConnectionLost
from ..api.properties import Row, read, read_all, read_each
from ..api.session import VcenterSession
from ..inventory.lookup import TREE_OF_HOSTS, Inventory, name_of
from ..inventory.policies import known_policies
from ..inventory.tags import known_tags
from ..plan.saved import SavedVm
from ..plan.values import LARGEST_DISK, Net, NetworkKind, Place, Site, Store, Wanted

T = TypeVar("T")

log = logging.getLogger(__name__)

_NETWORKS: Mapping[type[ManagedObject], Sequence[str]] = {vim.Network: ("name", "parent", "host", "summary")}
_WANTED: Mapping[type[ManagedObject], Sequence[str]] = {
    **TREE_OF_HOSTS,
    vim.Datacenter: (*TREE_OF_HOSTS[vim.Datacenter], "vmFolder"),
    vim.ComputeResource: (*TREE_OF_HOSTS[vim.ComputeResource], "resourcePool"),
    vim.HostSystem: (
        *TREE_OF_HOSTS[vim.HostSystem],
        "runtime.connectionState",
        "runtime.inMaintenanceMode",
    ),
    vim.Datastore: ("name", "parent", "summary", "host", "info"),
}
_PORTGROUP = ("key", "config.distributedVirtualSwitch", "config.uplink")


async def site_of(session: VcenterSession, saved: SavedVm, wanted: Wanted) -> Site:
    """What the server has, as far as the account can see it. Raises MoverError when the server cannot tell."""
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, _WANTED))
    inventory = Inventory(rows)
    networks = await session.call("RetrieveProperties", lambda: _networks(session, inventory))
    site = Site(
        server=session.server,
        is_vcenter=session.is_vcenter,
        api_version=str(session.content.about.apiVersion),
        folders=list(_folders(inventory)),
        pools=list(_pools(inventory)),
        hosts=list(_hosts(inventory)),
        datastores=[_store(row, inventory) for row in rows if row.kind == "Datastore"],
        networks=networks,
        uuids={
            str(uuid).lower(): name_of(row)
            for row in inventory.vms
            for path in ("config.instanceUuid", "config.uuid")
            if (uuid := row.get(path))
        },
    )
    hardware = saved.config.hardware
    if wanted.mode == "replace" and any(
        getattr(one, "macAddress", None) for one in (hardware.device if hardware else ())
    ):
        site = replace(site, macs=await _macs(session, inventory))
    if saved.attributes:
        site = replace(site, attributes=frozenset(await attribute_keys(session)))
    if saved.tags:
        tags = await _unless_refused("tags", partial(known_tags, session))
        site = replace(site, tags=None if tags is None else frozenset(tags))
    if session.is_vcenter and (saved.policy or any(disk.policy for disk in saved.disks)):
        site = replace(site, storage_policies=await _storage_policies(session))
    if saved.key_provider:
        site = replace(site, key_providers=await _key_providers(session))
    return site


@dataclass(frozen=True)
class Abilities:
    """What a cluster or a host can make: hardware versions, and the ids of guests; empty when unknown."""

    hardware_versions: Sequence[str] = ()
    guest_ids: frozenset[str] = frozenset()


async def abilities_of(session: VcenterSession, owner: str, host: str | None) -> Abilities:
    """What can be made on a cluster or a host that stands alone; unknown where the server does not tell.

    Args:
        session: The session.
        owner: The moref of the compute resource.
        host: The moref of the only host to ask for; None: any of it.
    """

    def ask() -> Abilities:
        subject = vim.ComputeResource(owner, session.stub)
        browser = read(session.content, subject, ["environmentBrowser"]).get("environmentBrowser")
        if browser is None:
            return Abilities()
        one = None if host is None else vim.HostSystem(host, session.stub)
        options = browser.QueryConfigOptionDescriptor() or []
        versions = [
            str(option.key)
            for option in options
            if option.createSupported is not False
            and (one is None or not option.host or any(each._moId == host for each in option.host))
        ]
        known = browser.QueryConfigOption(None, one)
        guests = known.guestOSDescriptor if known is not None else ()
        return Abilities(versions, frozenset(str(guest.id) for guest in guests or ()))

    found = await _unless_refused("what it can make", partial(session.call, "QueryConfigOption", ask))
    return found or Abilities()


async def attribute_keys(session: VcenterSession) -> dict[str, int]:
    """The keys of the server's custom attributes for VMs, by name; none on an ESXi host."""

    def ask() -> dict[str, int]:
        manager = session.content.customFieldsManager
        fields = read(session.content, manager, ["field"]).get("field") if manager is not None else None
        return {
            str(one.name): int(one.key)
            for one in fields or ()
            if one.managedObjectType in (None, vim.VirtualMachine)
        }

    return await _unless_refused("custom attributes", partial(session.call, "RetrieveProperties", ask)) or {}


async def _unless_refused(what: str, work: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await work()
    except MoverError as exc:
        if exc.transient:
            raise
        log.info("The server does not tell its %s: %s", what, exc)
        return None


def _folders(inventory: Inventory) -> Iterator[Place]:
    """The folders of VMs; each with the names of what is in it."""
    tops = {str(row.get("vmFolder")._moId) for row in inventory.rows if row.get("vmFolder") is not None}
    found = {moref for moref in tops if moref in inventory.places}
    below = inventory.below(inventory.places[moref] for moref in found)
    taken: dict[str, set[str]] = {}
    for row in inventory.rows:
        above = row.get("parentFolder") or row.get("parent")
        if above is not None:
            taken.setdefault(str(above._moId), set()).add(name_of(row))
    for row in inventory.rows:
        if row.kind == "Folder" and (row.moref in found or row.moref in below):
            yield _place(row, inventory, taken=frozenset(taken.get(row.moref, ())))


def _pools(inventory: Inventory) -> Iterator[Place]:
    roots = {
        str(pool._moId): row
        for row in inventory.rows
        if (pool := row.get("resourcePool")) and row.kind != "VirtualMachine"
    }
    for row in inventory.rows:
        if row.kind == "ResourcePool":
            owner = _above(row, inventory, "ComputeResource", "ClusterComputeResource")
            yield _place(row, inventory, owner=owner, root=row.moref in roots)


def _hosts(inventory: Inventory) -> Iterator[Place]:
    for row in inventory.rows:
        if row.kind == "HostSystem":
            connected = row.get("runtime.connectionState") in (None, "connected")
            usable = connected and not row.get("runtime.inMaintenanceMode")
            owner = _above(row, inventory, "ComputeResource", "ClusterComputeResource")
            yield _place(row, inventory, owner=owner, accessible=usable)


def _above(row: Row, inventory: Inventory, *kinds: str) -> Row | None:
    """The nearest place above of one of these kinds."""
    while (above := row.get("parent")) is not None:
        found = inventory.places.get(str(above._moId))
        if found is None or found.kind in kinds:
            return found
        row = found
    return None


def _place(
    row: Row,
    inventory: Inventory,
    *,
    owner: Row | None = None,
    root: bool = False,
    taken: frozenset[str] = frozenset(),
    accessible: bool = True,
) -> Place:
    return Place(
        moref=row.moref,
        name=name_of(row),
        path=inventory.path(row),
        datacenter=inventory.datacenter(row),
        owner=owner.moref if owner else "",
        owner_name=name_of(owner) if owner else "",
        root=root,
        taken=taken,
        accessible=accessible,
    )


def _store(row: Row, inventory: Inventory) -> Store:
    summary, info = row.get("summary"), row.get("info")
    mounts = row.get("host")
    largest = getattr(info, "maxVirtualDiskCapacity", None) or getattr(info, "maxFileSize", None)
    return Store(
        moref=row.moref,
        name=name_of(row),
        datacenter=inventory.datacenter(row),
        kind=str(summary.type) if summary else "",
        free=int(summary.freeSpace) if summary else None,
        accessible=bool(
            summary is None or (summary.accessible and summary.maintenanceMode in (None, "normal"))
        ),
        hosts=None if mounts is None else frozenset(str(one.key._moId) for one in mounts if writable(one)),
        largest_disk=min(LARGEST_DISK, largest or LARGEST_DISK),
    )


def writable(mount: vim.Datastore.HostMount) -> bool:
    """Whether the host of this mount can make files there."""
    info = mount.mountInfo
    return info is None or (info.accessMode != "readOnly" and info.accessible is not False)


def _networks(session: VcenterSession, inventory: Inventory) -> list[Net]:
    """The networks, without the uplinks of distributed switches. Blocks."""
    rows = read_all(session.content, _NETWORKS)
    groups = [
        vim.dvs.DistributedVirtualPortgroup(row.moref, session.stub)
        for row in rows
        if row.kind == "DistributedVirtualPortgroup"
    ]
    found = {row.moref: row for row in read_each(session.content, groups, _PORTGROUP)}
    switches = {str(one._moId): one for row in found.values() if (one := row.get(_PORTGROUP[1])) is not None}
    uuids = {
        row.moref: row.get("uuid") for row in read_each(session.content, list(switches.values()), ["uuid"])
    }
    inventory = Inventory([*inventory.rows, *rows])
    nets = []
    for row in rows:
        kind: NetworkKind = "standard"
        ids: dict[str, str] = {}
        if group := found.get(row.moref):
            if group.get("config.uplink"):
                continue
            switch = group.get(_PORTGROUP[1])
            kind = "distributed"
            ids = {"portgroup_key": str(group.get("key") or row.moref)}
            if switch is not None and (uuid := uuids.get(str(switch._moId))):
                ids["switch_uuid"] = str(uuid)
        elif row.kind == "OpaqueNetwork":
            summary = row.get("summary")
            kind = "opaque"
            ids = {
                "opaque_id": str(getattr(summary, "opaqueNetworkId", "")),
                "opaque_type": str(getattr(summary, "opaqueNetworkType", "")),
            }
        hosts = row.get("host")
        nets.append(
            Net(
                moref=row.moref,
                name=name_of(row),
                kind=kind,
                ids=ids,
                datacenter=inventory.datacenter(row),
                hosts=frozenset(str(host._moId) for host in hosts) if hosts else None,
            )
        )
    return nets


async def _macs(session: VcenterSession, inventory: Inventory) -> dict[str, str]:
    """Which VM has a MAC address; of all VMs, because no server checks addresses that are given to it."""
    names = {row.moref: name_of(row) for row in inventory.vms}
    devices: Mapping[type[ManagedObject], Sequence[str]] = {vim.VirtualMachine: ["config.hardware.device"]}
    rows = await session.call("RetrieveProperties", lambda: read_all(session.content, devices))
    return {
        str(device.macAddress).lower(): names.get(row.moref, row.moref)
        for row in rows
        for device in row.get("config.hardware.device") or ()
        if getattr(device, "macAddress", None)
    }


async def _storage_policies(session: VcenterSession) -> dict[str, str] | None:
    try:
        return await _unless_refused("storage policies", partial(known_policies, session))
    except ConnectionLost as exc:  # also the answer of a server without this service
        log.info("%s does not tell its storage policies: %s", session.server, exc.problem)
        return None


async def _key_providers(session: VcenterSession) -> frozenset[str] | None:
    def ask() -> frozenset[str] | None:
        manager = session.content.cryptoManager
        if manager is None:
            return frozenset()
        clusters = read(session.content, manager, ["kmipServers"]).get("kmipServers")
        return None if clusters is None else frozenset(str(one.clusterId.id) for one in clusters)

    return await _unless_refused("key providers", partial(session.call, "RetrieveProperties", ask))
