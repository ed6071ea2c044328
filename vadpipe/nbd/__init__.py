"""Disks read from an NBD server: qemu-nbd, nbdkit and its plugins, or any other.

protocol    messages of both directions and the handshake, without I/O
client      Nbd (settings), NbdDisk
"""

from .client import Nbd, NbdDisk, NbdError

__all__ = ["Nbd", "NbdDisk", "NbdError"]
