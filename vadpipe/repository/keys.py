"""The keys of a repository: one for each purpose, all from its one secret.

One key per purpose keeps purposes apart: bytes that are a map page in one place and guest data in another have
two identities that nobody without the secret can relate. The names below are part of the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

KEY_SIZE = 32


@dataclass(frozen=True)
class Keys:
    """`chunk` is the repository's key itself; the others are its keyed BLAKE3 of 'vadpipe repository <purpose>'."""

    chunk: bytes = field(repr=False)
    frame: bytes = field(repr=False)
    page: bytes = field(repr=False)
    root: bytes = field(repr=False)
    document: bytes = field(repr=False)
    seal: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: bytes) -> Keys:
        def of(purpose: str) -> bytes:
            return blake3(f"vadpipe repository {purpose}".encode(), key=key).digest()

        return cls(key, of("frame"), of("page"), of("root"), of("document"), of("seal"))
