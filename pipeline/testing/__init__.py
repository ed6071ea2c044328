"""Shipped checks and fakes: every source, stage and sink, ours or yours, runs the same conformance suite.

check_source, check_stage, check_sink   the rules of pipeline.contracts, as assertions
PatternDisk                             a disk in memory with chosen shares of zeros, holes and duplicates
MemoryDisk                              a disk of given bytes
FaultyDisk                              wraps a disk and fails its n-th call
plain, covers                           comparable pictures of items
FakeMachine, FakeTarget                 a job without a VM and without a store
"""

from .checks import check_sink, check_source, check_stage
from .fakes import (
    FakeCapture,
    FakeMachine,
    FakeTarget,
    FaultyDisk,
    Items,
    MemoryDisk,
    PatternDisk,
)
from .views import all_free, covers, plain

__all__ = [
    "FakeCapture",
    "FakeMachine",
    "FakeTarget",
    "FaultyDisk",
    "Items",
    "MemoryDisk",
    "PatternDisk",
    "all_free",
    "check_sink",
    "check_source",
    "check_stage",
    "covers",
    "plain",
]
