"""Stages: what a configuration names between a VM and a sink, one file each. Settings and wiring.

vcenter_vm, each_vm  VMs on a vCenter or ESXi host       chunks    CutChunks: where content says
local_vm, nbd_vm     VMs from files, from NBD servers    digest    Digest: the identity of each chunk
preflight            checks before the snapshot          dedupe    Dedupe: which chunks are new
extents              which bytes to read                 compress  Compress: new frames, encoded
read                 ReadSpans: the bytes                vss_manifest  VssManifest: judges the quiescing
zeros                MarkZeros: what holds zeros only    refine    Refine: clusters that really changed
remember             RememberRanges: for a replica       differences  Differences: a disk against a point

What they are made of lies in `vadpipe`. The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
