import hashlib
import threading
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import trio
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import CLUSTER, SPAN, ConfigError, ContractError, Extents, MiB, Sink, Span
from pipeline.testing import check_codec, check_stage
from pipeline.testing.fakes import MemoryDisk
from pipeline.testing.views import all_free, covers, plain
from sinks import NullSink
from stages import (
    AllocatedExtents,
    Blake3,
    Compress,
    CutChunks,
    Dedupe,
    Digest,
    MemoryIndex,
    ReadSpans,
    Uncompressed,
    Zstd,
)
from vadpipe.kernels import (
    codec_named,
    codecs,
    cut_span,
    dedupe_span,
    digest_span,
    mark_zeros,
    register_codec,
)
from vadpipe.kernels.dedupe import FRAME, frame_rows


def digested(span):
    marked = mark_zeros(span)
    return Digest(Blake3()).kernel()(cut_span(marked)) if hasattr(marked, "buffer") else marked


@pytest.fixture
def digests(spans):
    return lambda: spans(digested)


async def test_every_chunk_gets_a_place_and_new_ones_a_frame(disk, digests):
    views = await check_stage(lambda: FreshDedupe(), digests, view=plain)
    assert covers(views, disk.capacity)
    content = {}
    new = known = 0
    for kind, facts in views:
        if kind != "DedupedSpan":
            continue
        rows = list(
            zip(
                facts["chunk_offset"],
                facts["chunk_length"],
                facts["frame"],
                facts["place"],
                facts["known"],
                strict=True,
            )
        )
        for frame in facts["frames"]:
            own = [row for row in rows[frame["first"] : frame["last"]] if not row[4]]
            assert sum(row[1] for row in own) <= FRAME
            content[frame["number"]] = np.concatenate([disk.bytes_at(row[0], row[1]) for row in own])
        for offset, length, frame, place, is_known in rows:
            assert np.array_equal(content[frame][place : place + length], disk.bytes_at(offset, length))
            new, known = new + (not is_known), known + is_known
    assert new
    assert known
    assert sum(len(data) for data in content.values()) == sum(
        length
        for kind, facts in views
        if kind == "DedupedSpan"
        for length, is_known in zip(facts["chunk_length"], facts["known"], strict=True)
        if not is_known
    )


class FreshDedupe(Dedupe):
    """An index of its own for every run, so that a second run is equal to the first."""

    def __init__(self):
        super().__init__(MemoryIndex())

    def kernel(self):
        return Dedupe(MemoryIndex()).kernel()


def test_what_an_index_knows_is_not_stored_again(digests):
    index = MemoryIndex()
    first = [dedupe_span(span, index) for span in digests() if hasattr(span, "digest")]
    again = [dedupe_span(span, index) for span in digests_again(digests, first) if hasattr(span, "digest")]
    for one, two in zip(first, again, strict=True):
        assert two.assignment.known.all()
        assert not two.assignment.frames
        assert np.array_equal(one.assignment.frame, two.assignment.frame)
        assert np.array_equal(one.assignment.place, two.assignment.place)


def digests_again(digests, spans):
    for span in spans:
        span.release()
    return digests()


rows = st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=60)


@given(rows)
def test_frames_are_full_and_hold_the_new_chunks_in_order(chunks):
    """Rows: is new, clusters."""
    new = np.array([row[0] for row in chunks], dtype=np.bool_)
    length = np.array([row[1] * 4096 for row in chunks], dtype=np.int64)
    frames = [rows.tolist() for rows in frame_rows(np.flatnonzero(new), length)]
    assert [row for rows in frames for row in rows] == np.flatnonzero(new).tolist()
    for rows in frames:
        assert length[rows].sum() <= FRAME
    for rows, following in pairwise(frames):
        assert length[[*rows, following[0]]].sum() > FRAME


def test_new_chunks_apart_share_a_frame_that_holds_them_side_by_side():
    content = np.random.default_rng(6).integers(0, 256, 32 * CLUSTER, dtype=np.uint8).tobytes()
    index = MemoryIndex()
    apart = Extents.of([(0, CLUSTER), (8 * CLUSTER, 2 * CLUSTER), (20 * CLUSTER, CLUSTER)])
    known = replace(Span.of(content), data=Extents.whole(2 * CLUSTER, 8 * CLUSTER))
    Compress(Uncompressed()).kernel()(dedupe_span(digest_span(cut_span(known), index.identity), index))
    span = replace(Span.of(content), data=apart)
    framed = Compress(Uncompressed()).kernel()(
        dedupe_span(digest_span(cut_span(span), index.identity), index)
    )
    assert framed.known.tolist() == [False, True, False]
    assert framed.chunk_place.tolist() == [0, 0, CLUSTER]
    [frame] = framed.frames
    assert frame.payload == content[:CLUSTER] + content[20 * CLUSTER : 21 * CLUSTER]
    assert frame.chunk_length.tolist() == [CLUSTER, CLUSTER]


@pytest.mark.slow
@pytest.mark.parametrize("codec", [Zstd(1), Zstd(3), Zstd(-1), Uncompressed()])
async def test_compress_encodes_new_frames_and_gives_buffers_back(disk, digests, codec):
    def deduped():
        index = MemoryIndex()
        return [dedupe_span(span, index) if hasattr(span, "digest") else span for span in digests()]

    views = await check_stage(lambda: Compress(codec), deduped, view=plain)
    assert covers(views, disk.capacity)
    decoded = 0
    for kind, facts in views:
        for frame in facts["frames"] if kind == "FramedSpan" else ():
            data = frame["payload"]
            if frame["codec"] == "zstd":
                data = zstandard.decompress(data)
            assert len(data) == frame["length"] == sum(frame["chunk_length"])
            decoded += len(data)
    assert decoded
    assert all_free(disk.pool)


def test_a_frame_that_does_not_shrink_is_stored_as_it_is(disk):
    noise = np.random.default_rng(1).bytes(MiB)
    span = Span.of(noise, pool=disk.pool)
    framed = Compress(Zstd(1)).kernel()(dedupe_span(digested(span), MemoryIndex()))
    assert [frame.codec for frame in framed.frames] == ["raw"]
    assert framed.frames[0].payload == noise


def test_an_impossible_level_is_a_config_error():
    with pytest.raises(ConfigError, match="no level 23"):
        Zstd(23)


def test_a_memory_index_grows():
    digest = np.random.default_rng(2).integers(0, 256, (150_000, 32), dtype=np.uint8)
    index = MemoryIndex()
    length = np.full(1000, 4096)
    offset = np.cumsum(length) - length
    parts = [index.assign(digest[low : low + 1000], offset, length) for low in range(0, len(digest), 1000)]
    assert not any(part.known.any() for part in parts)
    for low, part in enumerate(parts):
        again = index.assign(digest[low * 1000 :][:1000], offset, length)
        assert again.known.all()
        assert np.array_equal(again.frame, part.frame)
        assert np.array_equal(again.place, part.place)
    assert sum(len(part.frames) for part in parts) == 150 * 4  # 1000 chunks of 4 KiB are 3.9 MiB


def test_chunks_that_another_identity_named_are_refused(disk, spans):
    [span] = [item for item in spans() if isinstance(item, Span)][:1]
    with pytest.raises(
        ContractError, match=r"named the chunks with Blake3\(\), but the index .* Digest\(point\)"
    ):
        dedupe_span(digested(span), MemoryIndex(Blake3(b"1" * 32)))


async def test_the_index_is_asked_on_worker_threads_only(disk):
    asked = set()

    class Watched(MemoryIndex):
        def assign(self, digest, offset, length):
            asked.add(threading.get_ident())
            return super().assign(digest, offset, length)

    index = Watched()
    flow = AllocatedExtents(disk) | ReadSpans(disk) | CutChunks() | Digest(index) | Dedupe(index)
    await (flow | NullSink()).run()
    assert asked
    assert threading.get_ident() not in asked


@dataclass(frozen=True)
class Backwards:
    name: str = "backwards"

    def encode(self, data):
        return bytes(data)[::-1]

    def decode(self, payload, length):
        if len(payload) != length:
            raise ValueError(f"it decodes to {len(payload)} bytes instead of {length}")
        return bytes(payload)[::-1]


def test_a_registered_codec_of_the_caller_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(codecs, "_registered", dict(codecs._registered))
    with pytest.raises(ConfigError, match=r"'backwards' is not registered.* Call register_codec"):
        Compress(Backwards())
    with pytest.raises(KeyError):
        codec_named("backwards")
    assert codecs.codec_names() == ["raw", "zstd"]
    register_codec(Backwards())
    register_codec(Backwards())
    check_codec(codec_named("backwards"))
    assert Compress(Backwards()).codec == Backwards()
    with pytest.raises(ConfigError, match="Two codecs have the name 'zstd'"):
        register_codec(Backwards("zstd"))


def test_the_registered_codecs_decode_by_name():
    assert codec_named("zstd").decode(Zstd(9).encode(memoryview(b"abc" * 100)), 300) == b"abc" * 100
    with pytest.raises(ValueError, match="promises 300 bytes instead of 200"):
        codec_named("zstd").decode(Zstd(9).encode(memoryview(b"abc" * 100)), 200)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        codec_named("zstd").decode(b"no frame", 200)
    with pytest.raises(ValueError, match="decodes to 2 bytes instead of 3"):
        codec_named("raw").decode(b"ab", 3)


class Short:
    """An identity whose digests are too short."""

    name = "short"

    def digest(self, data):
        return bytes(16)


def test_digests_of_another_size_are_refused(spans):
    [span] = [item for item in spans() if isinstance(item, Span)][:1]
    with pytest.raises(ContractError, match="does not have 32 bytes"):
        Digest(Short()).kernel()(cut_span(span))


class Sha256:
    """An identity of one's own."""

    name = "sha256"

    def digest(self, data):
        return hashlib.sha256(data).digest()


async def test_an_identity_of_the_caller_works_where_the_index_has_it(disk):
    index = MemoryIndex(Sha256())
    flow = AllocatedExtents(disk) | ReadSpans(disk) | CutChunks() | Digest(index) | Dedupe(index) | Compress()
    first = await (flow | NullSink()).run()
    again = await (flow | NullSink()).run()
    assert again.known == first.known + first.new > 0
    assert again.new == 0


class SlowSink(Sink):
    """Takes a fifth of a second for a span."""

    def __init__(self):
        self.stored = 0

    async def run(self, inbox):
        async for item in inbox:
            for frame in getattr(item, "frames", ()):
                self.stored += len(frame.payload)
                decoded = codec_named(frame.codec).decode(frame.payload, frame.length)
                assert len(decoded) == frame.length
            await trio.sleep(0.2)


@pytest.mark.slow
async def test_an_automatic_level_rises_while_the_store_is_waited_for():
    words = np.random.default_rng(1).integers(0, 3000, 20 * SPAN // 8)
    text = b"".join(b"%07d " % word for word in words.tolist())
    stored = {}
    for level in (1, "auto"):
        disk, sink = MemoryDisk(np.frombuffer(text, np.uint8)), SlowSink()
        index = MemoryIndex()
        path = AllocatedExtents(disk) | ReadSpans(disk) | CutChunks() | Digest(index) | Dedupe(index)
        await (path | Compress(Zstd(level)) | sink).run()
        stored[level] = sink.stored
    assert stored["auto"] < stored[1]
