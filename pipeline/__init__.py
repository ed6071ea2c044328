"""The engine of vadpipe: values, contracts, meters, jobs. It knows no vendor and no format.

values       what flows: windows, spans, gaps, frames    extents    the algebra of byte ranges
contracts    Source, Stage, Sink, `|`, running           buffers    the bounded pool of page-aligned memory
composition  what `|` and settings are checked for       meters     busy, starved, blocked
lift         kernels on threads, in order                protocols  disks, captures, machines, targets
job          one VM from capture to point                plan       what a job would do
errors       what fails, with its remedy                 events     what happens, for progress and tools
blocking     jobs and pipelines from ordinary code       secrets    read late, never shown
units        KiB to TiB, CLUSTER, SPAN                   testing    conformance checks and fakes
"""

from types import ModuleType as _Module

from .buffers import Buffer as Buffer
from .buffers import BufferPool as BufferPool
from .contracts import Flow as Flow
from .contracts import Pipeline as Pipeline
from .contracts import Sink as Sink
from .contracts import Source as Source
from .contracts import Stage as Stage
from .errors import ChangeTrackingInvalid as ChangeTrackingInvalid
from .errors import ConfigError as ConfigError
from .errors import ContractError as ContractError
from .errors import Failure as Failure
from .errors import IntegrityError as IntegrityError
from .errors import LeftBehind as LeftBehind
from .errors import MoverError as MoverError
from .errors import QuiescingShort as QuiescingShort
from .errors import SinkError as SinkError
from .errors import SourceError as SourceError
from .errors import TransferFailed as TransferFailed
from .events import Event as Event
from .events import emit as emit
from .events import observed as observed
from .extents import Extents as Extents
from .job import DiskRun as DiskRun
from .job import Job as Job
from .job import JobFailure as JobFailure
from .job import JobReceipt as JobReceipt
from .job import JobSource as JobSource
from .lift import KernelStage as KernelStage
from .lift import run_ordered as run_ordered
from .meters import PipelineReport as PipelineReport
from .meters import StageMeter as StageMeter
from .protocols import Capture as Capture
from .protocols import ChangedAreas as ChangedAreas
from .protocols import Disk as Disk
from .protocols import DiskReceipt as DiskReceipt
from .protocols import Evidence as Evidence
from .protocols import Examiner as Examiner
from .protocols import Finisher as Finisher
from .protocols import Machine as Machine
from .protocols import MachineId as MachineId
from .protocols import PointWriter as PointWriter
from .protocols import PreviousDisk as PreviousDisk
from .protocols import SourceReceipt as SourceReceipt
from .protocols import Store as Store
from .protocols import Target as Target
from .protocols import WritableDisk as WritableDisk
from .secrets import Secret as Secret
from .units import CLUSTER as CLUSTER
from .units import SPAN as SPAN
from .units import GiB as GiB
from .units import KiB as KiB
from .units import MiB as MiB
from .units import TiB as TiB
from .units import format_size as format_size
from .values import DIGEST_SIZE as DIGEST_SIZE
from .values import NO_FRAME as NO_FRAME
from .values import Assignment as Assignment
from .values import ChunkIndex as ChunkIndex
from .values import CutSpan as CutSpan
from .values import DedupedSpan as DedupedSpan
from .values import DigestedSpan as DigestedSpan
from .values import Digests as Digests
from .values import EncodedFrame as EncodedFrame
from .values import FramedSpan as FramedSpan
from .values import Gap as Gap
from .values import Identity as Identity
from .values import PlannedFrame as PlannedFrame
from .values import Span as Span
from .values import Unchanged as Unchanged
from .values import Window as Window
from .values import Zeros as Zeros

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]  # every name above, listed once
    name for name, value in globals().items() if name[0] != "_" and not isinstance(value, _Module)
]
