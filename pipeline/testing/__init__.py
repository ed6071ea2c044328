"""Shipped checks and fakes: every part of a mover, ours or yours, runs the same conformance suite.

check_source, check_stage, check_sink   the rules of pipeline.contracts, as assertions
check_codec, check_store                the rules of codecs and targets
check_reader, check_writer              the rules of disks, for reading and for writing
PatternDisk                             a disk in memory with chosen shares of zeros, holes and duplicates
MemoryDisk                              a disk of given bytes
WritableMemoryDisk                      a thin disk in memory that can be written
FaultyDisk                              wraps a disk and fails its n-th call
plain, covers                           comparable views of items
FakeMachine, FakeTarget                 a job without a VM and without a store
"""

from .checks import (
    check_codec,
    check_reader,
    check_sink,
    check_source,
    check_stage,
    check_store,
    check_writer,
)
from .fakes import (
    FakeCapture,
    FakeMachine,
    FakeTarget,
    FaultyDisk,
    Items,
    MemoryDisk,
    PatternDisk,
    WritableMemoryDisk,
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
    "WritableMemoryDisk",
    "all_free",
    "check_codec",
    "check_reader",
    "check_sink",
    "check_source",
    "check_stage",
    "check_store",
    "check_writer",
    "covers",
    "plain",
]
