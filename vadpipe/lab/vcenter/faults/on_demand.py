"""What `/folder` and the manifests of snapshots do when they are told to misbehave; well-behaved by default.

Failures of single requests come by `LabVcenter.inject("/folder", ...)`: `refusing(status)`, `Drop.BEFORE`,
`Drop.AFTER` (half of the file, then the connection breaks), `Delay` (before the first byte, or with `after` in the
middle).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

from pyVmomi import vim

from .injection import Event

Checks = Literal["judging", "unknown method", "missing"]
"""Of the checkers of specs: they judge; they are named, but have no such method; the server has none."""

FolderLogin = Literal["cookie", "basic", "ticket"]


class FolderError(Exception):
    """The request ends with `status`."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def refusing(status: int) -> Event:
    """For `inject("/folder", ...)`: the request ends with this HTTP status."""

    def refuse() -> None:
        raise FolderError(HTTPStatus(status), "The lab was told to refuse.")

    return Event(refuse)


@dataclass
class FolderTraits:
    """`accepts`: ways to log in; `ranges`: whether a part of a file can be asked for; `versions`: whether answers
    carry Last-Modified; `bytes_sent`: of files, until now."""

    accepts: set[FolderLogin] = field(default_factory=lambda: {"cookie", "basic", "ticket"})
    ranges: bool = True
    versions: bool = True
    bytes_sent: int = 0


@dataclass
class LeaseTraits:
    """`timeout_s`: without progress, a lease ends; `reversed`: it names its disks last one first."""

    timeout_s: float = 300
    reversed: bool = True


@dataclass
class ManifestTraits:
    """How the manifests of snapshots come.

    `named`: whether a snapshot's entry tells its manifest; `relative`: by its name alone. `reuse_numbers`: the next
    manifest has the number of the last one, and overwrites it. `file_name`: what it is called, with {vm} and
    {number}. `late`: it is written when `release` is called.
    """

    named: bool = True
    relative: bool = False
    reuse_numbers: bool = False
    file_name: str = "{vm}-vss_manifests{number}.zip"
    late: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)

    def told(self, info: vim.vm.SnapshotInfo | None) -> vim.vm.SnapshotInfo | None:
        """The snapshot tree with the manifests' names as they are to be told."""
        for entry in info.rootSnapshotList if info else ():
            self._tell(entry)
        return info

    def _tell(self, entry: vim.vm.SnapshotTree) -> None:
        for child in entry.childSnapshotList:
            self._tell(child)
        if not self.named:
            entry.backupManifest = None
        elif self.relative and entry.backupManifest:
            entry.backupManifest = entry.backupManifest.rpartition("/")[2]

    def release(self) -> None:
        """Write what was held back."""
        while self.held:
            self.held.pop(0)()
