"""VMDK files: a VM read from its own directory, the parsers that it is made of, and the kernels that write disks.

descriptor, vmx            texts: which files make a disk, which disks make a VM
sparse, redo, grains       grain tables of hosted, COWD and SE-sparse files
runs                       where the bytes of a disk range lie; the algebra of chains
chain, layout              a disk from its links: `open_layout` -> `Layout`
files, reading             open files, and plans read from them
directory, local           the VM: `open_vm`, which `stages.LocalVm` is the settings of
describe, build, stream    writing: descriptors, sparse files, and `stream_optimized`, which needs no seek
"""

from .chain import open_layout
from .layout import Layout
from .local import LocalCapture, LocalDisk, open_vm

__all__ = ["Layout", "LocalCapture", "LocalDisk", "open_layout", "open_vm"]
