"""Sinks: where bytes end, one file for each sink and for each target of a restore.

restoring  a point back to a target, proved     targets  targets by name, for the command line
raw        sparse images                       null     NullSink: keeps nothing, for measuring

The repository lies in `vadpipe.repository`. The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
