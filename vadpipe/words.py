"""Small words of messages."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: '1 disk', '2 disks'."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
