"""QEMU's dirty bitmaps in the place of change tracking.

A bitmap records what is written since it was started. Between two backups it is frozen: stopped at the very moment
from which the second one is read. At the same moment the next bitmap is started, whose name stands for that moment:
it is the change id of the backup. So what changed since a change id is the union of the frozen bitmaps from the one
of that name on, where each was started when the one before it was stopped.

NBD tells names and bits of bitmaps, not who cleared one and when. A bitmap that was cleared, or removed and started
again under its name, would miss an interval and nobody could see it. Therefore a name has to contain a UUID, as
`new_bitmap` makes them, and is never used for a second moment. Where the bitmap of the previous backup is not
offered, the disk is read in full.

Source: https://qemu-project.gitlab.io/qemu/interop/bitmaps.html; the meta context `qemu:dirty-bitmap:NAME` of
docs/interop/nbd.txt in QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from pipeline.errors import ChangeTrackingInvalid, ConfigError

CONTEXT: Final = "qemu:dirty-bitmap:"
DIRTY: Final = 1  # flag of an extent in that context
_UUID: Final = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)


def new_bitmap() -> str:
    """A name for a bitmap that nobody used before."""
    return f"vadpipe-{uuid4()}"


@dataclass(frozen=True)
class Bitmaps:
    """The dirty bitmaps of a VM's disks at one moment; each disk has those names. Settings only.

    Args:
        started: The bitmap that was started at the moment from which the exports are read. It becomes the change
            id. Empty: the next backup has no change id to start from, and reads everything.
        frozen: The bitmaps that the exports offer, oldest first. Each was started when the one before it was
            stopped, and the last was stopped at the moment of `started`.

    Raises:
        ConfigError: A name contains no UUID, or stands for two moments.
    """

    started: str = ""
    frozen: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.frozen, str):
            raise ConfigError("frozen= must be a list.", remedy=f"Give a list: frozen=[{self.frozen!r}].")
        names = [*self.frozen, *([self.started] if self.started else [])]
        for name in names:
            if not _UUID.search(name):
                raise ConfigError(
                    f"The bitmap {name!r} has no UUID in its name, so it may have been cleared and started again.",
                    remedy="Start a bitmap of a new name at each backup; vadpipe.nbd.new_bitmap() makes one.",
                )
        if len(set(names)) < len(names):
            raise ConfigError(
                "A bitmap stands for two moments: its name is given twice.",
                remedy="A bitmap that was frozen is not started again; start one of a new name.",
            )

    @property
    def change_id(self) -> str | None:
        """The change id of a backup at this moment."""
        return f"{CONTEXT}{self.started}" if self.started else None

    @property
    def contexts(self) -> list[str]:
        """The meta contexts of the frozen bitmaps."""
        return [f"{CONTEXT}{name}" for name in self.frozen]

    def since(self, change_id: str) -> list[str]:
        """The contexts that together tell what changed since a change id. Raises ChangeTrackingInvalid."""
        if change_id not in self.contexts:
            raise ChangeTrackingInvalid(
                f"The bitmap of the previous point, {change_id.removeprefix(CONTEXT)!r}, is not among the frozen "
                f"ones ({', '.join(self.frozen) or 'there are none'})."
            )
        return self.contexts[self.contexts.index(change_id) :]
