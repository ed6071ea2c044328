"""A restore point as block devices: each of its disks is an export of an NBD server.

point    serve_point: the disks of a point, served      disk     a disk of a point, read-only
frames   decoded frames, shared by disks and clients    overlay  what clients change, thrown away or kept
                                                        qcow2    the tables and the header of an image

The server itself is `vadpipe.nbd.server`; it serves anything that is a `vadpipe.nbd.export.Export`.
"""

from .disk import PointDisk
from .frames import DecodedFrames, decoded_frames
from .overlay import Overlay, discarded_overlay, kept_overlay
from .point import serve_point

__all__ = [
    "DecodedFrames",
    "Overlay",
    "PointDisk",
    "decoded_frames",
    "discarded_overlay",
    "kept_overlay",
    "serve_point",
]
