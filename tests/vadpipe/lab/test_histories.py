"""Histories of VMs with killed commands: a short version of the campaign."""

import pytest

from vadpipe.lab.faults.histories import campaign


@pytest.mark.slow
def test_20_histories_restore_what_the_vms_held():
    counts, wrong = campaign(20, seed=1, workers=2)
    assert wrong == []
    assert counts["histories"] == 20
    assert counts["backed up"] > 60
    for name in ("backed up, killed", "copied", "forgotten", "pruned", "keys changed"):
        assert counts[name], f"no command was {name}"


@pytest.mark.campaign
def test_5000_histories_restore_what_the_vms_held():
    counts, wrong = campaign(5000, seed=2, workers=2)
    assert wrong == []
    assert counts["histories"] == 5000
