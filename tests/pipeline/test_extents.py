from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Extents

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8)


def model(extents: Extents) -> set[int]:
    return {place for offset, length in extents for place in range(offset, offset + length)}


def is_canonical(extents: Extents) -> bool:
    edges = [edge for offset, length in extents for edge in (offset, offset + length)]
    return all(low < high for low, high in pairwise(edges))


@pytest.mark.slow
@given(ranges, ranges)
def test_extents_behave_like_sets(one, other):
    a, b = Extents.of(one), Extents.of(other)
    for result, expected in (
        (a | b, model(a) | model(b)),
        (a & b, model(a) & model(b)),
        (a - b, model(a) - model(b)),
    ):
        assert model(result) == expected
        assert is_canonical(result)


@given(ranges)
def test_extents_of_merges_and_orders_its_parts(given_ranges):
    extents = Extents.of(given_ranges)
    assert model(extents) == {
        place for offset, size in given_ranges for place in range(offset, offset + size)
    }
    assert is_canonical(extents)
    assert extents.total == len(model(extents))


@given(ranges, st.integers(0, 60), st.integers(0, 30))
def test_within_and_inverted_split_a_window(given_ranges, offset, length):
    extents, window = Extents.of(given_ranges), set(range(offset, offset + length))
    assert model(extents.within(offset, length)) == model(extents) & window
    assert model(extents.inverted(offset, length)) == window - model(extents)
    assert is_canonical(extents.inverted(offset, length))


@given(ranges, st.sampled_from([1, 4, 16]))
def test_aligned_widens_to_whole_units_but_not_beyond_the_disk(given_ranges, unit):
    extents = Extents.of(given_ranges)
    aligned = extents.aligned(unit, 70)
    assert model(extents.within(0, 70)) <= model(aligned)
    assert all(
        offset % unit == 0 and ((offset + length) % unit == 0 or offset + length == 70)
        for offset, length in aligned
    )
    assert is_canonical(aligned)
