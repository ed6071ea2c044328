"""Frames: the records that packs consist of. Kernel; the byte layout is in docs/repository.md.

A frame is a header, a table of its chunks and the payload. Its id is the keyed digest of the chunk table, so the id
proves which chunks it holds, and each chunk's digest proves its bytes. The checksum finds rot without decoding, and
without a key where the repository is sealed: then table and payload are encrypted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import xxhash
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import (
    CLUSTER,
    DIGEST_SIZE,
    ContractError,
    Digests,
    MiB,
)
from vadpipe.kernels.codecs import Zstd, codec_named

from .config import Config, Keys
from .objects import Damage
from .sealing import SALT_SIZE, TAG_SIZE, open_frame_payload, open_frame_table, seal_frame_parts

# Far above the frames of a disk (1 MiB, stages/dedupe.py). The page list of a disk is one frame: 128 TiB of disk
# fit, twice the largest virtual disk of vSphere (62 TiB). A reader never allocates more for one frame.
LARGEST_FRAME: Final = 16 * MiB

MAGIC: Final = b"VFRM"
SEALED: Final = b"VFRS"
HEADER: Final = struct.Struct("<4sBBHIIII32s")
CHECKSUM: Final = struct.Struct("<Q")
HEADER_SIZE: Final = HEADER.size + CHECKSUM.size

CHUNK: Final = np.dtype([("length", "<u4"), ("digest", "u1", (DIGEST_SIZE,))])
_CHUNK: Final = struct.Struct(f"<I{DIGEST_SIZE}s")  # the same
_SEALED_HEAD: Final = HEADER_SIZE + SALT_SIZE
_Fields = tuple[bytes, int, int, int, int, int, int, int, bytes]
assert HEADER_SIZE == 64
assert CHUNK.itemsize == _CHUNK.size == 36


class Kind(IntEnum):
    """What a frame holds; decides which key names its chunks."""

    DATA = 1
    MAP = 2
    DOCUMENT = 3

    def key(self, keys: Keys) -> bytes:
        if self is Kind.DATA:
            return keys.chunk
        return keys.page if self is Kind.MAP else keys.document


_KINDS: Final = {int(kind): kind for kind in Kind}

CODECS: Final = {"raw": 0, "zstd": 1}
_NAMES: Final = {number: name for name, number in CODECS.items()}
_NAMED: Final = 255  # any other codec: the payload begins with the length of its name (u8) and the name


@dataclass(frozen=True)
class Record:
    """A frame ready to be written: `head` (header and chunk table) and `payload`."""

    id: bytes
    length: int
    chunks: int
    head: bytes
    payload: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.head) + len(self.payload)


class Frame(NamedTuple):
    """A frame as read, its checksum and its id proved. `length` is that of the decoded payload.

    `table`: its chunk table, as it is stored.
    """

    kind: Kind
    codec: str
    length: int
    id: bytes
    table: bytes
    payload: memoryview

    @property
    def chunk(self) -> NDArray[np.void]:
        return np.frombuffer(self.table, dtype=CHUNK)


def chunk_table(length: NDArray[np.int64], digest: Digests) -> bytes:
    table = np.empty(len(length), dtype=CHUNK)
    table["length"] = length
    table["digest"] = digest
    return table.tobytes()


def frame_id(table: bytes, keys: Keys) -> bytes:
    return blake3(table, key=keys.frame).digest()


def checked_table(length: NDArray[np.int64], digest: Digests) -> bytes:
    """The chunk table of a new frame of disk data. Raises ContractError.

    Places in a frame are clusters. A chunk that is no whole number of clusters is the tail of a disk, and the
    last of its frame.
    """
    if not len(length) or len(length) != len(digest):
        raise ContractError(f"A frame of {len(length)} chunks with {len(digest)} digests.")
    if int(length.min()) <= 0 or (length[:-1] % CLUSTER).any() or int(length.sum()) > LARGEST_FRAME:
        raise ContractError(
            f"A frame of chunks of {length.tolist()} bytes.",
            remedy=f"Chunks are whole clusters but for the last, at most {LARGEST_FRAME} bytes together.",
        )
    return chunk_table(length, digest)


def record(
    kind: Kind,
    codec: str,
    length: int,
    table: bytes,
    identity: bytes,
    payload: bytes | memoryview,
    config: Config,
) -> Record:
    """A new frame. Raises ContractError for a codec that nothing could decode."""
    number = CODECS.get(codec, _NAMED)
    if number == _NAMED:
        try:
            codec_named(codec)
        except LookupError as exc:
            raise ContractError(
                f"The repository does not know the codec {codec!r}: it is not registered.",
                remedy="Register it where it is defined, and wherever the repository is read.",
            ) from exc
        name = codec.encode()
        payload = b"".join((bytes([len(name)]), name, payload))
    chunks, sealing = len(table) // CHUNK.itemsize, config.sealing
    if sealing.sealed:
        salt = sealing.salt()
        header = HEADER.pack(SEALED, kind, number, 0, length, len(payload), chunks, sealing.epoch, identity)
        table, payload = seal_frame_parts(sealing, header, table, payload, salt)
    else:
        salt = b""
        header = HEADER.pack(MAGIC, kind, number, 0, length, len(payload), chunks, 0, identity)
    checksum = CHECKSUM.pack(_checksum(header, salt, table, payload))
    return Record(identity, length, chunks, b"".join((header, checksum, salt, table)), payload)


def object_digest(kind: Kind, data: bytes, config: Config) -> bytes:
    """Names a map page or a document: the digest of its single chunk."""
    return blake3(data, key=kind.key(config.keys)).digest()


def object_record(kind: Kind, data: bytes, digest: bytes, config: Config) -> Record:
    """A frame with one chunk, for a map page or a document with its digest."""
    table = chunk_table(np.array([len(data)]), np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE))
    # Ids of frames do not compress; a list of mostly empty pages does. What saves little is not worth decoding.
    packed = zstandard.ZstdCompressor(level=1).compress(data)
    codec, payload = ("zstd", packed) if len(packed) < len(data) * 7 // 8 else ("raw", data)
    return record(kind, codec, len(data), table, frame_id(table, config.keys), payload, config)


def size_at(header: bytes | memoryview) -> int:
    """The size of the record that begins with these HEADER_SIZE bytes. Raises Damage."""
    magic, _, _, _, length, stored, chunks, _, _ = HEADER.unpack_from(header)
    return _size(magic, length, stored, chunks)


def _size(magic: bytes, length: int, stored: int, chunks: int) -> int:
    """The size of a record. Raises Damage."""
    if magic not in (MAGIC, SEALED):
        raise Damage("no frame begins here")
    size: int = _table_end(magic, chunks) + stored + (TAG_SIZE if magic == SEALED else 0)
    if length > LARGEST_FRAME or size > 2 * LARGEST_FRAME:
        raise Damage("its header is impossible")
    return size


def _table_end(magic: bytes, chunks: int) -> int:
    """Where the chunk table ends, and the payload begins."""
    size: int = chunks * CHUNK.itemsize
    return _SEALED_HEAD + size + TAG_SIZE if magic == SEALED else HEADER_SIZE + size


def length_and_id(header: bytes | memoryview) -> tuple[int, bytes]:
    """The length of the decoded payload, and the id, of the record that begins with these bytes."""
    fields = HEADER.unpack_from(header)
    return fields[4], fields[8]


def check(content: bytes | memoryview) -> None:
    """Prove the checksum of a whole record; needs no key. Raises Damage."""
    _checked_fields(memoryview(content))


def _checked_fields(view: memoryview) -> _Fields:
    """The fields of the header of a whole record, its checksum proved. Raises Damage."""
    if len(view) < HEADER_SIZE:
        raise Damage("its size is wrong")
    fields: _Fields = HEADER.unpack_from(view)
    magic, _, _, _, length, stored, chunks, _, _ = fields
    if _size(magic, length, stored, chunks) != len(view):
        raise Damage("its size is wrong")
    if CHECKSUM.unpack_from(view, HEADER.size)[0] != _checksum(view[: HEADER.size], view[HEADER_SIZE:]):
        raise Damage("its checksum is wrong")
    return fields


def parse(content: bytes | memoryview, config: Config) -> Frame:
    """The frame of a whole record. Raises Damage."""
    view = memoryview(content)
    magic, kind, codec, _, length, _, chunks, _, identity = _checked_fields(view)
    end = _table_end(magic, chunks)
    payload = view[end:]
    table = bytes(view[HEADER_SIZE:end]) if magic == MAGIC else _table_of(view[:end], config)
    if blake3(table, key=config.keys.frame).digest() != identity:
        raise Damage("its id is not that of its chunks")
    if magic == SEALED:
        header, salt = bytes(view[: HEADER.size]), bytes(view[HEADER_SIZE:_SEALED_HEAD])
        payload = memoryview(open_frame_payload(config.sealing, header, salt, payload))
    name, payload = _codec_of(codec, payload)
    if kind not in _KINDS or sum([chunk for chunk, _ in _CHUNK.iter_unpack(table)]) != length:
        raise Damage("its header is impossible")
    return Frame(_KINDS[kind], name, length, identity, table, payload)


def _table_of(head: memoryview, config: Config) -> bytes:
    """The chunk table of a record that is given up to the end of its table."""
    if bytes(head[:4]) == MAGIC:
        return bytes(head[HEADER_SIZE:])
    header, salt = bytes(head[: HEADER.size]), bytes(head[HEADER_SIZE:_SEALED_HEAD])
    return open_frame_table(config.sealing, header, salt, head[_SEALED_HEAD:])


def _codec_of(number: int, payload: memoryview) -> tuple[str, memoryview]:
    """The name of a codec, and the payload without it."""
    if number in _NAMES:
        return _NAMES[number], payload
    end = 1 + payload[0] if len(payload) else 0
    if number != _NAMED or not 1 < end <= len(payload):
        raise Damage(f"its codec has the number {number}, which this version does not know")
    return bytes(payload[1:end]).decode(errors="replace"), payload[end:]


def head_size(head: bytes) -> int:
    """How many bytes of a record `parse_chunks` needs, from its first HEADER_SIZE bytes."""
    fields = HEADER.unpack_from(head)
    return _table_end(fields[0], fields[6])


def parse_chunks(head: bytes, identity: bytes, config: Config) -> NDArray[np.void]:
    """The chunk table at the begin of a record, proved by the frame's id. Raises Damage."""
    if len(head) < HEADER_SIZE:
        raise Damage("its size is wrong")
    size_at(head)
    end, named = head_size(head), HEADER.unpack_from(head)[8]
    if named != identity:
        raise Damage("another frame is stored in its place")
    table = _table_of(memoryview(head)[:end], config)
    if frame_id(table, config.keys) != identity:
        raise Damage("its id is not that of its chunks")
    return np.frombuffer(table, dtype=CHUNK)


def decode(frame: Frame, keys: Keys, target: memoryview | None = None) -> memoryview:
    """The bytes of a frame, each chunk proved by its digest. Raises Damage.

    Args:
        target: `frame.length` bytes of memory to decode into; after Damage they are anything.
    """
    try:
        codec = codec_named(frame.codec)
    except LookupError as exc:
        raise Damage(f"it was written with the codec {frame.codec!r}, which is not registered") from exc
    try:
        if target is not None and isinstance(codec, Zstd):
            codec.decode_into(frame.payload, target)
            view = target
        else:
            view = memoryview(codec.decode(frame.payload, frame.length))
    except ValueError as exc:
        raise Damage(str(exc)) from exc
    if len(view) != frame.length:
        raise Damage(f"it decodes to {len(view)} bytes instead of {frame.length}")
    key, start = frame.kind.key(keys), 0
    for number, (length, digest) in enumerate(_CHUNK.iter_unpack(frame.table)):
        end = start + length
        if blake3(view[start:end], key=key).digest() != digest:
            raise Damage(f"the digest of its chunk {number} (bytes {start} to {end}) is wrong")
        start = end
    if target is not None and view is not target:
        target[:] = view
    return view


def _checksum(header: bytes | memoryview, *parts: bytes | memoryview) -> int:
    """Of the header and of all that comes after the checksum."""
    state = xxhash.xxh3_64(header)
    for part in parts:
        state.update(part)
    return state.intdigest()
