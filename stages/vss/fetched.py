"""What fetching a manifest gave, whatever it was fetched from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchedManifest:
    """A manifest's bytes, or why there are none. `path` is where it is, when that is known.

    Without content, `absent` tells the cases apart: True, there is none; False, it could not be fetched, or nobody
    could look for it. The difference matters: no manifest means a crash-consistent snapshot, an unreachable one
    means that nothing is known.
    """

    content: bytes | None
    reason: str
    path: str | None
    absent: bool = False
