"""The algebra of runs against a model that keeps one value per byte."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extents import Extents
from vadpipe.vmdk.runs import PARENT, ZERO, Runs

LENGTH = 40

rows = st.tuples(
    st.integers(0, 7),  # length; 0 makes no row
    st.sampled_from((PARENT, ZERO, 0, 1)),
    st.integers(0, 3).map(lambda place: place * 100),
    st.integers(0, 9),
    st.booleans(),
)


def build(drawn: list, start: int = 0, end: int = LENGTH) -> Runs:
    """Runs that cover [start, end); what the rows leave over is PARENT."""
    table, at = [], start
    for length, source, place, skip, packed in [*drawn, (LENGTH, PARENT, 0, 0, False)]:
        stop = min(at + length, end)
        if stop > at:
            table.append((at, stop, source, place, skip, packed and source >= 0))
        at = stop
    columns = np.array(table, dtype=np.int64).reshape(-1, 6).T
    return Runs(*columns[:5], columns[5].astype(np.bool_))  # type: ignore[call-arg]


def model(runs: Runs) -> dict[int, tuple]:
    """Byte of the disk -> where it is: the byte in a file, or the byte of an unpacked grain."""
    found = {}
    columns = (runs.start, runs.end, runs.source, runs.place, runs.skip, runs.packed)
    for start, end, source, place, skip, packed in zip(*(column.tolist() for column in columns), strict=True):
        for byte in range(start, end):
            inside = skip + byte - start
            where = (place, inside) if packed else (place + inside,)
            found[byte] = (source, *where) if source >= 0 else (source,)
    return found


@given(st.lists(rows, max_size=8), st.lists(rows, max_size=8))
def test_over_asks_the_parent_for_what_the_child_does_not_have(child, parent):
    upper = build(child)
    below = [byte for byte, where in model(upper).items() if where == (PARENT,)]
    lower = build(parent, min(below, default=0), max(below, default=LENGTH - 1) + 1)
    expected = model(upper) | {byte: model(lower)[byte] for byte in below}
    assert model(upper.over(lower)) == expected


@given(st.lists(rows, max_size=8))
def test_merging_changes_nothing_but_the_number_of_rows(drawn):
    runs = build(drawn)
    merged = runs.merged()
    assert model(merged) == model(runs)
    assert len(merged) <= len(runs)
    assert len(merged.merged()) == len(merged)


@given(st.lists(rows, max_size=8), st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_clipped_runs_keep_their_places(drawn, start, end):
    runs = build(drawn)
    assert model(runs.clipped(start, end)) == {b: w for b, w in model(runs).items() if start <= b < end}


@given(
    st.lists(rows, max_size=8), st.lists(st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 5)), max_size=5)
)
def test_only_keeps_the_wanted_extents(drawn, ranges):
    runs = build(drawn)
    wanted = Extents.of((offset, min(length, LENGTH - offset)) for offset, length in ranges)
    bytes_wanted = {byte for offset, length in wanted for byte in range(offset, offset + length)}
    assert model(runs.only(wanted)) == {b: w for b, w in model(runs).items() if b in bytes_wanted}


def test_neighbours_in_file_and_disk_become_one_run():
    pieces = [
        Runs.one(0, 10, 0, 500),
        Runs.one(10, 20, 0, 510),
        Runs.one(20, 30, 1, 520),
        Runs.one(30, 40, ZERO),
    ]
    merged = Runs.joined([*pieces, Runs.one(40, 40, 0), Runs.one(40, 50, ZERO)]).merged()
    assert list(zip(merged.start.tolist(), merged.end.tolist(), strict=True)) == [(0, 20), (20, 30), (30, 50)]
    assert merged.extents() == Extents.of([(0, 30)])
