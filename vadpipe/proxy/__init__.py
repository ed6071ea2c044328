"""Whether this machine is fit to be a backup proxy, and what makes it so.

verdict        rules, findings, the report                 windows_rules  WindowsFacts and their rules
settings       what harden may change, and the plan        linux_rules    LinuxFacts and their rules
lvm, multipath, md, udev, mounts                           kernels over the text of Linux configuration
windows, linux facts gathered, settings read and written   machine        the one this process runs on
harden         make the changes, with the way back         undo           the file that knows the way back

A disk that is hot-added to a proxy is a guest's disk. Whatever mounts, activates or assembles it by itself writes
to it, or keeps it from being detached. Everything here blocks: call it from a worker thread.
"""

from .harden import Undone, harden, undo
from .machine import Machine, this_machine
from .settings import Change, plan
from .verdict import (
    Finding,
    Report,
    Severity,
    Transport,
)

__all__ = [
    "Change",
    "Finding",
    "Machine",
    "Report",
    "Severity",
    "Transport",
    "Undone",
    "harden",
    "plan",
    "this_machine",
    "undo",
]
