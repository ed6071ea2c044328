"""What is wrong with stored bytes."""

from __future__ import annotations


class Damage(Exception):
    """A phrase like 'its checksum is wrong'. Whoever knows the file, the position and the disk that is hit makes an
    IntegrityError of it; this one never leaves the package."""
