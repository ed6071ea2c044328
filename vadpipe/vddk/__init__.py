"""Disks read and written through VDDK, each in a child process of its own.

disk          Vddk (settings), the open disks            abi       the library's binary interface
access        VmAccess, DiskAccess: which VM, which login  codes   its error codes: meaning, remedy
connection    one disk kept open, children replaced      errors    its failures as our errors
requests      what waits and what is in flight           library   where it is installed, its settings
client        one child process, our end; single calls   wire      the messages in between
child         the child's program, and child_log         ledger    what a lost connection may take back
writing       a connection that writes
"""

from .access import DiskAccess, VmAccess
from .connection import VddkStatistics
from .disk import CleanedUp, Vddk, VddkDisk, WritableVddkDisk
from .library import find_library

__all__ = [
    "CleanedUp",
    "DiskAccess",
    "Vddk",
    "VddkDisk",
    "VddkStatistics",
    "VmAccess",
    "WritableVddkDisk",
    "find_library",
]
