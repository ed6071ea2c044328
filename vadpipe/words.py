"""Small words of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """'1 disk', '2 disks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
