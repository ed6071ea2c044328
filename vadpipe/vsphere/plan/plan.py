"""The plan of a restore: what becomes of every field, setting and device of the saved VM, and what forbids it.

A kernel: everything that it knows of the target is in `Site`. `policy` has the rules, `devices` the devices,
`places` where the VM goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyVmomi import vim

from ..inventory.lookup import escaped
from .devices import boot_order, planned_devices, policy_id
from .fields import planned_fields
from .places import Findings, placed, require_room
from .saved import SavedVm
from .values import (
    After,
    BootEntry,
    Decision,
    Place,
    Problem,
    RestorePlan,
    Site,
    StoredDiskFacts,
    Wanted,
)

# Source: vSphere Web Services API, ManagedEntity.name: at most 80 characters.
_LONGEST_NAME = 80


def plan_restore(saved: SavedVm, wanted: Wanted, site: Site, disks: Sequence[StoredDiskFacts]) -> RestorePlan:
    """Decide what the new VM will be.

    Args:
        saved: The VM as its point knows it.
        wanted: What the user asks for.
        site: What the target has.
        disks: The disks of the point that are restored.

    Returns:
        The plan. Its `problems` say what forbids the restore; nothing is raised for them.
    """
    found = Findings()
    name = wanted.name or saved.name
    places = placed(saved, wanted, site, found)
    _check_name(name, places.folder, found)
    _check_source(saved, wanted, site, found)
    spec = planned_fields(saved, wanted, site, found)
    spec.name = escaped(name)
    if places.datastore is not None:
        spec.files = vim.vm.FileInfo(vmPathName=f"[{places.datastore.name}]")
    devices = planned_devices(saved, wanted, site, disks, places, found)
    spec.deviceChange = devices.changes
    if (policy := policy_id(saved.policy, "VM", saved, site, found)) is not None:
        spec.vmProfile = [vim.vm.DefinedProfileSpec(profileId=policy)]
    require_room(devices.disks, site, found)
    return RestorePlan(
        mode=wanted.mode,
        name=name,
        folder=places.folder,
        pool=places.pool,
        host=places.host,
        datastore=places.datastore,
        spec=spec,
        disks=tuple(devices.disks),
        after=_after(saved, wanted, site, found, boot_order(saved, devices)),
        decisions=tuple(found.decisions),
        problems=tuple(dict.fromkeys(found.problems)),
        warnings=tuple(dict.fromkeys(found.warnings)),
    )


def _check_name(name: str, folder: Place | None, found: Findings) -> None:
    if len(name) > _LONGEST_NAME:
        found.problems.append(
            Problem(
                "name too long",
                f"The name {name!r} has {len(name)} characters, and a VM's has at most {_LONGEST_NAME}.",
                "Give a shorter one with name=.",
            )
        )
    if folder is not None and name in folder.taken:
        found.problems.append(
            Problem(
                "name taken",
                f"The folder {folder.path} already has a {name!r}.",
                "Give another name with name=, or another folder with folder=.",
            )
        )


def _check_source(saved: SavedVm, wanted: Wanted, site: Site, found: Findings) -> None:
    if saved.source == "nothing":
        found.problems.append(
            Problem(
                "no configuration",
                f"The point of {saved.name} holds disks and no configuration of a VM.",
                "Restore the disks to files, and make the VM by hand.",
            )
        )
    if saved.source in ("summary", "vmx"):
        found.warnings.append(
            "The point has a summary of the VM's configuration, not the whole of it: what is not in this plan gets "
            "the defaults of the target."
        )
    if saved.unknown:
        found.warnings.append(
            f"The configuration is from a newer server; this version does not know, and leaves out: "
            f"{', '.join(saved.unknown)}."
        )
    if saved.encrypted and not wanted.drop_encryption:
        provider = saved.key_provider
        known = site.key_providers
        absent = (
            f" The key provider {provider!r} is not on {site.server}."
            if provider and known is not None and provider not in known
            else ""
        )
        found.problems.append(
            Problem(
                "encrypted",
                f"{saved.name} was encrypted; its point holds clear data and no keys, so it comes back without "
                f"encryption.{absent}",
                "Allow that with drop_encryption, and encrypt it afterwards by a storage policy.",
            )
        )


def _after(saved: SavedVm, wanted: Wanted, site: Site, found: Findings, order: Sequence[BootEntry]) -> After:
    def decide(subject: str, kept: bool, old: str, why: str) -> None:
        outcome = "carried" if kept else "left out"
        found.decisions.append(Decision("afterwards", subject, outcome, old, old if kept else "", why))  # type: ignore[arg-type]

    tags = []
    for category, name in saved.tags:
        known = site.tags is not None and (category, name) in site.tags
        why = "It is attached by its name." if known else "The target has no such tag that is visible."
        decide(
            "tag",
            wanted.tags and known,
            f"{category}/{name}",
            why if wanted.tags else "Tags were not wanted.",
        )
        if wanted.tags and known:
            tags.append((category, name))
    attributes = {}
    for name, value in saved.attributes.items():
        known = site.attributes is not None and name in site.attributes
        why = "It is set by its name." if known else "The target has no such custom attribute."
        decide(
            f"attribute {name}",
            wanted.attributes and known,
            value,
            why if wanted.attributes else "Attributes were not wanted.",
        )
        if wanted.attributes and known:
            attributes[name] = value
    nvram = saved.nvram and wanted.nvram == "restore" and not saved.encrypted
    if saved.nvram:
        why = (
            "It holds the boot entries and the certificates of the firmware."
            if nvram
            else "It was encrypted."
            if saved.encrypted
            else "Fresh firmware variables were asked for."
        )
        decide("nvram", nvram, "saved", why)
    elif saved.config.firmware == "efi":
        found.warnings.append(
            "The point has no firmware variables: EFI boot entries are lost, so the VM may need its loader at the "
            "default path."
        )
    tracked = bool(saved.config.changeTrackingEnabled)
    tracking = tracked if wanted.change_tracking is None else wanted.change_tracking
    return After(
        nvram=nvram,
        boot_order=tuple(order),
        tags=tuple(tags),
        attributes=attributes,
        change_tracking=tracking,
        power_on=wanted.power_on,
    )
