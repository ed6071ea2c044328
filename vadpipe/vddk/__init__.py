"""Disks read through VDDK, each in a child process of its own.

disk          Vddk (settings), VddkDisk                  abi       the library's binary interface
access        VmAccess, DiskAccess: what, and who we are
calls         one call in a child of its own: locks, clean-up
connection    one disk kept open, children replaced      codes     its error codes: meaning, remedy
requests      reads waiting and in flight                failures  its failures as our errors
client        one child process, our end                 library   where it is installed, its settings
child         the child's program, and child_log        wire      the messages in between
limits        timeouts, depth, restarts                  tally     counts and call times
"""

from .access import DiskAccess, VmAccess
from .disk import CleanedUp, Vddk, VddkDisk
from .library import find_library
from .tally import VddkStatistics

__all__ = [
    "CleanedUp",
    "DiskAccess",
    "Vddk",
    "VddkDisk",
    "VddkStatistics",
    "VmAccess",
    "find_library",
]
