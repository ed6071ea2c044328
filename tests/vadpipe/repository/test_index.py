"""Index segments, filters and the index of a run, each against a model."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import NO_FRAME, ContractError, IntegrityError, SinkError
from tests.vadpipe.repository.index_kit import (
    CHUNK,
    KEYS,
    REPOSITORY,
    SEALING,
    add_run,
    frames_of_one,
    known,
    memory,
    pack_of,
    put_segment,
    put_segment_of_format_1,
    random_digests,
    run_id,
    with_right_checks,
)
from tests.vadpipe.repository.repository_kit import digests
from vadpipe.repository.backends.contract import ObjectExists
from vadpipe.repository.format.frames import chunk_table, frame_id
from vadpipe.repository.format.objects import ENDED, Objects, pack_id, segment_name
from vadpipe.repository.format.packs import FRAME_ROW, FrameAddress
from vadpipe.repository.format.sealing import Sealing, Secrets
from vadpipe.repository.index import lookup as index_module
from vadpipe.repository.index import proofs
from vadpipe.repository.index.cells import CELL, Cells
from vadpipe.repository.index.filters import Filters
from vadpipe.repository.index.format1_segments import HEADS, Segment1
from vadpipe.repository.index.lookup import Index, Removed, RunIndex
from vadpipe.repository.index.segment_writer import TemporarySegment
from vadpipe.repository.index.segments import (
    DTYPES,
    ENTRIES,
    FILTER,
    FIRSTS,
    FRAMES,
    HEADER_SIZE,
    ID_ENTRIES,
    ROWS,
    STARTS,
    Segment,
    filter_words,
    heads,
)
from vadpipe.repository.maintenance.verify import _Lengths

NAME = segment_name("00" * 8, 0)
PACKS = [pack_id("00" * 8, serial) for serial in range(2)]
sealed_or_not = pytest.mark.parametrize("sealing", [None, SEALING], ids=["plain", "sealed"])
each_format = pytest.mark.parametrize("version", [1, 2])


def segment_of(objects, version, digest, frames, place, cells=None):
    if version == 1:
        put_segment_of_format_1(objects, digest, frames, place, PACKS, NAME)
        return Segment1(objects, NAME, REPOSITORY, cells=cells)
    put_segment(objects, digest, frames, place, PACKS)
    return Segment(objects, NAME, REPOSITORY, cells=cells)


# --- segments ---


@each_format
@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), unique=True, max_size=60), st.lists(st.integers(0, 250), max_size=40))
def test_a_segment_is_a_dict(version, held, wanted):
    """Many digests of these agree in their first eight bytes."""
    frames = frames_of_one(digests(held))
    frames["pack"] = np.arange(len(held)) % 2
    segment = segment_of(memory(), version, digests(held), frames, np.arange(len(held)) * 7)
    model = {name: row for row, name in enumerate(held)}
    frame, place = segment.lookup(digests(wanted))
    assert frame.tolist() == [model.get(name, -1) for name in wanted]
    assert place[frame >= 0].tolist() == (frame[frame >= 0] * 7).tolist()
    assert segment.find_frames(digests(wanted)).tolist() == frame.tolist()
    found = frame[frame >= 0]
    assert [address.offset - 100 for address in segment.addresses(found)] == found.tolist()
    assert np.array_equal(segment.ids(found), digests(held)[found])
    assert segment.packs() == PACKS
    segment.prove()


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_a_table_of_many_cells_is_searched_like_an_array(clustered):
    """Also where digests are not uniform, and thousands of them have equal heads."""
    chunks = random_digests(3, 60_000)
    if clustered:
        chunks[:30_000, :3] = 7
        chunks[:20_000, :8] = 7
    frames = frames_of_one(chunks[::-1])
    segment = segment_of(memory(), 2, chunks, frames, np.arange(len(chunks)), Cells(4 * CELL))
    assert segment.count(ENTRIES) * 8 > CELL
    wanted = np.concatenate((chunks[::97] if not clustered else chunks[20_000::97], random_digests(4, 500)))
    frame, place = segment.lookup(wanted)
    assert (frame >= 0).sum() == len(wanted) - 500
    assert np.array_equal(chunks[frame[frame >= 0]], wanted[frame >= 0])
    assert np.array_equal(place[frame >= 0], frame[frame >= 0])
    assert np.array_equal(segment.find_frames(wanted)[frame >= 0], len(chunks) - 1 - frame[frame >= 0])
    if clustered:
        assert segment.lookup(chunks[:20_000:1999])[0].tolist() == list(range(0, 20_000, 1999))
    segment.prove()


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_entries_that_are_read_without_a_proof_give_the_same_rows(clustered):
    """Also where the digests are not where uniform ones would be."""
    objects, chunks = memory(), random_digests(3, 60_000)
    if clustered:
        chunks[:30_000, :3] = 7
        chunks[:20_000, :8] = 7
        chunks[30_000:40_000, :2] = 9
    segment = segment_of(objects, 2, chunks, frames_of_one(chunks), np.arange(len(chunks)), Cells(CELL))
    assert segment.is_scattered(ENTRIES)
    order = np.append(np.random.default_rng(5).permutation(20_000)[:600] + 20_000, [5, 19_999])
    wanted = np.concatenate((chunks[order], random_digests(4, 600), chunks[-600:]))
    wanted[-10:, :3] = 7
    expected = segment.find(wanted)
    assert (expected >= 0).sum() > 1100
    assert np.array_equal(segment.find(wanted, proved=False), expected)
    assert segment.find(wanted[:1], proved=False).tolist() == expected[:1].tolist()
    assert segment.find(wanted[:0], proved=False).tolist() == []


def test_damaged_entries_hide_a_chunk_at_most():
    """Whoever only wants to know what to store again may overlook it. `prove` finds the damage."""
    objects, chunks = memory(), random_digests(3, 60_000)
    name = put_segment(objects, chunks, frames_of_one(chunks), np.arange(len(chunks)), PACKS)
    content = bytearray(objects.backend.read(name))
    begin = Segment(objects, name, REPOSITORY)._start[ENTRIES]
    for row in range(0, 45_000, 3):  # bits of the digest, then bits of the row that it stands in
        content[begin + 8 * row + (4 if row % 2 else 1)] ^= 1
    objects.backend.replace(name, [content])
    segment = Segment(objects, name, REPOSITORY, cells=Cells(CELL))
    wanted = np.concatenate((chunks[:1000], random_digests(4, 1000)))
    found = segment.find(wanted, proved=False)
    assert (found[1000:] == -1).all()
    assert 600 < (found >= 0).sum() < 900
    assert (found[found >= 0] == np.flatnonzero(found >= 0)).all()
    for reading in (lambda: segment.find(wanted), segment.prove):
        with pytest.raises(IntegrityError, match="checksum of bytes"):
            reading()


def test_a_sealed_segment_is_read_in_whole_cells():
    objects, chunks = memory(), random_digests(3, 60_000)
    name = put_segment(objects, chunks, frames_of_one(chunks), np.arange(len(chunks)), PACKS, sealing=SEALING)
    segment = Segment(objects, name, REPOSITORY, SEALING, Cells(CELL))
    assert not segment.is_scattered(ENTRIES)
    assert segment.find(chunks[:50], proved=False).tolist() == list(range(50))


@pytest.mark.slow
def test_a_column_of_format_1_with_many_cells_is_searched_like_an_array():
    chunks = random_digests(3, 60_000)
    chunks[:30_000, :3] = 7
    chunks[:20_000, :8] = 7
    segment = segment_of(memory(), 1, chunks, frames_of_one(chunks[::-1]), np.arange(60_000), Cells(4 * CELL))
    wanted = np.concatenate((chunks[20_000::97], random_digests(4, 500)))
    expected = np.searchsorted(np.sort(heads(chunks)), heads(wanted))
    assert np.array_equal(segment.lower_bound(HEADS, heads(wanted)), expected)
    frame, _ = segment.lookup(wanted)
    assert (frame >= 0).sum() == len(wanted) - 500
    assert np.array_equal(chunks[frame[frame >= 0]], wanted[frame >= 0])


@pytest.fixture(params=[1, 2, "sealed"])
def written(request):
    """A segment of several cells: the objects, its chunks, and how it is opened."""
    objects, chunks = memory(), random_digests(1, 5000)
    frames, place = frames_of_one(random_digests(2, 5000)), np.arange(5000)
    sealing = SEALING if request.param == "sealed" else None
    if request.param == 1:
        put_segment_of_format_1(objects, chunks, frames, place, PACKS, NAME)
        return objects, chunks, lambda: Segment1(objects, NAME, REPOSITORY)
    put_segment(objects, chunks, frames, place, PACKS, sealing=sealing)
    return objects, chunks, lambda: Segment(objects, NAME, REPOSITORY, sealing)


@pytest.mark.slow
def test_every_altered_byte_of_a_segment_is_found(written):
    objects, _, opened = written
    content = objects.backend.read(NAME)
    assert len(content) > 3 * CELL
    places = np.random.default_rng(2).integers(0, len(content), 100).tolist()
    for place in [*places, 0, 60, 127, 128, len(content) - 1]:
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        objects.backend.replace(NAME, [altered])
        with pytest.raises(IntegrityError, match=r"\.idx is damaged") as raised:
            opened().prove()
        assert raised.value.facts["segment"] == objects.place(NAME)


@pytest.mark.slow
def test_a_segment_that_is_cut_off_or_longer_is_found(written):
    objects, _, opened = written
    content = objects.backend.read(NAME)
    for cut in [0, 1, 16, 127, 128, 200, CELL, len(content) - 1]:
        objects.backend.replace(NAME, [content[:cut]])
        with pytest.raises(IntegrityError, match="is damaged"):
            opened()
    objects.backend.replace(NAME, [content, b"x"])
    with pytest.raises(IntegrityError, match="its size is wrong"):
        opened()


def test_a_damaged_row_is_not_believed(written):
    """A search that hits a damaged cell raises; one that hits elsewhere does not pay for it."""
    objects, chunks, opened = written
    segment = opened()
    is_old = isinstance(segment, Segment1)
    order = np.argsort(heads(chunks)) if is_old else np.arange(len(chunks))
    content = bytearray(objects.backend.read(NAME))
    end_of_rows = segment._start[2] if is_old else segment._start[ROWS + 1]
    content[end_of_rows - 10] ^= 1
    objects.backend.replace(NAME, [content])
    segment = opened()
    with pytest.raises(IntegrityError, match="checksum of bytes"):
        segment.lookup(chunks[order[-2:]])
    assert segment.lookup(chunks[order[:1]])[0][0] >= 0


def test_a_segment_of_another_repository_is_refused():
    objects = memory()
    put_segment(objects, random_digests(1, 4), frames_of_one(random_digests(2, 4)), np.arange(4), PACKS)
    with pytest.raises(IntegrityError, match="another repository"):
        Segment(objects, NAME, bytes(16))


@sealed_or_not
def test_a_segment_under_the_name_of_another_is_refused(sealing):
    objects, other = memory(), segment_name("00" * 8, 1)
    chunks = random_digests(1, 4)
    put_segment(objects, chunks, frames_of_one(chunks), np.arange(4), PACKS, sealing=sealing)
    content = objects.backend.read(NAME)
    objects.backend.put(other, [content])
    with pytest.raises(IntegrityError, match="content of another segment"):
        Segment(objects, other, REPOSITORY, sealing)


def with_header(content, offset, field):
    """The same with other bytes in the header, whose checksum is right again."""
    header = bytearray(content[:HEADER_SIZE])
    header[offset : offset + len(field)] = field
    header[120:] = xxhash.xxh3_64_intdigest(bytes(header[:120])).to_bytes(8, "little")
    return bytes(header) + content[HEADER_SIZE:]


def test_a_sealed_segment_that_was_renamed_with_right_checksums_does_not_open():
    objects, other, chunks = memory(), segment_name("00" * 8, 1), random_digests(1, 4)
    put_segment(objects, chunks, frames_of_one(chunks), np.arange(4), PACKS, sealing=SEALING)
    objects.backend.put(other, [with_header(objects.backend.read(NAME), 32, (1).to_bytes(4, "little"))])
    with pytest.raises(IntegrityError, match="its encryption does not fit"):
        Segment(objects, other, REPOSITORY, SEALING).prove()


@pytest.mark.parametrize(
    ("offset", "field", "problem"),
    [
        (0, b"VADINDX3", "not an index segment of format 2"),
        (36, b"\xff\xff\xff\xff", "its size is wrong"),
        (40, b"\xff" * 8, "impossible"),
        (48, b"\xff\xff\xff\xff", "its size is wrong"),
        (52, b"\1", "its size is wrong"),  # an epoch
        (64, b"\1", "impossible"),  # a salt without an epoch
        (56, b"\0" * 8, "checksum of its checksums"),
    ],
)
def test_an_impossible_header_with_a_right_checksum_is_named(offset, field, problem):
    objects, chunks = memory(), random_digests(1, 4)
    put_segment(objects, chunks, frames_of_one(chunks), np.arange(4), PACKS)
    objects.backend.replace(NAME, [with_header(objects.backend.read(NAME), offset, field)])
    with pytest.raises(IntegrityError, match=problem):
        Segment(objects, NAME, REPOSITORY)


@pytest.mark.slow
def test_a_sealed_segment_shows_nothing_in_the_clear_and_is_proved_without_the_key():
    objects, chunks = memory(), random_digests(1, 3000)
    packs = ["5eb1" * 6]
    put_segment(objects, chunks, frames_of_one(chunks), np.arange(3000), packs, sealing=SEALING)
    content = objects.backend.read(NAME)
    assert not any(chunk.tobytes()[:8] in content for chunk in chunks)
    assert bytes.fromhex(packs[0]) not in content
    assert Segment(objects, NAME, REPOSITORY, SEALING).find(chunks).tolist() == list(range(3000))
    with pytest.raises(IntegrityError, match="encrypted, but the repository is not sealed"):
        Segment(objects, NAME, REPOSITORY)
    with pytest.raises(IntegrityError, match="epoch 2, whose key"):
        Segment(objects, NAME, REPOSITORY, Sealing(REPOSITORY, Secrets(bytes(32), {1: b"1" * 32})))


def test_a_plain_segment_in_a_sealed_repository_is_refused():
    objects, chunks = memory(), random_digests(1, 4)
    put_segment(objects, chunks, frames_of_one(chunks), np.arange(4), PACKS)
    with pytest.raises(IntegrityError, match="not encrypted, but the repository is sealed"):
        Segment(objects, NAME, REPOSITORY, SEALING)


@each_format
def test_frames_are_compared_with_the_rows_that_the_index_has_of_them(version):
    chunks = random_digests(1, 6)
    segment = segment_of(memory(), version, chunks, frames_of_one(chunks), np.arange(6))
    frame, one = np.array([4, 1]), np.array([1, 1])
    assert segment.agreeing(frame, one, chunks[[4, 1]], np.array([4, 1])) == 2
    assert segment.agreeing(frame, one, chunks[[1, 4]], np.array([4, 1])) == 0
    assert segment.agreeing(frame, one, chunks[[4, 1]], np.array([4, 2])) == 1


def test_a_chunk_that_two_frames_of_a_segment_have_agrees_with_both():
    chunks = random_digests(1, 8)
    chunks[5] = chunks[2]
    frames = frames_of_one(chunks[:2])
    frames["chunks"] = 4
    place = np.tile(np.arange(4), 2) * CHUNK
    segment = segment_of(memory(), 2, chunks, frames, place)
    segment.prove()
    assert segment.agreeing(np.array([1, 0]), np.array([4, 4]), np.roll(chunks, 4, axis=0), place) == 8
    assert segment.agreeing(np.array([1]), np.array([9]), np.tile(chunks[4:], (3, 1))[:9], np.arange(9)) <= 4


@pytest.mark.parametrize("section", [ROWS, FIRSTS, ENTRIES, STARTS, ID_ENTRIES])
def test_columns_that_do_not_fit_each_other_are_found_though_their_checksums_are_right(section, monkeypatch):
    """Two neighbouring rows of one column are exchanged."""
    for module in ("segments", "frame_columns"):
        monkeypatch.setattr(f"vadpipe.repository.index.{module}.PIECE", 500)
    objects, chunks = memory(), random_digests(1, 3000)
    name = put_segment(objects, chunks, frames_of_one(random_digests(2, 3000)), np.arange(3000), PACKS)
    segment = Segment(objects, name, REPOSITORY)
    segment.prove()
    size, low = DTYPES[section].itemsize, segment._start[section]
    content = bytearray(objects.backend.read(name))
    one, two = content[low : low + size], content[low + size : low + 2 * size]
    content[low : low + 2 * size] = two + one
    objects.backend.replace(name, [with_right_checks(objects, name, content)])
    with pytest.raises(IntegrityError, match="is damaged"):
        Segment(objects, name, REPOSITORY).prove()


# --- filters ---


@pytest.mark.parametrize("budget", [1 << 20, 30_000, 1])
def test_a_filter_lets_every_known_chunk_through(budget):
    objects, runs = memory(), [random_digests(seed, 3000 + seed) for seed in range(3)]
    segments = [
        Segment(objects, name, REPOSITORY)
        for number, chunks in enumerate(runs)
        for name in add_run(objects, number, chunks)
    ]
    filters = Filters(segments, budget)
    assert filters.maybe(heads(runs[0])).all()
    filters.load()
    assert filters.loaded <= max(budget, 8 * sum(filter_words(len(chunks)) for chunks in runs) // 60)
    for number, chunks in enumerate(runs):
        assert filters.maybe(heads(chunks))[number].all()
    unknown = filters.maybe(heads(random_digests(99, 4000))).mean()
    if budget >= 1 << 20:
        assert unknown < 0.012  # 0.8 % measured


def segments_of(objects, *sizes):
    runs = [random_digests(number, size) for number, size in enumerate(sizes)]
    names = [put_run(objects, number, chunks) for number, chunks in enumerate(runs)]
    return runs, [Segment(objects, name, REPOSITORY) for name in names]


def put_run(objects, number, chunks):
    frames = frames_of_one(chunks)
    name = segment_name(run_id(number), 0)
    return put_segment(objects, chunks, frames, np.zeros(len(chunks), np.int64), PACKS, name=name)


def test_where_memory_is_short_the_largest_filter_gets_coarser_and_small_ones_stay():
    """Every segment adds the chunks that seem to be in it."""
    runs, segments = segments_of(memory(), 40_000, 800, 400)
    filters = Filters(segments, 30_000)
    filters.load()
    assert 16_000 < filters.loaded <= 30_000
    unknown = filters.maybe(heads(random_digests(99, 20_000))).mean(axis=1)
    assert 0.05 < unknown[0] < 0.3
    assert unknown[1:].max() < 0.012
    for number, chunks in enumerate(runs):
        assert filters.maybe(heads(chunks))[number].all()


@pytest.mark.parametrize("budget", [1 << 20, 50_000, 9_000, 1])
def test_filters_that_were_added_are_those_that_are_loaded_together(budget):
    sizes = 5000, 300, 9000, 0, 2000
    runs, segments = segments_of(memory(), *sizes)
    together, added = Filters(segments, budget), Filters(segments[:1], budget)
    together.load()
    for number, segment in enumerate(segments[1:], 2):
        added.add(segment)
        assert len(added) == number
        assert added.loaded <= max(budget, 8 * sum(map(filter_words, sizes)) // 60)
    head = heads(np.concatenate((*runs, random_digests(99, 4000))))
    assert np.array_equal(added.maybe(head), together.maybe(head))
    assert added.loaded == together.loaded


def test_the_filter_of_merged_and_small_segments_has_whole_groups():
    assert [filter_words(chunks) for chunks in (0, 1, 240, 241)] == [0, 60, 60, 120]


# --- the index of a reader ---


def test_a_merged_segment_that_is_gone_is_skipped_and_reload_finds_the_new_one():
    objects = memory()
    names = add_run(objects, 1, random_digests(1, 40))
    index = Index(objects, REPOSITORY)
    number, _ = index.lookup(random_digests(1, 40))
    add_run(objects, 2, random_digests(2, 40))
    assert (index.lookup(random_digests(2, 40))[0] == NO_FRAME).all()
    index.reload()
    assert (index.lookup(random_digests(2, 40))[0] != NO_FRAME).all()
    assert np.array_equal(index.lookup(random_digests(1, 40))[0], number)
    objects.backend.delete(names)
    index.reload()
    assert [segment.name for segment in index.segments] == [segment_name(run_id(2), 0)]
    assert index.damaged == []


def test_a_segment_that_vanishes_between_listing_and_opening_is_no_damage():
    class Vanishing:
        def __init__(self, backend):
            self.backend = backend

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def list(self, prefix):
            found = list(self.backend.list(prefix))
            self.backend.delete([found[0].name])
            return iter(found)

    objects = memory()
    for number in (1, 2):
        add_run(objects, number, random_digests(number, 8))
    index = Index(Objects(Vanishing(objects.backend)), REPOSITORY)
    assert len(index.segments) == 1
    assert index.damaged == []


def test_the_name_of_a_run_that_was_ended_is_no_segment():
    objects = memory()
    objects.backend.put(segment_name(run_id(7), 0), [ENDED + bytes(8)])
    add_run(objects, 8, random_digests(1, 8))
    index = Index(objects, REPOSITORY)
    assert len(index.segments) == 1
    assert index.damaged == []
    objects.backend.replace(segment_name(run_id(7), 0), [b"VADENDEX" + bytes(8)])
    assert "cut off" in str(Index(objects, REPOSITORY).damaged[0])


def test_a_segment_that_was_found_damaged_stays_out_of_use():
    objects = memory()
    (name,) = add_run(objects, 1, random_digests(1, 40))
    content = bytearray(objects.backend.read(name))
    content[200] ^= 1
    objects.backend.replace(name, [content])
    index = Index(objects, REPOSITORY)
    assert index.damaged == []
    index.drop_damaged()
    index.reload()
    assert index.segments == []
    assert "checksum of bytes" in str(index.damaged[0])


def test_what_is_no_segment_by_its_name_is_left_alone():
    objects = memory()
    objects.backend.put("index/readme.txt", [b"by hand"])
    objects.backend.put("index/merged/0000.idx", [b"of format 1"])
    assert Index(objects, REPOSITORY).segments == []


def test_a_reader_prefers_packs_that_stay_and_falls_back_to_the_others():
    """One frame in two packs of two runs; then one of the packs is going to be removed."""
    objects, chunks = memory(), random_digests(1, 32)
    names = add_run(objects, 1, chunks)
    other = memory()
    names += add_run(other, 2, chunks)
    objects.backend.put(names[1], [other.backend.read(names[1])])
    identity = Segment(objects, names[0], REPOSITORY).ids(np.arange(8))
    for going, staying in ((1, 2), (2, 1)):
        index = Index(objects, REPOSITORY, removed=Removed(packs=frozenset([pack_of(going, 0)])))
        for number in (index.lookup(chunks)[0], index.find_frames(identity)):
            assert {address.pack for address in index.addresses(number)} == {pack_of(staying, 0)}
    both = frozenset([pack_of(1, 0), pack_of(2, 0)])
    index = Index(objects, REPOSITORY, removed=Removed(packs=both))
    assert (index.lookup(chunks)[0] != NO_FRAME).all()
    assert (index.find_frames(identity) != NO_FRAME).all()
    run = RunIndex(objects, REPOSITORY, run_id(3), KEYS, removed=Removed(packs=both))
    assert (run.lookup(chunks)[0] == NO_FRAME).all()
    assert (run.readable(chunks)[0] != NO_FRAME).all()
    one = RunIndex(objects, REPOSITORY, run_id(3), KEYS, removed=Removed(packs=frozenset([pack_of(1, 0)])))
    assert {address.pack for address in one.addresses(one.lookup(chunks)[0])} == {pack_of(2, 0)}
    assert one.used_packs == {pack_of(2, 0)}


def test_a_segment_that_a_removal_names_is_not_opened():
    objects = memory()
    (name,) = add_run(objects, 1, random_digests(1, 8))
    objects.backend.replace(name, [b"whatever"])
    assert Index(objects, REPOSITORY).damaged != []
    index = Index(objects, REPOSITORY, removed=Removed(segments=frozenset([pack_id(run_id(1), 0)])))
    assert index.segments == []
    assert index.damaged == []


def test_an_index_of_format_1_is_read_also_where_segments_were_merged_meanwhile():
    objects, chunks = memory(), random_digests(1, 3000)
    objects.version = 1
    put_segment_of_format_1(objects, chunks, frames_of_one(chunks), np.arange(3000), PACKS, NAME)
    index = Index(objects, REPOSITORY)
    merged = NAME.replace("index/", "index/merged/")
    objects.backend.put(merged, [objects.backend.read(NAME)])
    objects.backend.delete([NAME])
    number, place = index.lookup(chunks)
    assert np.array_equal(place, np.arange(3000))
    assert np.array_equal(index.frame_ids(number), chunks)
    assert len(Index(objects, REPOSITORY).segments) == 0


# --- the index of a run ---


@sealed_or_not
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_run_finds_what_was_stored_in_any_order(sealing, data):
    """Batches of stored and unknown chunks, in the order of the disk, shuffled, with holes and repetitions."""
    objects = memory()
    sizes = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=4))
    stored = [random_digests(seed, size) for seed, size in enumerate(sizes)]
    for number, chunks in enumerate(stored):
        add_run(objects, number, chunks, sealing=sealing)
    index = RunIndex(objects, REPOSITORY, run_id(99), KEYS, sealing)
    index.filters.load() if data.draw(st.booleans()) else None
    everything = np.concatenate((*stored, random_digests(100, 300)))
    count = sum(sizes)
    first = np.cumsum([0, *sizes])
    for _ in range(data.draw(st.integers(1, 6))):
        low = data.draw(st.integers(0, len(everything) - 1))
        row = np.arange(low, min(len(everything), low + data.draw(st.integers(1, 200))))
        for _ in range(data.draw(st.integers(0, 3))):
            row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.integers(0, len(everything) - 1))
        if data.draw(st.booleans()):
            np.random.default_rng(low).shuffle(row)
        number, place = index.lookup(everything[row])
        assert np.array_equal(number != NO_FRAME, row < count)
        run = np.searchsorted(first, row[row < count], "right") - 1
        in_run = row[row < count] - first[run]
        assert np.array_equal(place[row < count], in_run % 4 * CHUNK)
        expected = [
            (pack_of(each, at // 32), 48 + at // 4 % 8 * 1000)
            for each, at in zip(run.tolist(), in_run.tolist(), strict=True)
        ]
        found = index.addresses(number[row < count])
        assert [(address.pack, address.offset) for address in found] == expected


def test_proofs_that_were_forgotten_are_made_again(monkeypatch):
    monkeypatch.setattr(proofs, "_PAGE", 64)
    monkeypatch.setattr(proofs, "_PAGES", 3)
    objects, chunks = memory(), random_digests(1, 4000)
    add_run(objects, 1, chunks)
    index = RunIndex(objects, REPOSITORY, run_id(2), KEYS)
    random = np.random.default_rng(1)
    for _ in range(40):
        low = int(random.integers(0, 3900))
        assert known(index, chunks[low : low + 100]).all()
        assert known(index, chunks[random.integers(0, 4000, 500)], 4096).all()


def test_a_run_with_nothing_new_does_not_read_the_filters():
    objects, chunks = memory(), random_digests(1, 4000)
    add_run(objects, 1, chunks)
    index = RunIndex(objects, REPOSITORY, run_id(2), KEYS)
    assert known(index, chunks).all()
    assert index.filters.loaded == 0
    assert not known(index, random_digests(2, 2000)).any()
    assert index.filters.loaded == 8 * Segment(objects, segment_name(run_id(1), 0), REPOSITORY).count(FILTER)
    assert not known(index, random_digests(3, 2000)).any()
    assert known(index, chunks).all()


def test_a_row_that_names_a_wrong_frame_does_not_become_a_wrong_map():
    """Forged with right checksums; a chunk of another frame is not touched by it."""
    objects, chunks = memory(), random_digests(1, 64)
    (name,) = add_run(objects, 1, chunks)
    segment = Segment(objects, name, REPOSITORY)
    rows, frames = segment.column(ROWS, 0, 64), segment.column(FRAMES, 0, 16)
    digest = rows["digest"].copy()
    digest[[40, 41]] = digest[[41, 40]]
    objects.backend.delete([name])
    put_segment(objects, digest, frames, rows["place"].astype(np.int64), segment.packs(), name=name)
    index = RunIndex(objects, REPOSITORY, run_id(2), KEYS)
    assert known(index, chunks[:40]).all()
    with pytest.raises(IntegrityError, match="a chunk lies where another one is stored") as raised:
        index.lookup(chunks[40:41])
    assert raised.value.facts["segment"] == objects.place(name)
    with pytest.raises(IntegrityError, match="a chunk lies where another one is stored"):
        index.lookup(chunks)


def test_a_damaged_segment_keeps_a_run_from_beginning():
    objects = memory()
    (name,) = add_run(objects, 1, random_digests(1, 64))
    objects.backend.replace(name, [objects.backend.read(name)[:-1]])
    with pytest.raises(IntegrityError, match="its size is wrong"):
        RunIndex(objects, REPOSITORY, run_id(2), KEYS)


@sealed_or_not
def test_full_drafts_become_segments_and_are_published_in_order(monkeypatch, sealing):
    monkeypatch.setattr(index_module, "DRAFT_ROWS", 100)
    objects, chunks = memory(), random_digests(1, 390)
    order = []
    put = objects.backend.put
    monkeypatch.setattr(objects.backend, "put", lambda name, parts: (order.append(name), put(name, parts))[1])
    names = add_run(objects, 1, chunks, sealing=sealing)
    assert names == order == [segment_name(run_id(1), number) for number in range(4)]
    assert known(RunIndex(objects, REPOSITORY, run_id(2), KEYS, sealing), chunks).all()


def test_a_run_finds_its_own_chunks_before_and_after_a_draft_is_written(tmp_path):
    index = RunIndex(memory(), REPOSITORY, run_id(1), KEYS, SEALING, directory=tmp_path)
    chunks, length = random_digests(1, 4), np.full(4, CHUNK)
    number = index.add_frame(length, chunks, frame_id(chunk_table(length, chunks), KEYS))
    assert index.lookup(chunks)[0].tolist() == [number] * 4
    assert index.missing() == 1
    assert index.promised(number) == index.frame_ids(np.array([number], np.uint64))[0].tobytes()
    index.stored(number, 0, 48, 1000)
    with pytest.raises(ContractError, match="was not promised by this point, or it came twice"):
        index.stored(number, 0, 48, 1000)
    (draft,) = index.last()
    index.replace(draft, index.write(draft))
    assert index.lookup(chunks)[0].tolist() == [number] * 4
    assert index.packs() == {pack_of(1, 0)}
    assert list(tmp_path.iterdir()) == []  # a temporary file has no name
    with pytest.raises(ContractError, match="no frame with the number"):
        index.frame_ids(np.array([number + 1], np.uint64))
    index.close()


@sealed_or_not
def test_unknown_chunks_are_not_searched_in_the_segments_that_the_run_wrote(monkeypatch, tmp_path, sealing):
    """A full backup writes one for every 24 GiB."""
    monkeypatch.setattr(index_module, "DRAFT_ROWS", 500)
    objects, stored = memory(), random_digests(7, 400)
    add_run(objects, 1, stored, sealing=sealing)
    index = RunIndex(objects, REPOSITORY, run_id(2), KEYS, sealing, directory=tmp_path)
    chunks, numbers = random_digests(1, 2100), []
    for low in range(0, len(chunks), 4):
        part, length = chunks[low : low + 4], np.full(4, CHUNK)
        numbers.append(index.add_frame(length, part, frame_id(chunk_table(length, part), KEYS)))
        index.stored(numbers[-1], 0, 48 + low, 1000)
        for draft in index.full():
            index.replace(draft, index.write(draft))
    assert len(index.written()) == 4
    assert not known(index, random_digests(8, 64)).any()  # filters are loaded
    assert index.filters.loaded == 8 * (filter_words(400) + 4 * filter_words(500))
    reads = []
    read = TemporarySegment.read
    monkeypatch.setattr(TemporarySegment, "read", lambda *each: (reads.append(each), read(*each))[1])
    index.cells.clear()
    assert not known(index, random_digests(9, 640)).any()
    assert len(reads) < 64  # 0.8 % seem to be in each of them
    assert index.lookup(chunks)[0].tolist() == [number for number in numbers for _ in range(4)]
    assert index.lookup(chunks)[1].tolist() == (np.arange(2100) % 4 * CHUNK).tolist()
    both = np.concatenate((stored[::-1], chunks[::-1], random_digests(9, 64)))
    assert known(index, both, 333).tolist() == [True] * 2500 + [False] * 64
    index.close()


def test_a_frame_in_a_pack_that_is_there_already_is_noted_with_it():
    objects = memory()
    index = RunIndex(objects, REPOSITORY, run_id(1), KEYS)
    chunks, length = random_digests(1, 4), np.full(4, CHUNK)
    identity = frame_id(chunk_table(length, chunks), KEYS)
    number = index.add_frame(length, chunks, identity)
    address = FrameAddress(pack_of(77, 3), 4096, 1000, 4 * CHUNK, identity)
    index.found(number, address)
    index.publish()
    reader = Index(objects, REPOSITORY)
    assert reader.addresses(reader.lookup(chunks[:1])[0]) == [address]


@sealed_or_not
def test_segments_get_the_numbers_that_are_free_when_they_are_published(sealing):
    """A run that merged segments before has published number 0."""
    objects, chunks, length = memory(), random_digests(1, 4), np.full(4, CHUNK)
    for first, told in ((0, 3), (5, None)):
        index = RunIndex(objects, REPOSITORY, run_id(first + 1), KEYS, sealing, first=first)
        new = chunks ^ np.uint8(first)
        index.stored(index.add_frame(length, new, frame_id(chunk_table(length, new), KEYS)), 0, 48, 1000)
        assert index.publish(told) == [segment_name(run_id(first + 1), told or first)]
        assert known(RunIndex(objects, REPOSITORY, run_id(9), KEYS, sealing), new).all()


def test_a_run_that_was_ended_learns_it_when_it_publishes():
    objects = memory()
    objects.backend.put(segment_name(run_id(1), 0), [ENDED + bytes(8)])
    with pytest.raises(ObjectExists):
        add_run(objects, 1, random_digests(1, 4))


def test_a_temporary_directory_that_cannot_be_written_is_named(tmp_path):
    index = RunIndex(memory(), REPOSITORY, run_id(1), KEYS, directory=tmp_path / "missing")
    chunks, length = random_digests(1, 4), np.full(4, CHUNK)
    index.stored(index.add_frame(length, chunks, bytes(32)), 0, 48, 1000)
    with pytest.raises(SinkError, match="missing cannot be written or read") as raised:
        index.publish()
    assert "TMPDIR" in raised.value.remedy


def test_frame_rows_are_those_of_packs():
    assert FRAME_ROW.itemsize == 56


def test_a_verification_knows_the_lengths_of_frames_from_all_segments():
    objects = memory()
    for run in (1, 2):
        add_run(objects, run, random_digests(run, 40))
    index = Index(objects, REPOSITORY)
    ids = np.concatenate([segment.ids(np.arange(segment.frames)) for segment in index.segments])
    lengths = _Lengths(index.segments)
    assert np.array_equal(lengths.of(ids[::-1]), index.lengths(index.find_frames(ids[::-1])))
    assert lengths.of(np.concatenate([ids, random_digests(3, 1)])) is None
    assert _Lengths([]).of(ids) is None
