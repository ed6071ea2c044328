"""The plan of a restore, made for what a server has, and checked by that server before anything is made.

The server is asked for the privileges of the account and for its own judgement of the configuration. Where it does
not offer one of them there is no verdict, and the restore goes on.

Source: vSphere API reference, required privileges of each method; VDDK programming guide, privileges for writing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pyVmomi import vim

from pipeline.errors import MoverError

from ..api.faults import fault_text
from ..api.session import VcenterSession
from ..api.tasks import wait_for_task
from ..plan.plan import plan_restore
from ..plan.saved import SavedVm
from ..plan.values import Problem, RestorePlan, Site, StoredDiskFacts, Wanted
from .site import abilities_of, site_of

log = logging.getLogger(__name__)

_ON_FOLDER = (
    "VirtualMachine.Inventory.Create",
    "VirtualMachine.Inventory.Delete",
    "VirtualMachine.Config.AddNewDisk",
    "VirtualMachine.Config.AddRemoveDevice",
    "VirtualMachine.Config.AdvancedConfig",
    "VirtualMachine.Config.Settings",
)
# What the ways of writing and of reading a disk need besides.
READING = ("VirtualMachine.Provisioning.DiskRandomRead",)
WRITING = ("VirtualMachine.Provisioning.DiskRandomAccess", *READING)
IMPORTING = ("VApp.Import",)


async def planned(
    session: VcenterSession,
    saved: SavedVm,
    wanted: Wanted,
    disks: Sequence[StoredDiskFacts],
    *,
    privileges: Sequence[str] = WRITING,
) -> RestorePlan:
    """The plan of a restore for this server, with what the server has against it among its problems.

    Args:
        session: The server.
        saved: The VM as its point knows it.
        wanted: What the user asks for.
        disks: The disks that are restored.
        privileges: What the way of writing the disks needs: WRITING, or IMPORTING and perhaps READING.

    Raises:
        MoverError: The server cannot tell what it has.
    """
    site = await site_of(session, saved, wanted)
    plan = plan_restore(saved, wanted, site, disks)
    if plan.pool is not None and plan.pool.owner:
        able = await abilities_of(session, plan.pool.owner, plan.host.moref if plan.host else None)
        site = replace(site, hardware_versions=able.hardware_versions, guest_ids=able.guest_ids)
        plan = plan_restore(saved, wanted, site, disks)
    if (problem := _original_is_there(saved, wanted, site)) is not None:
        plan = replace(plan, problems=[*plan.problems, problem])
    if plan.problems:
        return plan
    problems = await _lacking_privileges(session, plan, site, privileges)
    if not problems:
        problems = await _refused_by_server(session, plan)
    return replace(plan, problems=problems)


def _original_is_there(saved: SavedVm, wanted: Wanted, site: Site) -> Problem | None:
    """A VM that replaces a lost one does not stand beside it: an instance UUID belongs to one VM of a server."""
    there = site.uuids.get(str(saved.config.instanceUuid or "").lower())
    if wanted.mode != "replace" or there is None:
        return None
    return Problem(
        "original is there",
        f"The VM {there} on {site.server} is the one that was saved: it has the instance UUID "
        f"{saved.config.instanceUuid}.",
        "Remove it from the inventory, restore over it with --in-place, or make another VM with mode='copy'.",
    )


async def _lacking_privileges(
    session: VcenterSession, plan: RestorePlan, site: Site, for_disks: Sequence[str]
) -> list[Problem]:
    manager, sessions = session.content.authorizationManager, session.content.sessionManager
    if manager is None or sessions is None:
        return []
    needed = list(_needed(session, plan, site, for_disks))

    def ask() -> list[tuple[str, list[str]]]:
        login = sessions.currentSession
        if login is None:
            raise vim.fault.NotAuthenticated  # the session renews itself and asks again
        found = []
        for name, subject, privileges in needed:
            for one in manager.HasPrivilegeOnEntities([subject], login.key, list(privileges)):
                lacking = [each.privId for each in one.privAvailability if not each.isGranted]
                if lacking:
                    found.append((name, lacking))
        return found

    try:
        lacking = await session.call("HasPrivilegeOnEntities", ask)
    except MoverError as exc:
        if exc.transient:
            raise
        log.info("The privileges of the account cannot be read: %s", exc.problem)
        return []
    return [
        Problem(
            "privilege",
            f"The account {session.user} lacks {', '.join(privileges)} on {name}.",
            "Give its role these privileges there.",
        )
        for name, privileges in lacking
    ]


def _needed(
    session: VcenterSession, plan: RestorePlan, site: Site, for_disks: Sequence[str]
) -> Iterator[tuple[str, vim.ManagedEntity, Sequence[str]]]:
    """What is changed: its name, the object, and the privileges for it. On the folder those for the new VM too."""
    after = plan.after
    if plan.folder is not None:
        more = [
            *(["VirtualMachine.Config.ChangeTracking"] if after.change_tracking else []),
            *(["VirtualMachine.Interact.PowerOn"] if after.power_on else []),
            *(["Global.SetCustomField"] if after.attributes else []),
            *(["InventoryService.Tagging.AttachTag"] if after.tags else []),
        ]
        folder = vim.Folder(plan.folder.moref, session.stub)
        yield f"the folder {plan.folder.path}", folder, [*_ON_FOLDER, *for_disks, *more]
    if plan.pool is not None:
        pool = vim.ResourcePool(plan.pool.moref, session.stub)
        yield f"the resource pool {plan.pool.path}", pool, ["Resource.AssignVMToPool"]
    names: dict[str, str] = {store.moref: store.name for store in site.datastores}
    stores: dict[str, None] = dict.fromkeys(disk.datastore_moref for disk in plan.disks)
    own = plan.datastore.moref if plan.datastore is not None else ""
    for moref in [*([own] if own and own not in stores else []), *stores]:
        privileges = ["Datastore.AllocateSpace"]
        if moref == own and after.nvram:
            privileges += ["Datastore.Browse", "Datastore.FileManagement"]
        yield f"the datastore {names.get(moref, moref)}", vim.Datastore(moref, session.stub), privileges
    for net in _networks_of(plan, site):
        yield f"the network {net[1]}", vim.Network(net[0], session.stub), ["Network.Assign"]


def _networks_of(plan: RestorePlan, site: Site) -> list[tuple[str, str]]:
    """Reference and name of each network that a NIC of the plan is connected to."""
    by_key: Mapping[str, str] = {
        net.ids["portgroup_key"]: net.moref for net in site.networks if "portgroup_key" in net.ids
    }
    names = {net.moref: net.name for net in site.networks}
    found = []
    for change in plan.spec.deviceChange or ():
        backing = getattr(change.device, "backing", None)
        moref: str | None = None
        port = getattr(backing, "port", None)
        if port is not None:
            moref = by_key.get(str(port.portgroupKey))
        elif isinstance(backing, vim.vm.device.VirtualEthernetCard.NetworkBackingInfo):
            moref = str(backing.network._moId) if backing.network is not None else None
        if moref is not None and moref in names:
            found.append(moref)
    return [(moref, names[moref]) for moref in dict.fromkeys(found)]


async def _refused_by_server(session: VcenterSession, plan: RestorePlan) -> list[Problem]:
    """What CheckVmConfig_Task has against the specification. A server that does not offer it has no verdict."""
    checker = session.content.vmCompatibilityChecker
    if checker is None or plan.pool is None:
        return []
    pool = vim.ResourcePool(plan.pool.moref, session.stub)
    host = vim.HostSystem(plan.host.moref, session.stub) if plan.host else None
    try:
        task = await session.call(
            "CheckVmConfig_Task", lambda: checker.CheckVmConfig(plan.spec, None, host, pool, [])
        )
        results = await wait_for_task(session, task, "CheckVmConfig_Task")
    except MoverError as exc:
        if exc.transient:
            raise
        log.info("%s does not judge the configuration: %s", session.server, exc.problem)
        return []
    except (TypeError, AttributeError) as exc:  # an answer that pyVmomi cannot read
        log.info("The server's verdict on the configuration cannot be read: %s", exc)
        return []
    problems = []
    for result in results if isinstance(results, list) else ():
        for fault in getattr(result, "error", None) or ():
            text = fault_text(fault) or type(fault).__name__.rpartition(".")[2]
            problems.append(
                Problem(
                    "refused by the server",
                    f"{session.server} would refuse the new VM: {text.rstrip('.')}.",
                    "Map or leave out what it names.",
                )
            )
    return problems
