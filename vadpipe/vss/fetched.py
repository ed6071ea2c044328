"""What fetching a manifest gave, whatever it was fetched from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ManifestKind(Enum):
    """VSS_ZIP comes from Windows guests, LINUX_XML from Linux guests: it names a provider, no writers."""

    VSS_ZIP = "vss zip"
    LINUX_XML = "linux quiesce manifest"


@dataclass(frozen=True, slots=True)
class FetchAttempt:
    """One way by which the manifest was to be had. `problem`: why it failed, empty when it worked; `remark`: what
    it left behind on purpose."""

    way: str
    problem: str = ""
    remark: str = ""

    def as_dict(self) -> dict[str, str]:
        told = {"way": self.way, "problem": self.problem, "remark": self.remark}
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True)
class FetchedManifest:
    """A manifest's bytes, or why there are none. `path` is where it is, when that is known.

    Without content, `absent` tells the cases apart: True, there is none; False, it could not be fetched, or nobody
    could look for it. The difference matters: no manifest means a crash-consistent snapshot, an unreachable one
    means that nothing is known. `attempts`: the ways that were tried, in order.
    """

    content: bytes | None
    reason: str
    path: str | None
    absent: bool = False
    kind: ManifestKind = ManifestKind.VSS_ZIP
    attempts: Sequence[FetchAttempt] = ()
