"""Disks of an NBD server, read and written: qemu-nbd, nbdkit and its plugins, or any other. And a server of disks.

protocol    messages of both directions and the client's handshake, without I/O
link        a socket, plain or in TLS

connection  one connection, with requests in flight     export       what a server offers
client      Nbd (settings), NbdDisk                     negotiation  the server's handshake, without I/O
bitmaps     QEMU's dirty bitmaps                        session      one client: requests in, replies out
writer      open_for_writing, NbdWriter                 replies      the bytes of replies, without I/O
                                                        outbox       replies on their way out
                                                        server       serve: listening, TLS, limits
"""

from .bitmaps import Bitmaps, new_bitmap
from .client import Nbd, NbdDisk, NbdError

__all__ = ["Bitmaps", "Nbd", "NbdDisk", "NbdError", "new_bitmap"]
