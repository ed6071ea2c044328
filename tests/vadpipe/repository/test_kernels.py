"""The kernels of the repository, each against a model."""

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import CLUSTER, DIGEST_SIZE, Extents, IntegrityError
from tests.vadpipe.repository.repository_kit import digests
from vadpipe.repository import frames
from vadpipe.repository.config import Keys, seal, unseal
from vadpipe.repository.disk_map import PAGE, PageMap, clusters, joined, page_list, root_of
from vadpipe.repository.files import Damage, machine_directory, pack_id
from vadpipe.repository.frames import Kind
from vadpipe.repository.packs import FRAME_ROW
from vadpipe.repository.segments import CHECKED, HEADS, Cells, Segment, heads, write_segment

KEYS = Keys.derive(bytes(range(32)))


# --- frames ---


def frame_of(*chunks, codec="raw"):
    data = b"".join(chunks)
    length = np.array([len(chunk) for chunk in chunks])
    names = b"".join(frames.object_record(Kind.DATA, chunk, KEYS)[0] for chunk in chunks)
    table = frames.chunk_table(length, np.frombuffer(names, np.uint8).reshape(-1, DIGEST_SIZE))
    payload = zstandard.compress(data) if codec == "zstd" else data
    record = frames.record(Kind.DATA, codec, len(data), table, frames.frame_id(table, KEYS), payload)
    return record.head + bytes(record.payload)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_frame_gives_its_bytes_back(codec):
    chunks = b"a" * CLUSTER, b"b" * 3 * CLUSTER, b"tail"
    frame = frames.parse(frame_of(*chunks, codec=codec), KEYS)
    assert bytes(frames.decode(frame, KEYS)) == b"".join(chunks)
    assert frame.chunk["length"].tolist() == [CLUSTER, 3 * CLUSTER, 4]


@pytest.mark.slow
@given(st.data())
def test_every_altered_byte_of_a_frame_is_found(data):
    content = bytearray(frame_of(b"some chunk" * 50, b"another", codec="zstd"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damage):
        frames.decode(frames.parse(content, KEYS), KEYS)


@pytest.mark.slow
@given(st.data())
def test_a_frame_cut_off_or_with_more_behind_is_found(data):
    content = frame_of(b"some chunk" * 50)
    cut = data.draw(
        st.one_of(st.just(content + b"x"), st.integers(0, len(content) - 1).map(lambda n: content[:n]))
    )
    with pytest.raises(Damage):
        frames.parse(cut, KEYS)


def test_a_checksum_made_right_again_does_not_hide_other_bytes():
    """What a forger can do without the key: a valid frame, but not that of these chunks."""
    chunk = b"x" * CLUSTER
    length, digest = np.array([CLUSTER]), np.zeros((1, DIGEST_SIZE), np.uint8)
    table = frames.chunk_table(length, digest)
    forged = frames.record(Kind.DATA, "raw", CLUSTER, table, bytes(32), chunk)
    with pytest.raises(Damage, match="id is not that of its chunks"):
        frames.parse(forged.head + chunk, KEYS)
    right_id = frames.record(Kind.DATA, "raw", CLUSTER, table, frames.frame_id(table, KEYS), chunk)
    with pytest.raises(Damage, match="digest of its chunk 0"):
        frames.decode(frames.parse(right_id.head + chunk, KEYS), KEYS)


class Backwards:
    """A codec of somebody's own."""

    name = "backwards"

    def decode(self, payload, length):
        return bytes(payload)[::-1]


def test_a_codec_of_the_caller_is_stored_by_name(monkeypatch):
    known = {"backwards": Backwards()}
    monkeypatch.setattr(frames, "codec_named", lambda name: known[name])
    chunk = b"a" * CLUSTER + b"b"
    digest, _ = frames.object_record(Kind.DATA, chunk, KEYS)
    table = frames.chunk_table(np.array([len(chunk)]), np.frombuffer(digest, np.uint8).reshape(1, -1))
    record = frames.record(
        Kind.DATA, "backwards", len(chunk), table, frames.frame_id(table, KEYS), chunk[::-1]
    )
    frame = frames.parse(record.head + bytes(record.payload), KEYS)
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
        frames.parse(content, KEYS)


def test_a_payload_that_promises_more_is_not_decompressed():
    bomb = zstandard.compress(bytes(1 << 24))
    table = frames.chunk_table(np.array([CLUSTER]), np.zeros((1, DIGEST_SIZE), np.uint8))
    record = frames.record(Kind.DATA, "zstd", CLUSTER, table, frames.frame_id(table, KEYS), bomb)
    with pytest.raises(Damage, match="promises 16777216 bytes"):
        frames.decode(frames.parse(record.head + bomb, KEYS), KEYS)


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


# --- index segments ---


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), unique=True, max_size=60), st.lists(st.integers(0, 250), max_size=40))
def test_a_segment_is_a_dict(tmp_path_factory, held, wanted):
    path = tmp_path_factory.mktemp("segment") / "a.idx"
    table = np.zeros(len(held), dtype=FRAME_ROW)  # one frame per chunk, of the same name
    table["id"] = digests(held)
    table["offset"] = np.arange(len(held)) + 100
    table["pack"] = np.arange(len(held)) % 2
    packs = [pack_id("00" * 8, serial) for serial in range(2)]
    column = np.arange(len(held))
    write_segment(path, bytes(16), "00" * 8, 0, (digests(held), column, column * 7), table, packs)
    segment = Segment(path, bytes(16))
    model = {name: row for row, name in enumerate(held)}
    frame, place = segment.lookup(digests(wanted))
    assert frame.tolist() == [model.get(name, -1) for name in wanted]
    assert place[frame >= 0].tolist() == (frame[frame >= 0] * 7).tolist()
    assert segment.find_frames(digests(wanted)).tolist() == frame.tolist()
    known = frame[frame >= 0]
    assert [address.offset - 100 for address in segment.addresses(known)] == known.tolist()
    assert np.array_equal(segment.ids(known), digests(held)[known])
    assert segment.packs() == packs
    segment.prove()


@pytest.fixture
def segment_path(tmp_path):
    random = np.random.default_rng(1)
    chunks = random.integers(0, 256, (5000, DIGEST_SIZE), dtype=np.uint8)
    table = np.zeros(100, dtype=FRAME_ROW)
    table["id"] = random.integers(0, 256, (100, DIGEST_SIZE), dtype=np.uint8)
    column = np.arange(len(chunks))
    path = tmp_path / "a.idx"
    write_segment(path, bytes(16), "00" * 8, 0, (chunks, column % 100, column), table, [pack_id("00" * 8, 0)])
    return path, chunks


@pytest.mark.slow
def test_every_altered_byte_of_a_segment_is_found(segment_path):
    path, _ = segment_path
    content = path.read_bytes()
    assert len(content) > 3 * CHECKED
    places = np.random.default_rng(2).integers(0, len(content), 100).tolist()
    for place in [*places, 0, 60, 127, 128, len(content) - 1]:
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(IntegrityError, match=r"a\.idx is damaged"):
            Segment(path, bytes(16)).prove()


def test_a_damaged_row_is_not_believed(segment_path):
    """A search that hits a damaged row raises; one that hits elsewhere does not pay for it."""
    path, chunks = segment_path
    order = np.argsort(chunks.view(">u8")[:, 0])
    first, last = chunks[order[:1]], chunks[order[-1:]]
    content = bytearray(path.read_bytes())
    place = content.index(last[0, 8:].tobytes()) + DIGEST_SIZE - 8  # its frame number
    content[place] ^= 1
    path.write_bytes(content)
    segment = Segment(path, bytes(16))
    with pytest.raises(IntegrityError, match="checksum of bytes"):
        segment.lookup(last)
    assert segment.lookup(first)[0][0] >= 0


def test_a_segment_of_another_repository_is_refused(segment_path):
    with pytest.raises(IntegrityError, match="another repository"):
        Segment(segment_path[0], bytes(15) + b"x")


def test_digests_with_equal_heads_sort_and_are_found(tmp_path):
    chunks = digests(range(0, 800, 8))[::-1]
    frame = np.zeros(1, dtype=FRAME_ROW)
    column = np.arange(len(chunks))
    write_segment(
        tmp_path / "a.idx",
        bytes(16),
        "00" * 8,
        0,
        (chunks, column * 0, column),
        frame,
        [pack_id("00" * 8, 0)],
    )
    found, place = Segment(tmp_path / "a.idx", bytes(16)).lookup(chunks)
    assert (found == 0).all()
    assert np.array_equal(place, column)


# --- sealed documents and names ---


@pytest.mark.slow
@given(st.data())
def test_every_altered_byte_of_a_sealed_document_is_found(data):
    fields = {"name": "Büro \ud800", "list": [1, 2.5, None, True], "nested": {"b": 1, "a": "x"}}
    content = bytearray(seal(fields, KEYS.seal))
    assert unseal(bytes(content), KEYS.seal) == fields
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damage):
        unseal(bytes(content), KEYS.seal)


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


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_a_column_of_many_cells_is_searched_like_an_array(tmp_path, clustered):
    """Where the guess is right at once, and where digests are not uniform and it has to walk."""
    random = np.random.default_rng(3)
    chunks = random.integers(0, 256, (60_000, DIGEST_SIZE), dtype=np.uint8)
    if clustered:
        chunks[: len(chunks) // 2, :3] = 7
        chunks[:20_000, :8] = 7  # thousands of equal heads, over several cells
    column = np.arange(len(chunks))
    path = tmp_path / "a.idx"
    frames_ = np.zeros(len(chunks), FRAME_ROW)
    frames_["id"] = chunks[::-1]
    write_segment(path, bytes(16), "00" * 8, 0, (chunks, column, column), frames_, [pack_id("00" * 8, 0)])
    segment = Segment(path, bytes(16), Cells(4 * CHECKED))
    wanted = np.concatenate((chunks[::97], random.integers(0, 256, (500, DIGEST_SIZE), dtype=np.uint8)))
    heads_of = np.sort(heads(chunks))
    bound = segment.lower_bound(HEADS, heads(wanted))
    assert np.array_equal(bound, np.searchsorted(heads_of, heads(wanted)))
    wanted = wanted[-800:]
    frame, place = segment.lookup(wanted)
    known = frame >= 0
    assert known.sum() == 300
    assert np.array_equal(chunks[frame[known]], wanted[known])
    assert np.array_equal(place[known], frame[known])
    assert np.array_equal(segment.find_frames(wanted)[known], len(chunks) - 1 - frame[known])
