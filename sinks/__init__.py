"""Where bytes end, and reading them back.

null   NullSink, for measuring
"""

from .null import NullSink

__all__ = ["NullSink"]
