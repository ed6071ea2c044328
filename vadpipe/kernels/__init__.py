"""What the stages compute: bytes and arrays in, values out. No event loop, no files; each is usable alone.

zeros         mark_zeros: which clusters of a span hold zeros only
chunks        cut, cut_span: where content says that chunks end
digest        Blake3, digest_span: the identity of chunks
dedupe        MemoryIndex, assign, dedupe_span: which chunks are new, and the frames that hold them
codecs        Zstd, Uncompressed, encode_span, and the registry of codecs
digest_table  a hash table of digests in numpy columns

>>> from pipeline import Span
>>> from vadpipe.kernels import Blake3, MemoryIndex, Zstd, cut_span, dedupe_span, digest_span, encode_span
>>> index = MemoryIndex()
>>> cut = cut_span(Span.of(bytes(range(256)) * 4096))
>>> framed = encode_span(dedupe_span(digest_span(cut, index.identity), index), Zstd())
>>> [(frame.codec, frame.length) for frame in framed.frames]
[('zstd', 262144)]
"""

from .chunks import cut, cut_span
from .codecs import Codec, Uncompressed, Zstd, codec_named, encode_span, register_codec
from .dedupe import MemoryIndex, assign, dedupe_span
from .digest import Blake3, digest_span
from .zeros import mark_zeros

__all__ = [
    "Blake3",
    "Codec",
    "MemoryIndex",
    "Uncompressed",
    "Zstd",
    "assign",
    "codec_named",
    "cut",
    "cut_span",
    "dedupe_span",
    "digest_span",
    "encode_span",
    "mark_zeros",
    "register_codec",
]
