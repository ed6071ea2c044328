"""The text descriptor of a VMDK: made, looked up and edited.

Source: VMware's "Virtual Disk Format 5.0" note. A redo log names its parent twice: by file name
(`parentFileNameHint`) and by content (`parentCID` must be the parent's `CID`). So a file's CID must stay
while it has children, and changes with the first write after that.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from uuid import UUID

SECTOR = 512
NO_PARENT = "ffffffff"

# What a SCSI disk reports where nobody chose a geometry.
_HEADS, _TRACK_SECTORS = 255, 63


@dataclass(frozen=True)
class Parent:
    """What a redo log hangs on: a file in the same directory, and the CID it has."""

    file_name: str
    cid: str


def new_cid() -> str:
    """A content id: eight hexadecimal digits, neither of the two reserved values."""
    return f"{1 + secrets.randbelow(0xFFFF_FFFD):08x}"


def descriptor_text(
    *, create_type: str, extent: str, capacity: int, uuid: UUID, parent: Parent | None = None
) -> str:
    """A whole descriptor. `extent` is its one extent line without access and size, `capacity` in bytes."""
    sectors = capacity // SECTOR
    digits = [f"{byte:02x}" for byte in uuid.bytes]
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={new_cid()}",
        f"parentCID={parent.cid if parent else NO_PARENT}",
        f'createType="{create_type}"',
        *([f'parentFileNameHint="{parent.file_name}"'] if parent else []),
        "",
        "# Extent description",
        f"RW {sectors} {extent}",
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{max(1, sectors // (_HEADS * _TRACK_SECTORS))}"',
        f'ddb.geometry.heads = "{_HEADS}"',
        f'ddb.geometry.sectors = "{_TRACK_SECTORS}"',
        f'ddb.uuid = "{" ".join(digits[:8])}-{" ".join(digits[8:])}"',
        'ddb.virtualHWVersion = "19"',
        "",
    ]
    return "\n".join(lines)


def field(text: str, key: str) -> str:
    """The value of a line `key=value`, without quotes."""
    found = re.search(rf'^{re.escape(key)}\s*=\s*"?([^"\n]*)"?$', text, re.MULTILINE)
    if found is None:
        raise ValueError(f"the descriptor has no {key}")
    return found[1]


def with_field(text: str, key: str, value: str) -> str:
    """The descriptor with another value of an existing line `key=value`; quotes stay."""
    return re.sub(
        rf'^({re.escape(key)}\s*=\s*"?)[^"\n]*',
        lambda found: found[1] + value,
        text,
        count=1,
        flags=re.MULTILINE,
    )
