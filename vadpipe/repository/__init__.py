"""The repository in a local directory. Its format is docs/repository.md.

store            Repository, RepositoryStore: the target of jobs     config, keys     config.json and its keys
point            Point: the writer that a path function gets         runs             locks, and sweeping dead runs
into_repository  IntoRepository: the sink of one disk                index, segments  which chunk lies where
reader           open_repository: points, maps, documents            packs, frames    where the bytes are
read_point       ReadPoint: a disk of a point, proved                disk_map         which clusters lie where
verify           verify: read everything back                        restore_point    points as values and files
"""

from .config import Origin
from .into_repository import IntoRepository
from .point import Point
from .read_point import ReadPoint
from .reader import RepositoryReader, open_repository
from .restore_point import (
    Document,
    Quiescing,
    RestorePoint,
    StoredDisk,
)
from .store import Repository, RepositoryStore
from .verify import (
    Finding,
    Hit,
    VerifyReport,
    verify,
)

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
