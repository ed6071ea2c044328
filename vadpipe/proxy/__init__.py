"""Whether this machine is fit to be a backup proxy, and what makes it so.

report         transports, findings with their fixes      windows_rules  WindowsFacts and their rules
settings       what harden may change, and the plan       linux_rules    LinuxFacts and their rules
lvm, linux_config  kernels over Linux configuration       machine        the machine this process runs on
windows, linux     facts, settings read and written       command        programs of the operating system
harden         make the changes and take them back        undo           the file with the former values

A disk that is hot-added to a proxy is a guest's disk. Whatever mounts, activates or assembles it by itself writes
to it, or keeps it from being detached. Everything here blocks: call it from a worker thread.
"""

from .harden import Undone, harden, undo
from .machine import Machine, this_machine
from .report import Report, Transport
from .settings import Change, plan

__all__ = ["Change", "Machine", "Report", "Transport", "Undone", "harden", "plan", "this_machine", "undo"]
