"""The repository, in a directory or a bucket. Its format is docs/repository.md.

store            Repository, RepositoryStore: the target of jobs     backends/     where the objects are stored
point            Point: the writer that a path function gets         format/       the objects, byte by byte; keys
into_repository  IntoRepository: the sink of one disk                index/        which chunk lies where
previous         what the previous point holds, for Refine           maintenance/  verify, prune, repair, retention
reader           open_repository, ReadPoint: a disk back, proved
runs, removal    who is writing, and what is going to be deleted

The names below are loaded when they are used.
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
