"""The plan of a restore: what becomes of every field, setting and device of the saved VM, and what forbids it.

A kernel: everything that it knows of the target is in `Site`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .plan_values import After as After
from .plan_values import BootEntry as BootEntry
from .plan_values import Decision as Decision
from .plan_values import Net as Net
from .plan_values import Place as Place
from .plan_values import PlannedDisk as PlannedDisk
from .plan_values import PointDisk as PointDisk
from .plan_values import Problem as Problem
from .plan_values import RestorePlan as RestorePlan
from .plan_values import Site as Site
from .plan_values import Store as Store
from .plan_values import StoredDiskFacts as StoredDiskFacts
from .plan_values import Wanted as Wanted
from .saved import SavedVm


def plan_restore(saved: SavedVm, wanted: Wanted, site: Site, disks: Sequence[StoredDiskFacts]) -> RestorePlan:
    """Decide what the new VM will be.

    Args:
        saved: The VM as its point knows it.
        wanted: What the user asks for.
        site: What the target has.
        disks: The disks of the point that are restored.

    Returns:
        The plan. Its `problems` say what forbids the restore; nothing is raised for them.
    """
    raise NotImplementedError
