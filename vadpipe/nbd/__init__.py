"""Disks of an NBD server, read and written: qemu-nbd, nbdkit and its plugins, or any other.

protocol    messages of both directions and the handshake, without I/O
link        a socket, plain or in TLS
connection  one connection, with requests in flight
client      Nbd (settings), NbdDisk
bitmaps     Bitmaps: QEMU's dirty bitmaps in the place of change tracking
writer      open_for_writing, NbdWriter
"""

from .bitmaps import Bitmaps, new_bitmap
from .client import Nbd, NbdDisk, NbdError

__all__ = ["Bitmaps", "Nbd", "NbdDisk", "NbdError", "new_bitmap"]
