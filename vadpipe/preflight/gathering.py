"""The facts of any number of VMs, gathered in one pass of the PropertyCollector with narrow paths.

The pass starts at the VMs and takes their recent tasks with them. Hosts and datastores come from a view of the
whole inventory, because a disk may be served by any host that sees its datastore. What the account may not read
stays None. Time, licences and privileges cost a constant number of further calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pyVmomi import vim
from pyVmomi.VmomiSupport import ManagedObject

from vadpipe.vsphere.api.faults import ConnectionLost, VsphereError
from vadpipe.vsphere.api.properties import Collector, Row, below_root, read_from
from vadpipe.vsphere.api.session import VcenterSession

from .facts import Case, DatastoreFacts, HostFacts, JobFacts, ProxyFacts, ServerFacts, Version, VmFacts
from .privileges import PURPOSES
from .vm import DETAILS, MAX_SNAPSHOTS, vm_facts

log = logging.getLogger(__name__)

_VM_PATHS = (
    "name", "snapshot", "recentTask", "disabledMethod", "datastore", "guestHeartbeatStatus",
    "config.template", "config.managedBy", "config.guestId", "config.version", "config.hardware.device",
    "config.changeTrackingEnabled", "config.flags.diskUuidEnabled", "config.flags.snapshotDisabled",
    "config.flags.snapshotLocked", "config.bootOptions.bootOrder", MAX_SNAPSHOTS, DETAILS,
    "capability.snapshotOperationsSupported", "capability.changeTrackingSupported",
    "runtime.powerState", "runtime.connectionState", "runtime.host", "runtime.question",
    "runtime.consolidationNeeded",
    "guest.toolsRunningStatus", "guest.toolsVersion", "guest.toolsVersionStatus2", "guest.guestId", "guest.disk",
)  # fmt: skip
# Paths that an older API would refuse, with the version that has them.
_VM_PATHS_SINCE: Mapping[str, Version] = {"config.keyId": (6, 5)}
_HOST_PATHS = (
    "name", "summary.config.product.version", "summary.config.product.build", "runtime.connectionState",
    "runtime.inMaintenanceMode",
)  # fmt: skip
_DATASTORE_PATHS = (
    "name", "host", "summary.type", "summary.accessible", "summary.maintenanceMode", "summary.freeSpace",
)  # fmt: skip
_TASK_PATHS = ("info.state", "info.descriptionId")

_ON_VM, _ON_DATASTORE, _ON_ROOT = (
    [name for purpose in PURPOSES if purpose.place in places for name in purpose.names]
    for places in (("VM", "proxy VM"), ("datastore",), ("root",))
)


@dataclass(frozen=True)
class Gathered:
    """The facts of VMs and their surroundings, by moref. `datastores_of`: morefs by the moref of the VM."""

    server: ServerFacts
    vms: Mapping[str, VmFacts]
    hosts: Mapping[str, HostFacts]
    datastores: Mapping[str, DatastoreFacts]
    datastores_of: Mapping[str, Sequence[str]]

    def case(self, vm: str, job: JobFacts, proxy: ProxyFacts | None = None) -> Case:
        """What the rules judge for one VM. Raises KeyError for a VM that was not gathered."""
        facts = self.vms[vm]
        return Case(
            vm=facts,
            server=self.server,
            job=job,
            host=self.hosts.get(facts.host or ""),
            hosts=[self.hosts[moref] for moref in self.hosts_of(vm)],
            datastores=[
                self.datastores[moref] for moref in self.datastores_of[vm] if moref in self.datastores
            ],
            proxy=proxy,
        )

    def hosts_of(self, vm: str) -> list[str]:
        """Morefs of the hosts that may serve its disks: all that see one of its datastores, and its own."""
        seeing = [
            host
            for moref in self.datastores_of[vm]
            if moref in self.datastores
            for host in self.datastores[moref].hosts
        ]
        own = self.vms[vm].host
        return [host for host in dict.fromkeys([own, *seeing] if own else seeing) if host in self.hosts]


async def gather(session: VcenterSession, vms: Sequence[str]) -> Gathered:
    """The facts of the VMs with these morefs.

    Raises:
        ObjectGone: A VM does not exist (any more).
        SourceError: The facts cannot be read.
    """
    begun = time.perf_counter()
    server = await _server_facts(session)
    rows = await session.call("RetrievePropertiesEx", lambda: _one_pass(session, vms))
    of_kind: dict[str, list[Row]] = {
        kind: [] for kind in ("VirtualMachine", "HostSystem", "Datastore", "Task")
    }
    for row in rows:
        of_kind[row.kind].append(row)
    tasks = {row.moref: str(row.get("info.descriptionId")) for row in of_kind["Task"] if _is_running(row)}
    facts = {row.moref: vm_facts(row, session.api_version, tasks) for row in of_kind["VirtualMachine"]}
    datastores_of = {row.moref: _morefs(row.get("datastore")) for row in of_kind["VirtualMachine"]}
    missing = await _missing_privileges(session, datastores_of)
    log.debug("gathered the facts of %d VMs in %.2f s", len(facts), time.perf_counter() - begun)
    return Gathered(
        server=server,
        vms={moref: replace(vm, missing_privileges=missing.get(moref)) for moref, vm in facts.items()},
        hosts={row.moref: _host_facts(row, session) for row in of_kind["HostSystem"]},
        datastores={row.moref: _datastore_facts(row) for row in of_kind["Datastore"]},
        datastores_of=datastores_of,
    )


def _one_pass(session: VcenterSession, vms: Sequence[str]) -> list[Row]:
    content = session.content
    paths = [*_VM_PATHS, *(path for path, since in _VM_PATHS_SINCE.items() if session.api_version >= since)]
    wanted: dict[type[ManagedObject], Sequence[str]] = {
        vim.VirtualMachine: paths,
        vim.HostSystem: _HOST_PATHS,
        vim.Datastore: _DATASTORE_PATHS,
        vim.Task: _TASK_PATHS,
    }
    tasks = Collector.TraversalSpec(name="tasks", type=vim.VirtualMachine, path="recentTask", skip=False)
    with below_root(content, [vim.HostSystem, vim.Datastore]) as surroundings:
        start = [surroundings]
        start += [
            Collector.ObjectSpec(obj=vim.VirtualMachine(moref, session.stub), skip=False, selectSet=[tasks])
            for moref in vms
        ]
        return list(read_from(content, start, wanted))


def _is_running(row: Row) -> bool:
    return row.get("info.state") in ("queued", "running")


def _morefs(references: Iterable[ManagedObject] | None) -> list[str]:
    return [str(reference._moId) for reference in references or ()]


def _host_facts(row: Row, session: VcenterSession) -> HostFacts:
    return HostFacts(
        moref=row.moref,
        name=str(row.get("name")),
        # A host may call itself by a name that resolves nowhere, e.g. localhost.localdomain.
        address="" if session.is_vcenter else session.server,
        version=_version(row.get("summary.config.product.version")),
        build=str(row.get("summary.config.product.build") or ""),
        connection=str(row.get("runtime.connectionState") or "connected"),
        maintenance=bool(row.get("runtime.inMaintenanceMode")),
    )


def _datastore_facts(row: Row) -> DatastoreFacts:
    mounts = row.get("host") or ()
    return DatastoreFacts(
        moref=row.moref,
        name=str(row.get("name")),
        kind=str(row.get("summary.type") or ""),
        accessible=row.get("summary.accessible") is not False,
        maintenance=str(row.get("summary.maintenanceMode") or "normal"),
        free=row.get("summary.freeSpace"),
        hosts=[str(mount.key._moId) for mount in mounts if mount.mountInfo.accessible is not False],
    )


def _version(text: object) -> Version | None:
    numbers = [int(part) for part in str(text or "").split(".") if part.isdigit()]
    return tuple(numbers) or None


async def _server_facts(session: VcenterSession) -> ServerFacts:
    about = session.content.about
    return ServerFacts(
        name=session.server,
        is_vcenter=session.is_vcenter,
        version=_version(about.version) or session.api_version,
        api_version=session.api_version,
        clock_ahead_s=await session.call("CurrentTime", lambda: _clock_ahead_s(session)),
        editions=None if session.is_vcenter else await _editions(session),
    )


def _clock_ahead_s(session: VcenterSession) -> float:
    """Against the middle of the call, so that a slow answer is no difference."""
    before = time.time()
    theirs = vim.ServiceInstance("ServiceInstance", session.stub).CurrentTime()
    return float(theirs.timestamp() - (before + time.time()) / 2)


async def _editions(session: VcenterSession) -> Sequence[str] | None:
    manager = session.content.licenseManager
    if manager is None:
        return None
    try:
        row = await session.properties(manager, ["licenses"])
    except ConnectionLost:
        raise
    except VsphereError as exc:  # licences are for administrators
        log.info("the licences of %s cannot be read: %s", session.server, exc.problem)
        return None
    return [licence.editionKey for licence in row.get("licenses") or ()]


async def _missing_privileges(
    session: VcenterSession, datastores_of: Mapping[str, Sequence[str]]
) -> Mapping[str, frozenset[str]]:
    """By VM: what the account lacks on it, on its datastores and on the root folder. Empty when it is not known."""
    manager, sessions = session.content.authorizationManager, session.content.sessionManager
    if manager is None or sessions is None:
        return {}

    def lacking(entities: list[vim.ManagedEntity], names: Sequence[str]) -> dict[str, frozenset[str]]:
        login = sessions.currentSession
        if login is None:
            raise vim.fault.NotAuthenticated  # the session renews itself and asks again
        found = manager.HasPrivilegeOnEntities(entities, login.key, list(names))
        return {
            str(one.entity._moId): frozenset(
                available.privId for available in one.privAvailability if not available.isGranted
            )
            for one in found
        }

    def ask() -> dict[str, frozenset[str]]:
        vms: list[vim.ManagedEntity] = [vim.VirtualMachine(moref, session.stub) for moref in datastores_of]
        places = dict.fromkeys(moref for morefs in datastores_of.values() for moref in morefs)
        datastores: list[vim.ManagedEntity] = [vim.Datastore(moref, session.stub) for moref in places]
        on_vm = lacking(vms, _ON_VM) if vms else {}
        on_datastore = lacking(datastores, _ON_DATASTORE) if datastores else {}
        on_root = frozenset().union(*lacking([session.content.rootFolder], _ON_ROOT).values())
        return {
            vm: on_vm.get(vm, frozenset()).union(on_root, *(on_datastore.get(one, ()) for one in morefs))
            for vm, morefs in datastores_of.items()
        }

    try:
        return await session.call("HasPrivilegeOnEntities", ask)
    except ConnectionLost:
        raise
    except VsphereError as exc:  # this needs System.View on the root
        log.info("the privileges of the account cannot be read: %s", exc.problem)
        return {}
