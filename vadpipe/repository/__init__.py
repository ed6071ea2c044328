"""The repository in a local directory. Its format is docs/repository.md.

store            Repository, RepositoryStore: the target of jobs     files            paths, durable files
point            Point: the writer that a path function gets         config           config.json and its keys
into_repository  IntoRepository: the sink of one disk                runs             locks, and sweeping dead runs
reader           open_repository, ReadPoint: a disk back, proved     packs, frames    where the bytes are
restore_point    restore points as values and files                  disk_map         which clusters lie where
verify           verify: read everything back                        index, segments  which chunk lies where
                                                                     merging          keeping segments few
"""

from .format.config import Origin
from .format.restore_point import (
    Document,
    Quiescing,
    RestorePoint,
    StoredDisk,
)
from .into_repository import IntoRepository
from .maintenance.verify import (
    Finding,
    Hit,
    VerifyReport,
    verify,
)
from .point import Point
from .reader import ReadPoint, RepositoryReader, open_repository
from .store import Repository, RepositoryStore

__all__ = [
    "Document",
    "Finding",
    "Hit",
    "IntoRepository",
    "Origin",
    "Point",
    "Quiescing",
    "ReadPoint",
    "Repository",
    "RepositoryReader",
    "RepositoryStore",
    "RestorePoint",
    "StoredDisk",
    "VerifyReport",
    "open_repository",
    "verify",
]
