"""The repository, in a directory or a bucket. Its format is docs/repository.md.

store            Repository, RepositoryStore: the target of jobs     backends/     where the objects are stored
point            Point: the writer that a path function gets         format/       the objects, byte by byte; keys
into_repository  IntoRepository: the sink of one disk                index/        which chunk lies where
previous         what the previous point holds, for Refine           maintenance/  verify, prune, repair, retention
reader           open_repository, ReadPoint: a disk back, proved
runs, removal    who is writing, and what is going to be deleted
"""

from .format.config import Origin
from .format.restore_point import (
    Document,
    Quiescing,
    RestorePoint,
    StoredDisk,
)
from .format.ways import AgeIdentity, AgeRecipient, KeyFile, Passphrase
from .into_repository import IntoRepository
from .maintenance.verify import (
    Finding,
    Hit,
    VerifyReport,
    verify,
)
from .point import Point
from .reader import ReadChanges, ReadPoint, RepositoryReader, open_repository
from .store import Repository, RepositoryStore

__all__ = [
    "AgeIdentity",
    "AgeRecipient",
    "Document",
    "Finding",
    "Hit",
    "IntoRepository",
    "KeyFile",
    "Origin",
    "Passphrase",
    "Point",
    "Quiescing",
    "ReadChanges",
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
