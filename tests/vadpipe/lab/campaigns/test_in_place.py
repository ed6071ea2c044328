"""Restores over a VM where everything fails leave it whole or marked: a few runs at once, 500 on demand."""

import pytest

from vadpipe.lab.campaigns.in_place import InPlaceScenario, in_place


@pytest.mark.slow
def test_restores_over_a_vm_in_trouble_leave_it_whole_or_marked():
    tally = in_place(range(6), seed=3, jobs=2)
    assert tally.failures == []
    assert tally.runs == sum(tally.outcomes.values()) == 6


def test_a_run_is_drawn_from_its_seed_alone():
    one, same, other = (InPlaceScenario.drawn(1, number) for number in (5, 5, 6))
    assert (one.names, one.disk, one.killed) == (same.names, same.disk, same.killed)
    assert (one.names, one.seed) != (other.names, other.seed)


@pytest.mark.campaign
def test_five_hundred_restores():
    tally = in_place(range(500), seed=3)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.runs == 500
