"""Packs: files of about 64 MiB that consist of frames. The byte layout is in docs/repository.md.

A pack is written under a temporary name, ends with a table of its frames, is flushed and then gets its name. It is
never changed. The table makes it self-describing: the index can be made again from the packs alone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, MiB

from . import frames
from .damage import Damage
from .files import (
    create,
    publish,
    sink_errors,
    write_all,
)
from .frames import Record
from .keys import Keys
from .layout import PACK_ID_SIZE, Layout, pack_id

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


@dataclass(frozen=True)
class FrameAddress:
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

    def __init__(self, layout: Layout, repository_id: bytes, run_id: str) -> None:
        self._layout = layout
        self._repository_id = repository_id
        self._run_id = run_id
        self._serial = 0
        self._pack: _OpenPack | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pack flush")
        self._flushed: Future[None] | None = None

    def append(self, records: Sequence[Record]) -> tuple[int, list[int]]:
        """Write frames side by side. Returns the pack's serial number in the run and the offset of each."""
        if self._pack is not None and self._pack.end >= PACK_SIZE:
            self._flush(self._pack)
        if self._pack is None:
            name = pack_id(self._run_id, self._serial)
            self._pack = _OpenPack(self._layout, name, pack_header(self._repository_id, name))
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
            self._pack.close()
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

    def __init__(self, layout: Layout, name: str, header: bytes) -> None:
        self._temporary = layout.tmp / f"{name}.pack"
        self._final = layout.pack(name)
        self._rows: list[tuple[bytes, int, int, int, int, int]] = []
        self.end = len(header)
        with sink_errors(self._temporary, "create"):
            self._file = create(self._temporary)
        self._write([header])

    def append(self, records: Sequence[Record]) -> list[int]:
        self._write([part for record in records for part in (record.head, record.payload)])
        offsets: list[int] = []
        for record in records:
            offsets.append(self.end)
            self._rows.append((record.id, self.end, record.size, record.length, record.chunks, 0))
            self.end += record.size
        return offsets

    def finish(self) -> None:
        """Table, flush, final name."""
        table = _table(self._rows).tobytes()
        footer = _FOOTER.pack(_END, len(self._rows), 0, self.end)
        try:
            self._write([table, footer, _CHECKSUM.pack(xxhash.xxh3_64_intdigest(table + footer))])
            with sink_errors(self._temporary, "flush"):
                os.fsync(self._file)
                publish(self._temporary, self._final)
        finally:
            self.close()

    def close(self) -> None:
        os.close(self._file)

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        with sink_errors(self._temporary, "write"):
            write_all(self._file, parts)


def pack_header(repository_id: bytes, name: str) -> bytes:
    header = _HEADER.pack(_MAGIC, repository_id, bytes.fromhex(name), 0)
    return header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header))


def read_frame(layout: Layout, address: FrameAddress, keys: Keys) -> frames.Frame:
    """A frame of a pack, its checksum and id proved. Raises Damage."""
    try:
        with open(layout.pack(address.pack), "rb", buffering=0) as file:
            content = os.pread(file.fileno(), address.size, address.offset)
    except OSError as exc:
        raise Damage(f"reading it failed ({exc.strerror})") from exc
    if len(content) < address.size:
        raise Damage("the pack ends before it")
    frame = frames.parse(content, keys)
    if frame.id != address.id or frame.length != address.length:
        raise Damage("another frame is stored in its place")
    return frame


def read_table(path: Path, repository_id: bytes) -> NDArray[np.void]:
    """The frames of a pack as its own table lists them. Proves header, table and footer. Raises Damage."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(HEADER_SIZE)
            file.seek(max(end - FOOTER_SIZE, 0))
            footer = file.read(FOOTER_SIZE)
            if len(footer) < FOOTER_SIZE:
                raise Damage("the pack is cut off")
            magic, count, zero, start = _FOOTER.unpack_from(footer)
            if magic != _END or zero or start + count * FRAME_ROW.itemsize + FOOTER_SIZE != end:
                raise Damage("the pack is cut off or its end is damaged")
            file.seek(start)
            table = file.read(end - FOOTER_SIZE - start)
    except OSError as exc:
        raise Damage(f"reading the pack failed ({exc.strerror})") from exc
    if head != pack_header(repository_id, path.stem):
        raise Damage("the pack's header is wrong")
    if (
        xxhash.xxh3_64_intdigest(table + footer[: _FOOTER.size])
        != _CHECKSUM.unpack_from(footer, _FOOTER.size)[0]
    ):
        raise Damage("the checksum of the pack's table is wrong")
    rows = np.frombuffer(table, dtype=FRAME_ROW)
    ends = np.concatenate(([HEADER_SIZE], rows["offset"] + rows["size"]))
    if not np.array_equal(np.append(rows["offset"], start), ends):
        raise Damage("the frames of the pack's table do not lie side by side")
    return rows


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
