"""Stages: what a configuration names between a VM and a sink, one file each. Settings and wiring.

vcenter_vm, each_vm  VMs on a vCenter or ESXi host      chunks    CutChunks: where content says
preflight            checks before the snapshot         digest    Digest: the identity of each chunk
extents              which bytes to read                dedupe    Dedupe: which chunks are new
read                 ReadSpans: the bytes               compress  Compress: new frames, encoded
zeros                MarkZeros: what holds zeros only   vss_manifest  VssManifest: judges the quiescing

What they are made of lies in `vadpipe`. The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
