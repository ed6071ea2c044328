"""Single files and trees out of the disks of a restore point, without root.

point       the volumes of a point               contract             what readers give: FileSystem, Entry, Content
volumes     partitions and logical volumes       ext, ntfs, xfs, fat  readers: the libraries of the extra `files`
partitions  MBR and GPT                          guestfish            a reader: libguestfs as a child process
lvm         logical volumes of LVM               translation          errors of the libraries
signatures  what a volume is                     copying              files and trees to a target
sources     bytes for libraries                  target               directories that nothing is written outside of
"""

from .contract import Content, Entry, FileSystem, Kind, NotThere, Stream, Unreadable
from .copying import Copied, copy
from .point import PointVolumes, open_volumes
from .readers import Readers, volume_readers
from .volumes import Place, Volume, find_place

__all__ = [
    "Content",
    "Copied",
    "Entry",
    "FileSystem",
    "Kind",
    "NotThere",
    "Place",
    "PointVolumes",
    "Readers",
    "Stream",
    "Unreadable",
    "Volume",
    "copy",
    "find_place",
    "open_volumes",
    "volume_readers",
]
