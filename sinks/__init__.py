"""Where bytes end, and reading them back.

repository   Repository, IntoRepository, ReadPoint: restore points in a directory
raw          RawFile, a sparse image       null   NullSink, for measuring
restore      a point back to raw images, every disk proved
"""

from vadpipe.repository import (
    IntoRepository,
    Point,
    ReadPoint,
    Repository,
    RepositoryReader,
    RestorePoint,
    open_repository,
    verify,
)

from .null import NullSink
from .raw import RawFile, RawReceipt
from .restore import RawDirectory, restore

__all__ = [
    "IntoRepository",
    "NullSink",
    "Point",
    "RawDirectory",
    "RawFile",
    "RawReceipt",
    "ReadPoint",
    "Repository",
    "RepositoryReader",
    "RestorePoint",
    "open_repository",
    "restore",
    "verify",
]
