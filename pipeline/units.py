"""Byte units, and the two sizes that everything is a whole number of."""

from __future__ import annotations

from typing import Final

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40
UNITS: Final = {"B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}

# What guest file systems allocate: the default cluster of NTFS and the block of ext4 and XFS.
CLUSTER: Final = 4 * KiB

# One span: the unit that flows. A thread trip costs 0.2 ms of CPU and a channel hop 18 us (docs/design.md),
# so 4 MiB keeps both below one part in a hundred of the compression of the same bytes.
SPAN: Final = 4 * MiB


def format_size(size: float) -> str:
    """Bytes for people, in binary units: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
