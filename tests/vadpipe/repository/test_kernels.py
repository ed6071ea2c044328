"""The kernels of the repository, each against a model."""

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import CLUSTER, DIGEST_SIZE, Extents
from tests.vadpipe.repository.repository_kit import digests
from vadpipe.kernels.codecs import Zstd
from vadpipe.repository.format import frames
from vadpipe.repository.format.config import Config, Keys, seal, unseal
from vadpipe.repository.format.disk_map import PAGE, PageMap, clusters, joined, page_list, root_of
from vadpipe.repository.format.frames import Kind
from vadpipe.repository.format.objects import Damage, machine_directory
from vadpipe.repository.format.sealing import Sealing

KEYS = Keys.derive(bytes(range(32)))
CONFIG = Config(bytes(16), "now", 2, True, KEYS, Sealing(bytes(16), None))


# --- frames ---


def frame_of(*chunks, codec="raw"):
    data = b"".join(chunks)
    length = np.array([len(chunk) for chunk in chunks])
    names = b"".join(frames.object_digest(Kind.DATA, chunk, CONFIG) for chunk in chunks)
    table = frames.chunk_table(length, np.frombuffer(names, np.uint8).reshape(-1, DIGEST_SIZE))
    payload = zstandard.compress(data) if codec == "zstd" else data
    record = frames.record(Kind.DATA, codec, len(data), table, frames.frame_id(table, KEYS), payload, CONFIG)
    return record.head + bytes(record.payload)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_frame_gives_its_bytes_back(codec):
    chunks = b"a" * CLUSTER, b"b" * 3 * CLUSTER, b"tail"
    frame = frames.parse(frame_of(*chunks, codec=codec), CONFIG)
    assert bytes(frames.decode(frame, KEYS)) == b"".join(chunks)
    assert frame.chunk["length"].tolist() == [CLUSTER, 3 * CLUSTER, 4]


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_frame_is_decoded_into_memory_of_its_length(codec):
    chunks = b"a" * CLUSTER, b"b" * 3 * CLUSTER, b"tail"
    frame = frames.parse(frame_of(*chunks, codec=codec), CONFIG)
    around = bytearray(frame.length + 16)
    frames.decode(frame, KEYS, memoryview(around)[8:-8])
    assert bytes(around) == bytes(8) + b"".join(chunks) + bytes(8)


def test_a_payload_that_does_not_say_its_length_is_decoded_into_memory():
    data = b"a" * 3 * CLUSTER
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    target = bytearray(len(data))
    Zstd().decode_into(payload, memoryview(target))
    assert target == data


@pytest.mark.parametrize("length", [CLUSTER - 1, CLUSTER + 1])
def test_a_payload_of_another_length_is_not_decoded_into_memory(length):
    with pytest.raises(ValueError, match=f"promises {CLUSTER} bytes instead of {length}"):
        Zstd().decode_into(zstandard.compress(b"a" * CLUSTER), memoryview(bytearray(length)))


def test_a_payload_that_is_cut_off_is_not_decoded_into_memory():
    payload = zstandard.compress(bytes(range(256)) * 64)
    with pytest.raises(ValueError, match="decode"):
        Zstd().decode_into(payload[:-20], memoryview(bytearray(256 * 64)))


@pytest.mark.slow
@given(st.data())
def test_every_altered_byte_of_a_frame_is_found(data):
    content = bytearray(frame_of(b"some chunk" * 50, b"another", codec="zstd"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damage):
        frames.decode(frames.parse(content, CONFIG), KEYS)
    with pytest.raises(Damage):
        frames.decode(frames.parse(bytes(content), CONFIG), KEYS, memoryview(bytearray(507)))


@pytest.mark.slow
@given(st.data())
def test_a_frame_cut_off_or_with_more_behind_is_found(data):
    content = frame_of(b"some chunk" * 50)
    cut = data.draw(
        st.one_of(st.just(content + b"x"), st.integers(0, len(content) - 1).map(lambda n: content[:n]))
    )
    with pytest.raises(Damage):
        frames.parse(cut, CONFIG)


def test_a_checksum_made_right_again_does_not_hide_other_bytes():
    """What a forger can do without the key: a valid frame, but not that of these chunks."""
    chunk = b"x" * CLUSTER
    length, digest = np.array([CLUSTER]), np.zeros((1, DIGEST_SIZE), np.uint8)
    table = frames.chunk_table(length, digest)
    forged = frames.record(Kind.DATA, "raw", CLUSTER, table, bytes(32), chunk, CONFIG)
    with pytest.raises(Damage, match="id is not that of its chunks"):
        frames.parse(forged.head + chunk, CONFIG)
    right_id = frames.record(Kind.DATA, "raw", CLUSTER, table, frames.frame_id(table, KEYS), chunk, CONFIG)
    with pytest.raises(Damage, match="digest of its chunk 0"):
        frames.decode(frames.parse(right_id.head + chunk, CONFIG), KEYS)


class Backwards:
    """A codec of somebody's own."""

    name = "backwards"

    def decode(self, payload, length):
        return bytes(payload)[::-1]


def test_a_codec_of_the_caller_is_stored_by_name(monkeypatch):
    known = {"backwards": Backwards()}
    monkeypatch.setattr(frames, "codec_named", lambda name: known[name])
    chunk = b"a" * CLUSTER + b"b"
    digest = frames.object_digest(Kind.DATA, chunk, CONFIG)
    table = frames.chunk_table(np.array([len(chunk)]), np.frombuffer(digest, np.uint8).reshape(1, -1))
    record = frames.record(
        Kind.DATA, "backwards", len(chunk), table, frames.frame_id(table, KEYS), chunk[::-1], CONFIG
    )
    frame = frames.parse(record.head + bytes(record.payload), CONFIG)
    assert bytes(frames.decode(frame, KEYS)) == chunk
    known.clear()
    with pytest.raises(Damage, match="written with the codec 'backwards', which is not registered"):
        frames.decode(frame, KEYS)


def test_a_codec_number_that_is_not_known_is_named():
    content = bytearray(frame_of(b"a" * CLUSTER))
    content[5] = 9
    head = bytes(content[: frames.HEADER.size])
    place = frames.HEADER.size
    content[place : place + 8] = frames.CHECKSUM.pack(
        xxhash.xxh3_64_intdigest(head + bytes(content[frames.HEADER_SIZE :]))
    )
    with pytest.raises(Damage, match="its codec has the number 9"):
        frames.parse(content, CONFIG)


def test_a_payload_that_promises_more_is_not_decompressed():
    bomb = zstandard.compress(bytes(1 << 24))
    table = frames.chunk_table(np.array([CLUSTER]), np.zeros((1, DIGEST_SIZE), np.uint8))
    record = frames.record(Kind.DATA, "zstd", CLUSTER, table, frames.frame_id(table, KEYS), bomb, CONFIG)
    with pytest.raises(Damage, match="promises 16777216 bytes"):
        frames.decode(frames.parse(record.head + bomb, CONFIG), KEYS)


# --- disk maps ---

PLACES = 64  # clusters of a test page that are used


@st.composite
def page_maps(draw):
    """A page over the first PLACES clusters, with the model: (frame, place) of each cluster."""
    model = draw(
        st.lists(
            st.none() | st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=PLACES, max_size=PLACES
        )
    )
    rows = [(at, cell) for at, cell in enumerate(model) if cell is not None]
    ids = digests(draw(st.permutations(range(6))))
    name_of = {number: ids[number].tobytes() for number in range(6)}
    page = PageMap(
        np.array([at for at, _ in rows], np.int64),
        np.ones(len(rows), np.int64),
        np.array([cell[0] for _, cell in rows], np.int64),
        np.array([cell[1] for _, cell in rows], np.int64),
        ids,
    )
    return page, [cell and (name_of[cell[0]], cell[1]) for cell in model]


def cells(page):
    model = [None] * PLACES
    for offset, count, frame, place in zip(page.offset, page.count, page.frame, page.place, strict=True):
        for step in range(count):
            model[offset + step] = page.frame_ids[frame].tobytes(), place + step
    return model


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(page_maps())
def test_a_page_has_one_encoding_that_gives_it_back(made):
    page, model = made
    content = page.canonical().encode()
    parsed = PageMap.parse(content)
    assert cells(parsed) == model
    assert parsed.canonical().encode() == content
    assert joined([parsed, PageMap.empty()]).encode() == content
    assert len({row.tobytes() for row in parsed.frame_ids}) == len(parsed.frame_ids)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(page_maps(), page_maps(), st.sets(st.integers(0, PLACES)))
def test_pages_are_merged_like_arrays(one, other, edges):
    borders = np.array(sorted(edges)[: len(edges) // 2 * 2], np.int64).reshape(-1, 2)
    inside = np.zeros(PLACES, bool)
    for low, high in borders:
        inside[low:high] = True
    rest = Extents.of((low * CLUSTER, (high - low) * CLUSTER) for low, high in borders).inverted(
        0, PLACES * CLUSTER
    )
    merged = joined([one[0].within(borders[:, 0], borders[:, 1]), other[0].within(*clusters(rest, 0))])
    assert cells(merged) == [
        a if chosen else b for a, b, chosen in zip(one[1], other[1], inside, strict=True)
    ]


def test_clusters_are_relative_to_the_page_and_the_tail_counts_whole():
    extents = Extents.of([(3 * PAGE + CLUSTER, CLUSTER), (3 * PAGE + 5 * CLUSTER, CLUSTER + 512)])
    first, last = clusters(extents, 3)
    assert (first.tolist(), last.tolist()) == ([1, 5], [2, 7])


@pytest.mark.slow
def test_a_fully_mapped_page_fits_its_sixteen_bits():
    every = np.arange(1 << 16)
    page = PageMap(every, np.ones_like(every), every, np.zeros_like(every), digests(range(1 << 16)))
    parsed = PageMap.parse(page.canonical().encode())
    assert len(parsed) == len(parsed.frame_ids) == 1 << 16
    assert int(parsed.end[-1]) * CLUSTER == PAGE


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(page_maps(), st.data())
def test_a_page_that_is_cut_off_or_impossible_is_refused(made, data):
    content = made[0].canonical().encode()
    with pytest.raises(Damage):
        PageMap.parse(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(Damage):
        PageMap.parse(content + b"x")


def test_the_root_hangs_on_capacity_and_on_every_page():
    pages = digests(range(3))
    roots = {
        root_of(capacity, page_list(table), KEYS)
        for capacity in (3 * PAGE, 3 * PAGE - 512)
        for table in (pages, pages[::-1], pages[:2])
    }
    assert len(roots) == 6


# --- sealed documents and names ---


@pytest.mark.slow
@given(st.data())
def test_every_altered_byte_of_a_sealed_document_is_found(data):
    fields = {"name": "Büro \ud800", "list": [1, 2.5, None, True], "nested": {"b": 1, "a": "x"}}
    content = bytearray(seal(fields, KEYS.seal))
    assert unseal(bytes(content), KEYS.seal).items() >= fields.items()
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damage):
        unseal(bytes(content), KEYS.seal)


@pytest.mark.parametrize("fields", [{"a": 1}, {"a": 1, "z": 2}, {"z": 2}], ids=["last", "between", "first"])
def test_a_sealed_document_has_its_line_with_the_seal_in_one_place(fields):
    content = seal(fields, KEYS.seal)
    assert unseal(content, KEYS.seal).items() >= fields.items()
    sealed = [line for line in content.splitlines(keepends=True) if b"seal" in line]
    others = content.replace(sealed[0], b"").splitlines(keepends=True)
    for place in range(len(others) + 1):
        moved = b"".join(others[:place] + sealed + others[place:])
        if moved != content:
            with pytest.raises(Damage):
                unseal(moved, KEYS.seal)


@pytest.mark.parametrize(
    "altered",
    [
        lambda text: text.replace(b"\n", b""),
        lambda text: text.replace(b'"seal": ', b'"seal":'),
        lambda text: text.replace(b'\n "seal"', b'\n  "seal"'),
        lambda text: text + b"\n",
        lambda text: text.replace(b'"seal"', b'"seal": "", "seal"'),
        lambda text: text.replace(b"}\n", b' , "seal": ""}\n'),
        lambda text: text.upper(),
        lambda text: text.replace(b'"a": 1', b'"a": 1.0'),
    ],
)
def test_a_document_that_is_written_otherwise_is_refused(altered):
    content = seal({"a": 1, "n": {"b": []}, "z": 2}, KEYS.seal)
    assert altered(content) != content
    with pytest.raises(Damage):
        unseal(altered(content), KEYS.seal)


def test_a_seal_of_another_key_is_wrong():
    with pytest.raises(Damage, match="seal"):
        unseal(seal({"a": 1}, KEYS.seal), KEYS.root)


@given(st.text(max_size=40))
def test_a_uuid_is_one_name_in_its_directory(uuid):
    try:
        uuid.encode()
    except UnicodeEncodeError:
        return
    name = machine_directory(uuid)
    assert "/" not in name
    assert name not in (".", "..")
    assert "\0" not in name
