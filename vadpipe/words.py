"""What all messages share: counted nouns, and text that is safe to print."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """'1 disk', '2 disks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """The text without characters that move a terminal's cursor or change what it shows."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
