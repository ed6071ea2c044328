"""Writing a descriptor: the text that names the extents of a new disk, and what a hypervisor must know of it.

Source: VMware technical note "Virtual Disk Format 5.0", sections "The Descriptor File" and "The Disk Database".
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import ConfigError
from pipeline.units import GiB

from .descriptor import NO_PARENT, SECTOR

# The controllers that a descriptor names; newer ones (PVSCSI, SATA, NVMe) are written as lsilogic by VMware too.
ADAPTERS: Final = frozenset({"ide", "buslogic", "lsilogic", "legacyESX"})

# The largest geometry of a disk: cylinders of an IDE disk and of a SCSI disk. What lies behind it is reached by
# block addresses.
_IDE_CYLINDERS: Final = 16383
_CYLINDERS: Final = 65535


@dataclass(frozen=True)
class WrittenExtent:
    """An extent line: `length` in bytes, `kind` is SPARSE or FLAT, `name` its file."""

    length: int
    kind: str
    name: str

    def line(self) -> str:
        sectors = self.length // SECTOR
        return f'RW {sectors} {self.kind} "{self.name}"' + (" 0" if self.kind == "FLAT" else "")


def _random_content_id() -> int:
    return secrets.randbelow(NO_PARENT - 1) + 1  # neither 0 nor the one that says that there is no parent


@dataclass(frozen=True)
class DiskFacts:
    """What a descriptor says of a disk besides its extents.

    Args:
        adapter: One of ADAPTERS.
        hardware_version: Number of the virtual hardware, e.g. 13; 4 is understood by every product.
        uuid: The UUID of the disk as VMware writes it ('60 00 C2 9e ...'); empty: none is written.
        content_id: A number that changes whenever the content does.
        thin: Whether the disk is thin on a datastore.
    """

    adapter: str = "lsilogic"
    hardware_version: int = 4
    uuid: str = ""
    content_id: int = field(default_factory=_random_content_id)
    thin: bool = True

    def __post_init__(self) -> None:
        if self.adapter not in ADAPTERS:
            raise ConfigError(
                f"adapter={self.adapter!r} is no adapter of a VMDK.",
                remedy=f"Write one of {', '.join(sorted(ADAPTERS))}.",
            )


def adapter_of(key: str, controller: str = "") -> str:
    """The adapter type for a disk, by its key ('ide0:1') and the API's type of its controller if known."""
    if key.startswith("ide"):
        return "ide"
    return "buslogic" if "BusLogic" in controller else "lsilogic"


def disk_uuid(uuid: str) -> str:
    """A UUID as a descriptor writes it: bytes in hexadecimal, a hyphen in the middle. Empty when it is none."""
    digits = "".join(letter for letter in uuid.lower() if letter in "0123456789abcdef")
    if len(digits) != 32:
        return ""
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    return f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"


def geometry(capacity: int, adapter: str) -> tuple[int, int, int]:
    """(cylinders, heads, sectors) as VMware's products write them: by the size of a SCSI disk, fixed for IDE."""
    sectors = capacity // SECTOR
    if adapter == "ide":
        return min(sectors // (16 * 63), _IDE_CYLINDERS), 16, 63
    heads, per_track = (64, 32) if capacity < GiB else (128, 32) if capacity < 2 * GiB else (255, 63)
    return min(sectors // (heads * per_track), _CYLINDERS), heads, per_track


def describe(create_type: str, capacity: int, extents: Sequence[WrittenExtent], facts: DiskFacts) -> bytes:
    """The text of a descriptor; `capacity` in bytes. Raises ConfigError for a size that no VMDK has."""
    if capacity <= 0 or capacity % SECTOR:
        raise ConfigError(f"A VMDK has whole sectors of {SECTOR} bytes; the disk has {capacity} bytes.")
    cylinders, heads, sectors = geometry(capacity, facts.adapter)
    database = {
        "ddb.virtualHWVersion": facts.hardware_version,
        "ddb.geometry.cylinders": cylinders,
        "ddb.geometry.heads": heads,
        "ddb.geometry.sectors": sectors,
        "ddb.adapterType": facts.adapter,
        **({"ddb.uuid": facts.uuid} if facts.uuid else {}),
        **({"ddb.thinProvisioned": 1} if facts.thin else {}),
    }
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={facts.content_id:08x}",
        f"parentCID={NO_PARENT:08x}",
        f'createType="{create_type}"',
        "",
        "# Extent description",
        *(extent.line() for extent in extents),
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        *(f'{key} = "{value}"' for key, value in database.items()),
        "",
    ]
    return "\n".join(lines).encode()
