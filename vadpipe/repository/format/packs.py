"""Packs: files of about 64 MiB that consist of frames. The byte layout is in docs/repository.md.

A pack ends with a table of its frames. It gets its name when it is whole and durable, and is never changed. The
table makes it self-describing: the index can be made again from the packs alone.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, IntegrityError, MiB, SinkError

from ..backends.contract import ObjectExists
from . import frames
from .config import Config
from .frames import Record
from .objects import PACK_ID_SIZE, Damage, Objects, pack_id

log = logging.getLogger(__name__)

# Large enough that a file system sees few files (16384 in 1 TiB) and a flush is long, small enough to be
# rewritten when most of it is no longer needed.
PACK_SIZE: Final = 64 * MiB

# A frame in a pack's table and in the index; `pack` is 0 in a pack's own table.
FRAME_ROW: Final = np.dtype(
    [
        ("id", "u1", (DIGEST_SIZE,)),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("length", "<u4"),
        ("chunks", "<u4"),
        ("pack", "<u4"),
    ]
)
assert FRAME_ROW.itemsize == 56

_HEADER: Final = struct.Struct(f"<8s16s{PACK_ID_SIZE}sI")
_FOOTER: Final = struct.Struct("<8sIIQ")
_CHECKSUM: Final = struct.Struct("<Q")
_MAGIC: Final = b"VADPACK1"
_END: Final = b"VADPEND1"
HEADER_SIZE: Final = _HEADER.size + _CHECKSUM.size
FOOTER_SIZE: Final = _FOOTER.size + _CHECKSUM.size
assert (HEADER_SIZE, FOOTER_SIZE) == (48, 32)


# A pack is ended with the first write after PACK_SIZE, and a write is at most the frames of a span.
LARGEST_PACK: Final = 8 * PACK_SIZE
_MOST_FRAMES: Final = LARGEST_PACK // frames.HEADER_SIZE

_USUAL_HEAD: Final = frames.HEADER_SIZE + 64 * frames.CHUNK.itemsize  # 1 MiB in chunks of 16 KiB


class FrameAddress(NamedTuple):  # there are thousands of them: a data class takes three times as long to make
    """Where a frame is stored: `size` bytes at `offset` of a pack. `id` is what must be found there."""

    pack: str
    offset: int
    size: int
    length: int
    id: bytes


class PackWriter:
    """The packs of one run, one after the other. Not thread-safe. Raises SinkError.

    A full pack is flushed on a thread of its own while the next one fills: a flush takes as long as the disk
    needs for 64 MiB, and the stages before would stand still.
    """

    def __init__(self, objects: Objects, config: Config, run_id: str, first: int = 0) -> None:
        """
        Args:
            first: The number of its first pack in the run.
        """
        self._objects = objects
        self._config = config
        self._run_id = run_id
        self._serial = first
        self._pack: _OpenPack | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pack flush")
        self._flushed: Future[None] | None = None

    @property
    def serial(self) -> int:
        """The number of the next pack."""
        return self._serial

    def append(self, records: Sequence[Record]) -> tuple[int, list[int]]:
        """Write frames side by side. Returns the pack's serial number in the run and the offset of each."""
        if self._pack is not None and self._pack.end >= PACK_SIZE:
            self._flush(self._pack)
        if self._pack is None:
            self._pack = _OpenPack(self._objects, self._config, pack_id(self._run_id, self._serial))
            self._serial += 1
        return self._serial - 1, self._pack.append(records)

    def finish(self) -> None:
        """End the pack that is being written, if there is one, and wait until all packs are durable."""
        if self._pack is not None:
            self._flush(self._pack)
        self._wait()
        self._thread.shutdown()

    def close(self) -> None:
        """Leave the pack that is being written, if there is one, unfinished."""
        self._thread.shutdown()
        if self._pack is not None:
            self._pack.abort()
            self._pack = None

    def _flush(self, pack: _OpenPack) -> None:
        self._wait()  # never more than one behind
        self._flushed = self._thread.submit(pack.finish)
        self._pack = None

    def _wait(self) -> None:
        if self._flushed is not None:
            self._flushed.result()


class _OpenPack:
    """A pack in the making; `end` is its length so far."""

    def __init__(self, objects: Objects, config: Config, name: str) -> None:
        self._place = objects.place(objects.pack(name))
        self._rows: list[tuple[bytes, int, int, int, int, int]] = []
        self._upload = objects.backend.begin(objects.pack(name))
        header = pack_header(config.id, name)
        self.end = len(header)
        self._upload.write([header])

    def append(self, records: Sequence[Record]) -> list[int]:
        self._upload.write([part for record in records for part in (record.head, record.payload)])
        offsets: list[int] = []
        for record in records:
            offsets.append(self.end)
            self._rows.append((record.id, self.end, record.size, record.length, record.chunks, 0))
            self.end += record.size
        return offsets

    def finish(self) -> None:
        """Table, and the name."""
        table = _table(self._rows).tobytes()
        footer = _FOOTER.pack(_END, len(self._rows), 0, self.end)
        try:
            self._upload.write([table, footer, _CHECKSUM.pack(xxhash.xxh3_64_intdigest(table + footer))])
            self._upload.finish()
        except ObjectExists as exc:
            raise SinkError(
                f"{self._place} is there already, and no other run has its id; nothing was published.",
                remedy="Run again. If it comes again, the source of random numbers of this machine is broken.",
                path=self._place,
            ) from exc
        finally:
            self._upload.abort()

    def abort(self) -> None:
        self._upload.abort()


def pack_header(repository_id: bytes, name: str) -> bytes:
    header = _HEADER.pack(_MAGIC, repository_id, bytes.fromhex(name), 0)
    return header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header))


def read_frame(objects: Objects, config: Config, address: FrameAddress) -> frames.Frame:
    """A frame of a pack, its checksum and id proved. Raises Damage."""
    return frame_of(read_stored(objects, address), address, config)


def frame_of(content: bytes | memoryview, address: FrameAddress, config: Config) -> frames.Frame:
    """The frame that is stored at an address, from its stored bytes. Raises Damage."""
    frame = frames.parse(content, config)
    if frame.id != address.id or frame.length != address.length:
        raise Damage("another frame is stored in its place")
    return frame


def read_stored(objects: Objects, address: FrameAddress) -> bytes:
    """A frame of a pack as it is stored; nothing is proved. Raises Damage."""
    return _read(objects, address, address.size)


def read_chunks(objects: Objects, config: Config, address: FrameAddress) -> NDArray[np.void]:
    """The chunk table of a frame, proved by its id; the payload is not read. Raises Damage."""
    head = _read(objects, address, min(address.size, _USUAL_HEAD))
    if len(head) >= frames.HEADER_SIZE and frames.head_size(head) > len(head):
        head = _read(objects, address, min(frames.head_size(head), address.size))
    return frames.parse_chunks(head, address.id, config)


def _read(objects: Objects, address: FrameAddress, size: int) -> bytes:
    if address.size > 2 * frames.LARGEST_FRAME or address.offset > LARGEST_PACK:
        raise Damage("the index says that it lies where no frame can be")
    return objects.read(objects.pack(address.pack), address.offset, size)


def read_table(objects: Objects, repository_id: bytes, name: str) -> NDArray[np.void]:
    """The frames of a pack as its own table lists them. Proves header, table and footer. Raises Damage."""
    path = objects.pack(name)
    end = objects.size(path)
    if end < HEADER_SIZE + FOOTER_SIZE:
        raise Damage("the pack is cut off")
    head = objects.read(path, 0, HEADER_SIZE)
    footer = objects.read(path, end - FOOTER_SIZE, FOOTER_SIZE)
    start, size = _place_of_table(footer, end)
    table = objects.read(path, start, size)
    _prove_table(head, table, footer, repository_id, name)
    rows = np.frombuffer(table, dtype=FRAME_ROW)
    if not side_by_side(rows, [len(rows)], [start]):
        raise Damage("the frames of the pack's table do not lie side by side")
    return rows


def table_in(content: bytes, repository_id: bytes, name: str) -> tuple[bytes, int]:
    """The table of a whole pack as it is stored, and where it begins. Raises Damage.

    Proves what `read_table` proves, but for whether the frames lie `side_by_side`.
    """
    if len(content) < HEADER_SIZE + FOOTER_SIZE:
        raise Damage("the pack is cut off")
    footer = content[-FOOTER_SIZE:]
    start, size = _place_of_table(footer, len(content))
    table = content[start : start + size]
    _prove_table(content[:HEADER_SIZE], table, footer, repository_id, name)
    return table, start


def _place_of_table(footer: bytes, end: int) -> tuple[int, int]:
    """Where the table of a pack of `end` bytes begins, and its size. Raises Damage."""
    magic, count, zero, start = _FOOTER.unpack_from(footer)
    size: int = count * FRAME_ROW.itemsize
    if magic != _END or zero or start + size + FOOTER_SIZE != end:
        raise Damage("the pack is cut off or its end is damaged")
    if start > LARGEST_PACK or count > _MOST_FRAMES:
        raise Damage("the pack is larger than any that was written")
    return start, size


def _prove_table(head: bytes, table: bytes, footer: bytes, repository_id: bytes, name: str) -> None:
    """Header, table and footer. Raises Damage."""
    if head != pack_header(repository_id, name):
        raise Damage("the pack's header is wrong")
    if (
        xxhash.xxh3_64_intdigest(table + footer[: _FOOTER.size])
        != _CHECKSUM.unpack_from(footer, _FOOTER.size)[0]
    ):
        raise Damage("the checksum of the pack's table is wrong")


def side_by_side(rows: NDArray[np.void], counts: Sequence[int], ends: Sequence[int]) -> bool:
    """Whether the frames of some packs fill them without gaps.

    Args:
        rows: Their tables, one after the other.
        counts: How many frames each of the packs has.
        ends: Where the frames of each of them end.
    """
    begin = rows["offset"].astype(np.int64)
    end = begin + rows["size"]
    count = np.array(counts)
    last = np.cumsum(count)[count > 0] - 1
    expected = np.roll(end, 1)
    expected[last - count[count > 0] + 1] = HEADER_SIZE
    reached = np.full(len(count), HEADER_SIZE)
    reached[count > 0] = end[last]
    return bool((begin == expected).all()) and reached.tolist() == list(ends)


def sound_frames(objects: Objects, pack: str) -> Iterator[tuple[FrameAddress, memoryview]]:
    """The frames of a pack whose checksum is right, wherever they lie, with their stored bytes; needs no key.

    Raises SinkError.
    """
    try:
        content = memoryview(objects.read_whole(objects.pack(pack), LARGEST_PACK))
    except Damage as damage:
        log.info("pack %s cannot be read: %s", pack, damage)
        return
    whole = bytes(content)
    place = 0
    while True:
        found = [at for magic in (frames.MAGIC, frames.SEALED) if (at := whole.find(magic, place)) >= 0]
        if not found or len(whole) - min(found) < frames.HEADER_SIZE:
            return
        place = min(found)
        try:
            size = frames.size_at(content[place:])
            frames.check(content[place : place + size])
        except Damage:
            place += 1
            continue
        length, identity = frames.length_and_id(content[place:])
        yield FrameAddress(pack, place, size, length, identity), content[place : place + size]
        place += size


def addresses(rows: NDArray[np.void], name: str) -> Iterator[FrameAddress]:
    """The frames of one pack's table."""
    for row in rows:
        yield FrameAddress(
            name, int(row["offset"]), int(row["size"]), int(row["length"]), row["id"].tobytes()
        )


def _table(rows: Sequence[tuple[bytes, int, int, int, int, int]]) -> NDArray[np.void]:
    table = np.empty(len(rows), dtype=FRAME_ROW)
    table["id"] = np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(-1, DIGEST_SIZE)
    for place, name in enumerate(("offset", "size", "length", "chunks", "pack"), start=1):
        table[name] = [row[place] for row in rows]
    return table


def read_object(
    objects: Objects, config: Config, address: FrameAddress, digest: bytes, purpose: str, **facts: object
) -> memoryview:
    """A map page or a document, proved by its digest. Raises IntegrityError that begins with `purpose`."""
    try:
        frame = read_frame(objects, config, address)
        if len(frame.chunk) != 1 or frame.chunk["digest"].tobytes() != digest:
            raise Damage("it holds something else")
        return frames.decode(frame, config.keys)
    except Damage as damage:
        raise damaged_frame(objects, address, damage, purpose, **facts) from damage


def damaged_frame(
    objects: Objects, address: FrameAddress, damage: Damage, purpose: str, **facts: object
) -> IntegrityError:
    """What is wrong with a frame, and what it was wanted for."""
    path = objects.place(objects.pack(address.pack))
    return IntegrityError(
        f"{purpose}: the frame at bytes {address.offset} to {address.offset + address.size} of pack {path}"
        f" is damaged: {damage}.",
        remedy="Put this pack back from a copy of the repository; `vadpipe verify` lists all that is hit.",
        pack=path,
        position=address.offset,
        **facts,
    )
