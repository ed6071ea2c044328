"""The identity of chunks: how they are named."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3


@dataclass(frozen=True, repr=False)
class Blake3:
    """BLAKE3, keyed with 32 secret bytes of a repository.

    It is collision-resistant also against a guest that writes hostile blocks, and a name tells nothing to those who
    lack the key. 2.7 GB/s per core.

    Source: the BLAKE3 paper, section 2.3, keyed mode.
    """

    key: bytes | None = field(default=None)

    @property
    def name(self) -> str:
        return "blake3"

    def digest(self, data: memoryview) -> bytes:
        """32 bytes."""
        return (blake3(data, key=self.key) if self.key else blake3(data)).digest()

    def __repr__(self) -> str:
        return "Blake3(key=...)" if self.key else "Blake3()"
