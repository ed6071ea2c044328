"""What the tests of the index share: segments and whole indexes of random chunks, in memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import xxhash

from pipeline import DIGEST_SIZE, NO_FRAME, KiB
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.config import Keys
from vadpipe.repository.format.frames import chunk_table, frame_id
from vadpipe.repository.format.objects import Objects, pack_id, segment_name, stem
from vadpipe.repository.format.packs import FRAME_ROW
from vadpipe.repository.format.sealing import Sealing, Secrets
from vadpipe.repository.index.cells import CELL
from vadpipe.repository.index.format1_segments import CHUNK_ROW
from vadpipe.repository.index.lookup import RunIndex
from vadpipe.repository.index.segment_writer import TemporarySegment, publish, write_segment
from vadpipe.repository.index.segments import HEADER_SIZE, Segment, heads

REPOSITORY = bytes(range(16))
KEYS = Keys.derive(bytes(range(32)))
SEALING = Sealing(REPOSITORY, Secrets(bytes(32), {1: b"1" * 32, 2: b"2" * 32}))
CHUNK = 64 * KiB
PER_FRAME = 4
FRAMES_PER_PACK = 8


def memory() -> Objects:
    return Objects(MemoryBackend())


def random_digests(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, DIGEST_SIZE), dtype=np.uint8)


def run_id(number: int) -> str:
    return f"{number:016x}"


def add_run(
    objects: Objects,
    number: int,
    digest: np.ndarray,
    *,
    sealing: Sealing | None = None,
    per_frame: int = PER_FRAME,
    packs: int = FRAMES_PER_PACK,
) -> list[str]:
    """A run that stores these chunks, which are unknown. Returns the names of its segments."""
    index = RunIndex(objects, REPOSITORY, run_id(number), KEYS, sealing)
    for row, low in enumerate(range(0, len(digest), per_frame)):
        chunks = digest[low : low + per_frame]
        length = np.full(len(chunks), CHUNK)
        frame = index.add_frame(length, chunks, frame_id(chunk_table(length, chunks), KEYS))
        index.stored(frame, row // packs, 48 + row % packs * 1000, 1000)
        for draft in index.full():
            index.replace(draft, index.write(draft))
    names = index.publish()
    index.close()
    return names


def known(index: RunIndex, digest: np.ndarray, batch: int = 64) -> np.ndarray:
    """Which chunks an index knows, asked in batches."""
    found = [index.lookup(digest[low : low + batch])[0] != NO_FRAME for low in range(0, len(digest), batch)]
    return np.concatenate([np.zeros(0, np.bool_), *found])


def put_segment(
    objects: Objects,
    digest: np.ndarray,
    frames: np.ndarray,
    place: np.ndarray,
    packs: Sequence[str],
    *,
    name: str = segment_name("00" * 8, 0),
    sealing: Sealing | None = None,
) -> str:
    """Write a segment whatever its rows say."""
    temporary = TemporarySegment(name)
    write_segment(temporary.file, name, REPOSITORY, digest, frames, place, packs, sealing)
    publish(objects, temporary)
    temporary.close()
    return name


def frames_of_one(identity: np.ndarray) -> np.ndarray:
    """Frame rows of one chunk each."""
    frames = np.zeros(len(identity), FRAME_ROW)
    frames["id"] = identity
    frames["chunks"] = 1
    frames["length"] = CHUNK
    frames["offset"] = np.arange(len(frames)) + 100
    return frames


def put_segment_of_format_1(
    objects: Objects,
    digest: np.ndarray,
    frames: np.ndarray,
    place: np.ndarray,
    packs: Sequence[str],
    name: str,
) -> str:
    """As earlier versions wrote it; the frame of each chunk is the row with the same number."""
    order, by_id = (
        np.lexsort(np.ascontiguousarray(each).view(">u8").astype(np.uint64).reshape(len(each), 4).T[::-1])
        for each in (digest, frames["id"])
    )
    rows = np.empty(len(digest), CHUNK_ROW)
    rows["rest"], rows["frame"], rows["place"] = digest[order, 8:], order, place[order]
    columns = (
        heads(digest)[order],
        rows,
        heads(frames["id"])[by_id],
        by_id.astype("<u4"),
        frames,
        np.frombuffer(b"".join(map(bytes.fromhex, packs)), np.uint8),
    )
    body = b"".join(column.tobytes().ljust(-(-column.nbytes // 64) * 64, b"\0") for column in columns)
    cells = [body[low : low + CELL] for low in range(0, len(body), CELL)]
    checks = b"".join(struct.pack("<Q", xxhash.xxh3_64_intdigest(cell)) for cell in cells)
    number = int(stem(name)[16:], 16)
    header = struct.pack(
        "<8s16s8sIIQIIQ",
        *(b"VADINDX1", REPOSITORY, bytes.fromhex(stem(name)[:16]), number),
        *(len(frames), len(digest), len(packs), 0, xxhash.xxh3_64_intdigest(checks)),
    ).ljust(120, b"\0")
    header += struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
    objects.backend.put(name, [header, body, checks])
    return name


def pack_of(number: int, pack: int) -> str:
    """Pack `pack` of run `number`."""
    return pack_id(run_id(number), pack)


def with_right_checks(
    objects: Objects, name: str, content: bytearray, repository_id: bytes = REPOSITORY
) -> bytes:
    """An altered segment, not sealed, with right checksums: what a forger can write."""
    end = Segment(objects, name, repository_id)._start[-1]
    cells = [bytes(content[low : min(low + CELL, end)]) for low in range(HEADER_SIZE, end, CELL)]
    checks = b"".join(struct.pack("<Q", xxhash.xxh3_64_intdigest(cell)) for cell in cells)
    content[end:] = checks
    content[56:64] = struct.pack("<Q", xxhash.xxh3_64_intdigest(checks))
    content[120:128] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(content[:120])))
    return bytes(content)
