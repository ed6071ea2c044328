"""The result of fetching a manifest, whatever it was fetched from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ManifestKind(Enum):
    """VSS_ZIP comes from Windows guests, LINUX_XML from Linux guests: it names a provider, no writers."""

    VSS_ZIP = "vss zip"
    LINUX_XML = "linux quiesce manifest"


# Under which a restore point keeps each kind.
DOCUMENT_NAMES = {ManifestKind.VSS_ZIP: "vss-manifest.zip", ManifestKind.LINUX_XML: "quiesce-manifest.xml"}


@dataclass(frozen=True, slots=True)
class FetchAttempt:
    """One way of fetching that was tried.

    Args:
        way: The name of the way.
        problem: Why it failed; empty when it worked.
        remark: What it left behind on purpose.
    """

    way: str
    problem: str = ""
    remark: str = ""

    def as_dict(self) -> dict[str, str]:
        fields = {"way": self.way, "problem": self.problem, "remark": self.remark}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class FetchedManifest:
    """A manifest's bytes, or why there are none.

    Args:
        content: The bytes; None when there are none.
        reason: Why there are none.
        path: Where it is, when that is known.
        absent: Without content: True when there is no manifest, which means a crash-consistent snapshot; False when
            it could not be looked for or fetched, which means that nothing is known.
        kind: What the content is.
        attempts: The ways that were tried, in order.
    """

    content: bytes | None
    reason: str
    path: str | None
    absent: bool = False
    kind: ManifestKind = ManifestKind.VSS_ZIP
    attempts: Sequence[FetchAttempt] = ()
