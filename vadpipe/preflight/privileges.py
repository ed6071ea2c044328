"""The privileges that jobs need: one table for the rules, for documentation, and for scripts that make a role.

Source: vSphere API reference, required privileges of each method; vSphere documentation, HTTPS access to
datastores; VDDK programming guide, PrepareForAccess and EndAccess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from vadpipe.rules import Outcome, RuleTable, Severity, Unknown, Violation

from .facts import Case, VmFacts

Place = Literal["VM", "datastore", "root", "proxy VM"]
Script = Literal["govc", "powercli"]

ROLE = "vadpipe-backup"
_ROLES = "vSphere API reference, required privileges"
_GRANT = "Give the account's role that privilege on the VM, or on a folder above it with propagation."


@dataclass(frozen=True)
class Purpose:
    """Privileges that belong together.

    Args:
        id: Short name.
        names: Ids of privileges, as the vSphere API writes them.
        place: The object on which they are needed; a permission on a folder above it with propagation will do.
        needed: When a job needs them, as a clause.
    """

    id: str
    names: tuple[str, ...]
    place: Place
    needed: str


PURPOSES = (
    Purpose(
        "snapshot", ("VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"), "VM",
        "always: to create and remove the snapshot",
    ),
    Purpose(
        "read", ("VirtualMachine.Provisioning.DiskRandomRead", "VirtualMachine.Provisioning.GetVmFiles"), "VM",
        "always: to read disks through VDDK",
    ),
    Purpose(
        "tracking", ("VirtualMachine.Config.ChangeTracking",), "VM",
        "with enable_change_tracking=True, or for vadpipe prepare --enable-change-tracking",
    ),
    Purpose(
        "manifest", ("Datastore.Browse", "Datastore.FileManagement"), "datastore",
        "with quiescing: to fetch the VSS manifest",
    ),
    Purpose(
        "lock", ("Global.DisableMethods", "Global.EnableMethods"), "root",
        "through a vCenter: to keep the VM from being moved while it is read",
    ),
    Purpose(
        "hotadd",
        (
            "VirtualMachine.Config.AddExistingDisk",
            "VirtualMachine.Config.RemoveDisk",
            "VirtualMachine.Config.AddRemoveDevice",
        ),
        "proxy VM", "where hot-add may be used: to attach disks to the VM that vadpipe runs on",
    ),
    Purpose(
        "prepare",
        (
            "VirtualMachine.Config.AdvancedConfig",
            "VirtualMachine.Interact.PowerOff",
            "VirtualMachine.Interact.PowerOn",
        ),
        "VM", "for vadpipe prepare --enable-uuid",
    ),
    Purpose(
        "guest", ("VirtualMachine.GuestOperations.Query", "VirtualMachine.GuestOperations.Modify"), "VM",
        "where the configuration checks or changes settings inside the guest",
    ),
)  # fmt: skip
PRIVILEGES = {purpose.id: purpose.names for purpose in PURPOSES}


def role_script(script: Script, role: str = ROLE) -> list[str]:
    """Commands that make a role with every privilege of the table and grant it to an account at the root.

    The Global privileges have effect at the root only, so the permission is set there, with propagation.
    """
    names = [name for purpose in PURPOSES for name in purpose.names]
    if script == "govc":
        return [
            f"govc role.create {role} {' '.join(names)}",
            f"govc permissions.set -principal 'DOMAIN\\ACCOUNT' -role {role} -propagate=true /",
        ]
    ids = ",".join(f"'{name}'" for name in names)
    return [
        f"New-VIRole -Name '{role}' -Privilege (Get-VIPrivilege -Id {ids})",
        f"New-VIPermission -Entity (Get-Folder -NoRecursion) -Principal 'DOMAIN\\ACCOUNT' -Role '{role}' "
        "-Propagate:$true",
    ]


RULES: RuleTable[Case, Violation] = RuleTable()


def _lacking(
    purpose: str,
    applies: Callable[[Case], bool],
    *,
    vm: Callable[[Case], VmFacts | None] = lambda case: case.vm,
) -> Callable[[Case], Iterator[Outcome]]:
    def lacking(case: Case) -> Iterator[Outcome]:
        judged = vm(case)
        if judged is None or not applies(case):
            return
        if judged.missing_privileges is None:
            yield Unknown("the server does not tell which privileges the account has")
            return
        subject = "" if judged is case.vm else judged.name
        for privilege in PRIVILEGES[purpose]:
            if privilege in judged.missing_privileges:
                may_pass = purpose == "hotadd" and not case.only("hotadd")
                yield Violation(f"the account lacks {privilege}", subject, may_pass)

    return lacking


RULES.rule(
    "privilege-snapshot", Severity.ERROR, wanted="the account may create and remove snapshots", remedy=_GRANT,
    source=_ROLES,
)(_lacking("snapshot", lambda case: True))  # fmt: skip

RULES.rule(
    "privilege-read", Severity.ERROR, wanted="the account may read disks", remedy=_GRANT, source=_ROLES,
)(_lacking("read", lambda case: case.job.vddk is not None))  # fmt: skip

RULES.rule(
    "privilege-tracking", Severity.WARNING, wanted="the account may enable change tracking", remedy=_GRANT,
    source=_ROLES,
)(_lacking("tracking", lambda case: case.job.enable_change_tracking and not case.vm.change_tracking))  # fmt: skip

RULES.rule(
    "privilege-manifest", Severity.ERROR, wanted="the account may fetch the VSS manifest from the datastore",
    remedy="Give the account's role that privilege on the datastore: without the manifest quiescing is not proved.",
    source="vSphere documentation, HTTPS access to datastores", tags={"quiescing"},
)(_lacking("manifest", lambda case: case.quiesces))  # fmt: skip

RULES.rule(
    "privilege-lock", Severity.INFO, wanted="the account may keep the VM from being moved while it is read",
    remedy="Give the account's role that privilege on the vCenter's root; a permission below it has no effect.",
    source="VDDK programming guide, PrepareForAccess and EndAccess",
)(_lacking("lock", lambda case: case.server.is_vcenter and case.job.vddk is not None))  # fmt: skip

RULES.rule(
    "privilege-hotadd", Severity.ERROR, wanted="the account may attach disks to the VM that vadpipe runs on",
    remedy="Give the account's role that privilege on the proxy VM, or name transports without hotadd.",
    source=_ROLES,
)(
    _lacking(
        "hotadd",
        lambda case: case.job.vddk is not None and (not case.transports or "hotadd" in case.transports),
        vm=lambda case: case.proxy.vm if case.proxy else None,
    )
)  # fmt: skip
