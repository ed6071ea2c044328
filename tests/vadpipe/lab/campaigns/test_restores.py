"""Restores where everything fails leave a whole VM or nothing: 200 runs at once, 2,000 on demand."""

from collections import defaultdict

import pytest
from click.testing import CliRunner

from vadpipe.lab.campaigns.__main__ import main
from vadpipe.lab.campaigns.restores import restores
from vadpipe.lab.campaigns.restores_scenario import CALLS, DISK_ACTIONS, DISK_CALLS, MEDDLING, RestoreScenario
from vadpipe.lab.vcenter.faults.kinds import FAULT_KINDS

SEED = 7
SHORT, LONG = 200, 2000


def test_a_seed_decides_everything():
    first, again = (RestoreScenario.drawn(1, 2) for _ in range(2))
    assert (first.names, first.killed, first.mode) == (again.names, again.killed, again.mode)
    assert len({str(RestoreScenario.drawn(1, number).names) for number in range(50)}) > 40


@pytest.mark.slow
def test_every_call_meets_faults_and_kills_and_somebody_meddles():
    kinds, disk, killed, meddling = defaultdict(set), set(), set(), set()
    for number in range(LONG):
        scenario = RestoreScenario.drawn(SEED, number)
        killed.add(scenario.killed)
        meddling.add(scenario.meddling[0] if scenario.meddling else None)
        disk |= {(one.action, one.call) for one in scenario.disk}
        for one in scenario.troubles:
            if one.name in FAULT_KINDS:
                kinds[one.method, one.in_task].add(one.name)
    for place in [*((call, False) for call in CALLS.counts), *((task, True) for task in CALLS.tasks)]:
        assert len(kinds[place]) >= 40, place
    assert {call for call, _ in killed - {None}} == {*CALLS.counts, *DISK_CALLS}
    assert meddling == {None, *MEDDLING}
    assert {action for action, _ in disk} == set(DISK_ACTIONS)
    assert {call for action, call in disk if action == "fails"} == set(DISK_CALLS)


@pytest.mark.slow
def test_restores_leave_a_whole_vm_or_nothing():
    tally = restores(range(SHORT), seed=SEED)
    assert tally.failures == []
    assert tally.runs == sum(tally.outcomes.values()) == SHORT
    assert {"done", "failed", "killed"} <= set(tally.outcomes)


@pytest.mark.slow
def test_one_run_can_be_played_again():
    done = CliRunner().invoke(main, ["restores", "--seed", "7", "--only", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("1 runs")


@pytest.mark.campaign
def test_two_thousand_restores():
    tally = restores(range(LONG), seed=SEED)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.runs == LONG
