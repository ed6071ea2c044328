"""Backups where everything fails leave nothing behind: 300 runs at once, 5,000 on demand."""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from vadpipe.lab.campaigns.__main__ import main
from vadpipe.lab.campaigns.backups import backups
from vadpipe.lab.campaigns.backups_scenario import CALLS, BackupScenario
from vadpipe.lab.campaigns.troubles import EVENTS, MOVES, READ
from vadpipe.lab.campaigns.vddk import (
    ACTIONS,
    VDDK_MOMENTS,
    VddkScenario,
    VddkTrouble,
    is_in_fatal_call,
    surroundings,
)
from vadpipe.lab.vcenter.faults.kinds import FAULT_KINDS

SEED = 3
SHORT, LONG = 300, 5000


def facts(seed, number):
    drawn = BackupScenario.drawn(seed, number)
    troubles = [(one.name, one.method, one.nth, one.in_task, one.after) for one in drawn.troubles]
    return drawn.disks, drawn.foreign, drawn.quiesce, drawn.killed, troubles, drawn.vddk


def test_a_seed_decides_everything():
    assert facts(1, 2) == facts(1, 2)
    assert len({str(facts(1, number)) for number in range(50)}) == 50


@pytest.mark.slow
def test_every_call_meets_forty_kinds_of_fault_and_more():
    kinds, nths, events = defaultdict(set), defaultdict(set), defaultdict(set)
    killed = set()
    for number in range(LONG):
        scenario = BackupScenario.drawn(SEED, number)
        killed |= {scenario.killed}
        for one in scenario.troubles:
            if one.name in FAULT_KINDS:
                kinds[one.method, one.in_task].add(one.name)
                nths[one.method].add(one.nth)
            elif one.name in EVENTS + MOVES:
                events[one.name].add((one.method, one.nth))
    for place in [*((call, False) for call in CALLS.counts), *((task, True) for task in CALLS.tasks)]:
        assert len(kinds[place]) >= 40, place
    for call, count in CALLS.counts.items():
        assert nths[call] == set(range(1, count + 1)), call
    sites = set(CALLS.moments)
    assert killed - {None} == sites
    assert all(len(met) > len(sites) / 2 for met in events.values())
    assert set(events) == {*EVENTS, *MOVES}
    assert all((READ, 1) in events[move] for move in MOVES)


@pytest.mark.slow
def test_one_run_in_ten_reads_through_vddk_which_fails_in_every_way_at_every_call():
    through = [drawn.vddk for number in range(LONG) if (drawn := BackupScenario.drawn(SEED, number)).vddk]
    assert LONG / 12 < len(through) < LONG / 8
    met = {(trouble.action, trouble.moment) for vddk in through for trouble in vddk.troubles}
    assert met == {(action, moment) for action in ACTIONS for moment in VDDK_MOMENTS}
    assert {vddk.killed for vddk in through} == {"", *VDDK_MOMENTS}
    assert len({trouble.code for vddk in through for trouble in vddk.troubles}) > 40
    assert {vddk.locked_by_another for vddk in through} == {vddk.once for vddk in through} == {True, False}


def test_what_happens_in_vddk_holds_for_one_run_only(tmp_path):
    before = dict(os.environ)
    crash = VddkScenario(
        (VddkTrouble("crash", "open:1"),), once=True, killed="end:1+", locked_by_another=False
    )
    with surroundings(tmp_path, crash, in_trouble=True):
        assert os.environ["VADPIPE_VDDK_CRASH"] == "open:1"
        assert os.environ["VADPIPE_VDDK_HANG"] == "end:1+"
        assert not is_in_fatal_call(tmp_path, crash)
        Path(os.environ["VADPIPE_VDDK_ONCE"], "hang-end-1+").touch()
        assert is_in_fatal_call(tmp_path, crash)
    with surroundings(tmp_path, crash, in_trouble=False):
        assert {name for name in os.environ if name.startswith("VADPIPE_VDDK_")} == {"VADPIPE_VDDK_HOTADD"}
    assert dict(os.environ) == before


@pytest.mark.slow
def test_backups_leave_nothing_behind():
    tally = backups(range(SHORT), seed=SEED)
    assert tally.failures == []
    wanted = sum(BackupScenario.drawn(SEED, number).vddk is not None for number in range(SHORT))
    assert tally.facts["through VDDK"] == wanted or "compiler" in str(tally.facts["through VDDK"])
    assert tally.runs == sum(tally.outcomes.values()) == SHORT
    assert {"done", "failed", "killed"} <= set(tally.outcomes)


@pytest.mark.slow
def test_one_run_can_be_played_again():
    done = CliRunner().invoke(main, ["backups", "--seed", "3", "--only", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("1 runs")


@pytest.mark.campaign
def test_five_thousand_runs():
    tally = backups(range(LONG), seed=SEED)
    print(dict(tally.outcomes))
    assert tally.failures == []
    assert tally.runs == LONG
