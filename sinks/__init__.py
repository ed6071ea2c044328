"""Sinks: where bytes end, one file for each sink and for each target of a restore.

raw        sparse images, standard output       vddk_disk  IntoVddkDisk: a disk that is open for writing
new_vm     a new VM of a vCenter                proving    a disk read back and compared with its point
null       NullSink: keeps nothing, for measuring

The repository lies in `vadpipe.repository`. The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
