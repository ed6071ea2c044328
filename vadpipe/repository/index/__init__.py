"""Which chunk lies in which frame, and which frame in which pack.

lookup            Index, RunIndex: all segments as a reader or a run sees them
draft             what a run adds, in memory
segments          one segment; format1_segments: of a repository of format 1
frame_columns     the columns of frames, which both have; cells and filters are under them
segment_writer    writes a segment
merging           one segment of many
proofs            what a segment says is not believed: it is proved by the packs
"""
