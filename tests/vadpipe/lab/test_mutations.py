"""Altered repositories: a short version of the campaign."""

import pytest

from vadpipe.lab.faults.mutations import campaign
from vadpipe.repository import packs


@pytest.mark.slow
def test_300_mutations_are_noticed_or_harmless():
    size = packs.PACK_SIZE
    counts, wrong = campaign(300, seed=1, workers=2)
    assert wrong == []
    assert size == packs.PACK_SIZE, "the campaign's small packs are its workers' alone"
    assert counts.total() == 300


@pytest.mark.campaign
def test_20000_mutations_are_noticed_or_harmless():
    counts, wrong = campaign(20_000, seed=2, workers=2)
    assert wrong == []
    assert counts.total() == 20_000
