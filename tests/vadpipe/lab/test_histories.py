"""Histories of VMs with killed backups: a short version of the campaign."""

import pytest

from vadpipe.lab.faults.histories import campaign


@pytest.mark.slow
def test_30_histories_restore_what_the_vms_held():
    counts, wrong = campaign(30, seed=1, workers=2)
    assert wrong == []
    assert counts["histories"] == 30
    assert counts["killed"] > 10
    assert counts["backed up"] > 100


@pytest.mark.campaign
def test_1000_histories_restore_what_the_vms_held():
    counts, wrong = campaign(1000, seed=2, workers=2)
    assert wrong == []
    assert counts["histories"] == 1000
