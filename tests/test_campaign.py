"""Backups where everything fails leave nothing behind: a part of the campaign at once, all of it on demand."""

import pytest
from click.testing import CliRunner

from lab.campaign import campaign, main
from lab.campaign_scenario import Scenario

SHORT_S = 10.0  # each of the four parts; `make campaign` runs all of it


def test_a_seed_decides_everything():
    def facts(seed, number):
        drawn = Scenario.drawn(seed, number)
        troubles = [(one.name, one.method, one.nth, one.in_task, one.after) for one in drawn.troubles]
        return drawn.disks, drawn.foreign, drawn.quiesce, drawn.killed, troubles

    assert facts(1, 2) == facts(1, 2)
    assert len({str(facts(1, number)) for number in range(50)}) == 50


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_nothing_is_left_behind(part):
    tally = campaign(range(part * 75, (part + 1) * 75), seed=3, seconds=SHORT_S)
    assert tally.failures == []
    assert tally.runs > 0
    assert sum(tally.outcomes.values()) == tally.runs


@pytest.mark.slow
def test_one_run_can_be_played_again():
    done = CliRunner().invoke(main, ["--seed", "3", "--only", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("1 runs")


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_runs(seed):
    assert campaign(range(1000), seed=seed).failures == []
