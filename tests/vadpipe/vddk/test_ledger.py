"""The ledger holds each byte once: what was acknowledged last."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vadpipe.vddk.ledger import FLUSH_AFTER, MOST_ENTRIES, Acknowledged, Ledger

WRITES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=40)


@given(WRITES)
def test_entries_are_ascending_disjoint_and_the_last_ones(writes):
    ledger, last, cut = Ledger(), {}, False
    for number, (offset, length) in enumerate(writes):
        overlapped = [
            entry
            for entry in ledger.all()
            if entry.offset < offset + length and offset < entry.offset + entry.length
        ]
        cut |= any(
            entry.offset < offset or entry.offset + entry.length > offset + length for entry in overlapped
        )
        ledger.add(Acknowledged(offset, length, number, 1))
        last |= dict.fromkeys(range(offset, offset + length), number)
    entries = ledger.all()
    assert all(one.offset + one.length <= two.offset for one, two in pairwise(entries))
    assert all(last[place] == e.digest for e in entries for place in range(e.offset, e.offset + e.length))
    assert ledger.total == sum(entry.length for entry in entries)
    assert (ledger.blurred == 1) == cut
    assert all(ledger.holds(entry) for entry in entries)


def test_what_a_flush_covered_is_forgotten_and_the_rest_is_kept():
    ledger = Ledger()
    ledger.add(Acknowledged(0, 10, 1, 1))
    covered = ledger.all()
    ledger.add(Acknowledged(10, 10, 2, 1))
    ledger.flushed(covered)
    assert ledger.all() == (Acknowledged(10, 10, 2, 1),)
    assert ledger.total == 10


def test_only_what_other_connections_wrote_has_to_be_proven():
    ledger = Ledger()
    ledger.add(Acknowledged(0, 10, 1, 1))
    ledger.add(Acknowledged(10, 10, 2, 2))
    others = ledger.of_others(2)
    assert others == [Acknowledged(0, 10, 1, 1)]
    ledger.proven(others, 2)
    assert ledger.of_others(2) == []
    assert [entry.digest for entry in ledger.all()] == [1, 2]


def test_it_is_full_by_bytes_or_by_requests():
    ledger = Ledger()
    ledger.add(Acknowledged(0, FLUSH_AFTER - 1, 1, 1))
    assert not ledger.is_full
    ledger.add(Acknowledged(FLUSH_AFTER, 1, 1, 1))
    assert ledger.is_full
    many = Ledger()
    for number in range(MOST_ENTRIES):
        assert not many.is_full
        many.add(Acknowledged(number, 1, 1, 1))
    assert many.is_full
