"""Faults of the vSphere API by name, with whatever the schema requires of them filled in."""

from __future__ import annotations

from datetime import UTC, datetime

from pyVmomi import VmomiSupport, vim, vmodl

from .injection import FaultMaker

# What a call about a VM and its snapshots may meet, in the field or by the API reference.
FAULT_KINDS = (
    "AlreadyExists", "AlreadyUpgraded", "ApplicationQuiesceFault", "CannotAccessFile", "ConcurrentAccess",
    "DeviceNotFound", "DiskHasPartitions", "DuplicateName", "FileAlreadyExists", "FileFault", "FileLocked",
    "FileNotFound", "FileTooLarge", "FilesystemQuiesceFault", "GenericVmConfigFault", "HostCommunication",
    "HostConnectFault", "HostNotConnected", "HostNotReachable", "InsufficientResourcesFault", "InvalidArgument",
    "InvalidDatastore", "InvalidName", "InvalidPowerState", "InvalidProperty", "InvalidRequest",
    "InvalidSnapshotFormat", "InvalidState", "ManagedObjectNotFound", "MemorySnapshotOnIndependentDisk",
    "MethodDisabled", "MultipleSnapshotsNotSupported", "NoDiskSpace", "NoPermission", "NotAuthenticated",
    "NotEnoughLicenses", "NotImplemented", "NotSupported", "OutOfBounds", "QuestionPending", "RequestCanceled",
    "ResourceInUse", "RestrictedVersion", "SecurityError", "SnapshotDisabled", "SnapshotFault",
    "SnapshotIncompatibleDeviceInVm", "SnapshotLocked", "SnapshotNoChange", "SystemError", "TaskInProgress",
    "Timedout", "ToolsUnavailable", "TooManySnapshotLevels", "UnexpectedFault", "VmConfigFault",
)  # fmt: skip

# What the calls of a restore may meet besides.
RESTORE_FAULT_KINDS = (
    "DeviceNotFound", "DeviceUnsupportedForVmVersion", "FileTooLarge", "InaccessibleDatastore", "InvalidController",
    "InvalidDatastorePath", "InvalidDeviceBacking", "InvalidDeviceOperation", "InvalidDeviceSpec",
    "InvalidDiskFormat", "InvalidFolder", "InvalidVmConfig", "MethodNotFound", "MissingController",
    "UnsupportedGuest", "VirtualHardwareVersionNotSupported",
)  # fmt: skip


def fault_maker(name: str) -> FaultMaker:
    """Makes faults of this type. Raises KeyError for one that the API does not have."""
    for namespace in (vim.fault, vmodl.fault, vmodl.query):
        kind = getattr(namespace, name, None)
        if kind is not None:
            return lambda: _filled(kind)
    raise KeyError(name)


def _filled(kind: type) -> vmodl.MethodFault:
    fault = filled(kind)
    assert isinstance(fault, vmodl.MethodFault)
    fault.msg = f"The lab was told to fail with {kind.__name__.rpartition('.')[2]}."
    return fault


def filled(kind: type, **given: object) -> object:
    """A data object with whatever the schema requires of it, where it is not given."""
    required = {
        one.name: _sample(one.type)
        for one in kind._GetPropertyList()  # type: ignore[attr-defined]
        if not one.flags & VmomiSupport.F_OPTIONAL and one.name not in given
    }
    return kind(**required, **given)


def _sample(kind: type) -> object:
    """Any valid value of a type of the schema."""
    if kind is type:
        return vim.VirtualMachine
    if issubclass(kind, VmomiSupport.ManagedObject):
        return kind("vm-1")
    if issubclass(kind, vmodl.MethodFault):
        return vmodl.MethodFault()
    if issubclass(kind, VmomiSupport.DataObject):
        return filled(kind)
    if issubclass(kind, list):
        return kind([_sample(kind.Item)])  # type: ignore[attr-defined]
    if issubclass(kind, VmomiSupport.Enum):
        return kind(kind.values[0])  # type: ignore[attr-defined]
    if issubclass(kind, datetime):
        return datetime.now(UTC)
    return kind()
