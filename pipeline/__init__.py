"""The engine of vadpipe: values, contracts, meters, jobs. It knows no vendor and no format.

values       what flows: windows, spans, gaps, frames     contracts    Source, Stage, Sink, `|`, running,
`flow.open()` composition  checks of a path, made at `|`                lift         kernels on threads, in order
extents      the algebra of byte ranges                   buffers      the bounded pool of page-aligned memory
meters       busy, starved, blocked                       protocols    disks, captures, machines, targets
job          one VM from capture to point                 plan         what a job would do
events       what happens, for progress and tools         secrets      read late, never shown
blocking     pipelines driven by ordinary code            testing      conformance checks and fakes
"""

from .buffers import Buffer, BufferPool
from .contracts import Flow, Pipeline, Sink, Source, Stage
from .errors import (
    ChangeTrackingInvalid,
    ConfigError,
    ContractError,
    Failure,
    IntegrityError,
    LeftBehind,
    MoverError,
    QuiescingShort,
    SinkError,
    SourceError,
    TransferFailed,
)
from .events import Event, emit, observed
from .extents import Extents
from .job import DiskRun, Job, JobFailure, JobReceipt, JobSource
from .lift import KernelStage, run_ordered
from .meters import PipelineReport, StageMeter
from .protocols import (
    Capture,
    ChangedAreas,
    Disk,
    DiskReceipt,
    Evidence,
    Examiner,
    Finisher,
    Machine,
    MachineId,
    PointWriter,
    PreviousDisk,
    SourceReceipt,
    Store,
    Target,
)
from .secrets import Secret
from .units import CLUSTER, SPAN, GiB, KiB, MiB, TiB, format_size
from .values import (
    DIGEST_SIZE,
    NO_FRAME,
    Assignment,
    ChunkIndex,
    CutSpan,
    DedupedSpan,
    DigestedSpan,
    Digests,
    EncodedFrame,
    FramedSpan,
    Gap,
    Identity,
    PlannedFrame,
    Span,
    Unchanged,
    Window,
    Zeros,
)

__all__ = [
    "CLUSTER",
    "DIGEST_SIZE",
    "NO_FRAME",
    "SPAN",
    "Assignment",
    "Buffer",
    "BufferPool",
    "Capture",
    "ChangeTrackingInvalid",
    "ChangedAreas",
    "ChunkIndex",
    "ConfigError",
    "ContractError",
    "CutSpan",
    "DedupedSpan",
    "DigestedSpan",
    "Digests",
    "Disk",
    "DiskReceipt",
    "DiskRun",
    "EncodedFrame",
    "Event",
    "Evidence",
    "Examiner",
    "Extents",
    "Failure",
    "Finisher",
    "Flow",
    "FramedSpan",
    "Gap",
    "GiB",
    "Identity",
    "IntegrityError",
    "Job",
    "JobFailure",
    "JobReceipt",
    "JobSource",
    "KernelStage",
    "KiB",
    "LeftBehind",
    "Machine",
    "MachineId",
    "MiB",
    "MoverError",
    "Pipeline",
    "PipelineReport",
    "PlannedFrame",
    "PointWriter",
    "PreviousDisk",
    "QuiescingShort",
    "Secret",
    "Sink",
    "SinkError",
    "Source",
    "SourceError",
    "SourceReceipt",
    "Span",
    "Stage",
    "StageMeter",
    "Store",
    "Target",
    "TiB",
    "TransferFailed",
    "Unchanged",
    "Window",
    "Zeros",
    "emit",
    "format_size",
    "observed",
    "run_ordered",
]
