"""The campaign of restores over a VM: a few runs here, all of them by its command."""

import pytest

from vadpipe.lab.in_place_campaign import InPlaceScenario, in_place_campaign


@pytest.mark.slow
def test_restores_over_a_vm_in_trouble_leave_it_whole_or_marked():
    tally = in_place_campaign(range(6), seed=3, jobs=2)
    assert tally.failures == []
    assert tally.runs == sum(tally.outcomes.values()) == 6


def test_a_run_is_drawn_from_its_seed_alone():
    one, same, other = (InPlaceScenario.drawn(1, number) for number in (5, 5, 6))
    assert (one.names, one.disk, one.killed) == (same.names, same.disk, same.killed)
    assert (one.names, one.seed) != (other.names, other.seed)
