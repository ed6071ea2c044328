"""What a restore point says of its VM, whichever version of vadpipe or kind of machine it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyVmomi import vim

from vadpipe.repository.restore_point import RestorePoint


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
        api_version: The version that the answer was asked with; empty when unknown.
        unknown: Names of types in it that this version does not know.
        folder: The inventory path of its folder; empty when unknown. Likewise `pool`, `host`, `cluster`.
        disks: Its disks.
        networks: The network of each NIC, by its device key.
        nvram: The point holds its firmware variables.
        tags: As (category, name).
        attributes: Custom attributes by name.
        key_provider: The provider of the keys that it was encrypted with; empty when it was not.
        secrets: Keys of settings whose values were not stored.
    """

    name: str
    config: vim.vm.ConfigInfo = field(repr=False)
    source: str
    api_version: str = ""
    unknown: Sequence[str] = ()
    folder: str = ""
    pool: str = ""
    host: str = ""
    cluster: str = ""
    disks: Sequence[SavedDisk] = ()
    networks: Mapping[int, SavedNetwork] = field(default_factory=dict)
    nvram: bool = False
    tags: Sequence[tuple[str, str]] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    key_provider: str = ""
    secrets: Sequence[str] = ()


# The documents of a point that `saved_vm` reads where the point has them.
DOCUMENTS: Sequence[str] = ("vm-config.xml", "vm.vmx")


def saved_vm(point: RestorePoint, documents: Mapping[str, bytes]) -> SavedVm:
    """The VM of a point.

    Args:
        point: The point.
        documents: The contents of those documents of the point that `DOCUMENTS` names.

    Raises:
        IntegrityError: The stored configuration cannot be parsed.
    """
    raise NotImplementedError
