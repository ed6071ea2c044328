"""Disks read through VDDK, each in a child process of its own.

disk          Vddk (settings), DiskAccess, VddkDisk      abi       the library's binary interface
connection    one disk kept open, children replaced      codes     its error codes: meaning, remedy
requests      reads waiting and in flight                failures  its failures as our errors
client        one child process, our end                 library   where it is installed, its settings
child         the child's program                        wire      the messages in between
limits        timeouts, depth, restarts                  tally     counts and call times
"""

from .disk import DiskAccess, Vddk, VddkDisk
from .library import find_library
from .tally import VddkStatistics

__all__ = ["DiskAccess", "Vddk", "VddkDisk", "VddkStatistics", "find_library"]
