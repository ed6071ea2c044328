"""What a replica knows of itself: the digests of its blocks, and the state of its migration.

digests  block digests of a replica, in a sparse file    state  change ids, increments, ranges in doubt
"""

from .digests import BLOCK, DigestFile, digest_blocks
from .state import Increment, ReplicaDisk, ReplicaState, StateDirectory

__all__ = [
    "BLOCK",
    "DigestFile",
    "Increment",
    "ReplicaDisk",
    "ReplicaState",
    "StateDirectory",
    "digest_blocks",
]
