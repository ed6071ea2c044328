"""Grain tables against a model that looks every grain up by itself."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from vadpipe.vmdk.grains import GrainTables, SectorEntries
from vadpipe.vmdk.runs import PARENT, ZERO

SECTOR, PER_TABLE, FIRST = 512, 4, 2
DATA = 40  # sectors before this one hold header, directory and tables
END = DATA + 100


class Memory:
    """A file in memory."""

    name = "memory.vmdk"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def read(self, offset: int, length: int, what: str) -> bytes:
        assert offset >= 0
        assert offset + length <= self.size, what
        return self.content[offset : offset + length]


def build(tables: list, order: list, capacity: int, grain: int) -> GrainTables:
    """A file whose tables (None: absent) lie in the given order, one sector each or directly behind each other."""
    content = bytearray(END * SECTOR)
    for number, (table, place) in enumerate(zip(tables, order, strict=True)):
        if table is not None:
            struct.pack_into("<I", content, SECTOR + number * 4, 2 + place)
            struct.pack_into(f"<{PER_TABLE}I", content, (2 + place) * SECTOR, *table)
    return GrainTables(
        Memory(bytes(content)), SectorEntries(FIRST, zeroed=True), capacity, grain, PER_TABLE, SECTOR
    )


entries = st.sampled_from((0, 0, 1)) | st.integers(DATA, END - 8)


@pytest.mark.slow
@given(st.data(), st.sampled_from((1, 2, 8)), st.integers(1, 6))
def test_the_runs_of_any_range_equal_its_single_entries(data, sectors, count):
    grain = sectors * SECTOR
    table = st.none() | st.lists(entries, min_size=PER_TABLE, max_size=PER_TABLE)
    tables = data.draw(st.lists(table, min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)) | st.just(list(range(count))))
    capacity = (count * PER_TABLE - 1) * grain + SECTOR
    index = build(tables, order, capacity, grain)
    start = data.draw(st.integers(0, capacity // SECTOR - 1)) * SECTOR
    end = data.draw(st.integers(start // SECTOR + 1, capacity // SECTOR)) * SECTOR
    runs = index.runs(7, start, end - start)
    assert (runs.start[0], runs.end[-1]) == (start, end)
    assert np.array_equal(runs.start[1:], runs.end[:-1])
    flat = [entry for table in tables for entry in (table or [0] * PER_TABLE)]
    for offset in range(start, end, SECTOR):
        row = int(np.searchsorted(runs.start, offset, side="right")) - 1
        entry = flat[offset // grain]
        if entry < FIRST:
            assert runs.source[row] == (PARENT, ZERO)[entry]
        else:
            place = int(runs.place[row] + runs.skip[row]) + offset - int(runs.start[row])
            assert (runs.source[row], place) == (7, entry * SECTOR + offset % grain)


def test_adjacent_tables_are_read_at_once(monkeypatch):
    """In a real file tables fill whole sectors; here a table of a sector's size shows the one read."""
    content = bytearray(END * SECTOR)
    struct.pack_into("<4I", content, SECTOR, 2, 3, 4, 9)
    index = GrainTables(Memory(bytes(content)), SectorEntries(FIRST), 4 * 128 * SECTOR, SECTOR, 128, SECTOR)
    asked: list[tuple[int, int]] = []
    read = index.file.read
    monkeypatch.setattr(index.file, "read", lambda *a: asked.append(a[:2]) or read(*a))
    index.runs(0, SECTOR, 4 * 128 * SECTOR - SECTOR)
    assert asked == [(512, 16), (2 * SECTOR + 4, 3 * SECTOR - 4), (9 * SECTOR, SECTOR)]


@pytest.mark.parametrize(("place", "fits"), [(END - 8, True), (END - 7, False), (0xFFFFFFFF, False)])
def test_a_grain_beyond_the_end_of_the_file_is_refused(place, fits):
    index = build([[0, 0, place, 0]], [0], 4 * 8 * SECTOR, 8 * SECTOR)
    assert len(index.runs(0, 0, 16 * SECTOR)) == 1
    if fits:
        assert index.runs(0, 0, index.capacity).source.tolist() == [PARENT, 0, PARENT]
    else:
        with pytest.raises(SourceError, match="its grain for byte 8192 of the disk lies at"):
            index.runs(0, 0, index.capacity)


def test_an_entry_that_points_into_the_header_is_refused():
    index = build([[0, 0, 1, 0]], [0], 4 * 8 * SECTOR, 8 * SECTOR)
    strict = GrainTables(index.file, SectorEntries(FIRST), index.capacity, index.grain, PER_TABLE, SECTOR)
    with pytest.raises(SourceError, match="an entry points into the header"):
        strict.runs(0, 0, strict.capacity)
