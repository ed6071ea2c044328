"""Where bytes end, and reading them back.

raw    RawFile, a sparse image      null   NullSink, for measuring
"""

from .null import NullSink
from .raw import RawFile, RawReceipt

__all__ = ["NullSink", "RawFile", "RawReceipt"]
