"""Which chunk lies in which frame, and which frame in which pack.

lookup    Index, RunIndex: all segments as a reader or a run sees them     draft    what a run adds, in memory
segments  one segment; cells, filters, segment_writer, format1_segments    proofs   what a segment says is not
believed merging   one segment of many
"""
