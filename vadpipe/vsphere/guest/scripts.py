"""The scripts that VMware Tools run in a guest during quiescing, in their order.

Sources: services/plugins/vmbackup/scriptOps.c of open-vm-tools (places, order, arguments); KB 1006671.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .files import GuestFiles


@dataclass(frozen=True)
class GuestPlaces:
    """Paths in a guest of one kind."""

    tools_conf: str
    pre_freeze: str
    post_thaw: str
    scripts: str
    separator: str


WINDOWS = GuestPlaces(
    r"C:\ProgramData\VMware\VMware Tools\tools.conf",
    r"C:\Windows\pre-freeze-script.bat",
    r"C:\Windows\post-thaw-script.bat",
    r"C:\Program Files\VMware\VMware Tools\backupScripts.d",
    "\\",
)
LINUX = GuestPlaces(
    "/etc/vmware-tools/tools.conf",
    "/usr/sbin/pre-freeze-script",
    "/usr/sbin/post-thaw-script",
    "/etc/vmware-tools/backupScripts.d",
    "/",
)


@dataclass(frozen=True)
class GuestScripts:
    """Paths in the guest, in the order in which they run."""

    freeze: Sequence[str]
    thaw: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.freeze or self.thaw)

    @property
    def paths(self) -> list[str]:
        """All paths, each once."""
        return list(dict.fromkeys([*self.freeze, *self.thaw]))


def in_order(places: GuestPlaces, pre_freeze: bool, post_thaw: bool, names: Sequence[str]) -> GuestScripts:
    """The scripts that run: those at the two old places, and `names` of the directory of scripts."""
    shared = [f"{places.scripts}{places.separator}{name}" for name in sorted(names)]
    return GuestScripts(
        [*([places.pre_freeze] if pre_freeze else []), *shared],
        [*reversed(shared), *([places.post_thaw] if post_thaw else [])],
    )


async def scripts_in(files: GuestFiles) -> GuestScripts:
    """The scripts of a guest. Raises the errors of GuestFiles."""
    places = WINDOWS if files.windows else LINUX
    pre_freeze = await files.names(places.pre_freeze)
    post_thaw = await files.names(places.post_thaw)
    return in_order(places, bool(pre_freeze), bool(post_thaw), await files.names(places.scripts))
