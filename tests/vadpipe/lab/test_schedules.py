"""Schedules of backups, removals and a restore: a short version of the campaign, and whether it finds defects."""

import random
from contextlib import ExitStack, suppress
from unittest.mock import patch

import numpy as np
import pytest
import trio

from pipeline import MachineId
from vadpipe.lab.faults import schedules
from vadpipe.lab.faults.interleaving import (
    Actor,
    Interleaving,
    Killed,
    Process,
    ScheduledBackend,
    processes,
    uniform,
)
from vadpipe.repository import point, removal, runs, store
from vadpipe.repository.backends.contract import ObjectExists
from vadpipe.repository.format.config import create_repository
from vadpipe.repository.format.objects import Objects, waiting_name
from vadpipe.repository.format.restore_point import read_points
from vadpipe.repository.index.lookup import Removed
from vadpipe.repository.maintenance import prune
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.reader import RepositoryReader

SEED = 1
FOUND_WITHIN = 400  # schedules


@pytest.fixture(scope="module", autouse=True)
def bases():
    """Repositories to begin with are made by code that has no defect."""
    schedules.make_bases(SEED)


def appenders(seed, count=3, turns=4):
    """What comes into the store in a schedule of actors that write one object after the other."""
    backend = ScheduledBackend({})

    def write(name):
        for turn in range(turns):
            backend.put(f"{name}/{turn}", [b""])

    actors = [
        Actor(str(number), Process(number), lambda number=number: write(number)) for number in range(count)
    ]
    interleaving = Interleaving(actors, uniform(random.Random(seed)), keep_trace=True)
    backend.interleaving = interleaving
    return backend, actors, interleaving


def test_a_schedule_is_a_function_of_its_seed():
    traces = []
    for seed in (1, 1, 2):
        _, _, interleaving = appenders(seed)
        interleaving.play()
        traces.append(interleaving.trace)
    assert traces[0] == traces[1] != traces[2]
    assert len(traces[0]) == 12


def test_an_actor_that_is_killed_does_nothing_more():
    backend, actors, interleaving = appenders(1)
    actors[1].killed_at = 3
    interleaving.play()
    assert sorted(name for name in backend.content() if name.startswith("1/")) == ["1/0", "1/1"]
    assert not actors[1].process.there
    assert actors[1].error is None


def test_an_actor_that_is_stopped_wakes_up_when_the_others_have_ended():
    _, actors, interleaving = appenders(1)
    actors[0].stopped_at = 2
    interleaving.play()
    assert all(" 0 " in line for line in interleaving.trace[-3:])
    assert all(actor.done for actor in actors)


def test_a_lost_answer_hides_what_the_store_did():
    backend, actors, interleaving = appenders(1)
    actors[2].fault_at, actors[2].fault_has_effect = 2, True
    interleaving.play()
    assert "did not answer" in str(actors[2].error)
    assert "2/1" in backend.content()
    assert "2/2" not in backend.content()


def test_a_name_is_taken_once():
    backend = ScheduledBackend({})
    backend.put("a", [b"1"])
    with pytest.raises(ObjectExists):
        backend.put("a", [b"2"])
    assert not isinstance(Killed(), Exception)  # no clean-up of the product catches it


@pytest.mark.slow
def test_200_schedules_lose_nothing_and_leave_nothing():
    counts, wrong = schedules.play_some(SEED, range(200))
    assert wrong == []
    assert counts["schedules"] == 200
    assert counts["given up"] > 20
    assert counts["killed"] > 20
    assert counts["prunes"] > 300


@pytest.mark.campaign
def test_100000_schedules_lose_nothing_and_leave_nothing():
    counts, wrong = schedules.campaign(100_000, seed=2, workers=2)
    assert wrong == []
    assert counts["schedules"] == 100_000


# --- defects that the schedules find ---


def found(*defect):
    """What the first schedule says in which the defect shows."""
    with ExitStack() as stack:
        for owner, name, value in defect:
            stack.enter_context(patch.object(owner, name, value))
        for number in range(FOUND_WITHIN):
            if wrong := schedules.play(SEED, number).wrong:
                return wrong
    return []


@pytest.mark.slow
def test_a_backup_that_ignores_removals_is_found():
    assert found((store, "named_by", lambda *_: Removed()))


@pytest.mark.slow
def test_a_prune_that_ignores_what_was_published_since_is_found():
    assert found((prune._Prune, "_wanted_of", lambda *_: np.zeros(0, np.uint64)))


@pytest.mark.slow
def test_a_list_of_runs_that_is_made_before_the_removal_is_found():
    listed, begin = {}, runs.Run.__init__

    def begin_and_list(self, objects, *settings):
        begin(self, objects, *settings)
        listed[self.id] = [each for each in runs.unended_runs(objects) if each != self.id]

    def write_early_list(objects, config, removal_id, run):
        name = waiting_name(removal_id)
        with suppress(ObjectExists):
            objects.backend.put(name, [config.encode(name, {"version": 2, "runs": listed[run.id]})])

    assert found((runs.Run, "__init__", begin_and_list), (removal, "list_waiting", write_early_list))


@pytest.mark.slow
def test_a_prune_that_waits_for_no_run_is_found():
    assert found((prune, "is_ready", lambda _, each: each.waiting is not None))


@pytest.mark.slow
def test_a_run_whose_names_are_not_taken_when_it_is_given_up_is_found():
    wrong = found((runs, "_take_names", lambda *_: None))
    assert any("was given up, and publishes its point" in sentence for sentence in wrong)


# --- what schedules found, step by step ---


def test_a_backup_keeps_what_its_previous_point_has_in_removed_packs():
    """The previous point is of a run that did not know of the removal, and is forgotten while the backup runs."""
    backend, oracle, process = ScheduledBackend({}), schedules.Oracle(), Process(1)
    origin = schedules.origin_of(random.Random(1))
    objects, config = Objects(backend), create_repository(backend, origin)
    machine = MachineId("00000000", "vm0")
    publish, before_publish = point.Point.publish, []

    async def publish_later(self, *what):
        before_publish.pop()()
        return await publish(self, *what)

    def remove():
        forget(objects, config, origin, read_points(objects, config)[0])
        reports.append(prune.prune(objects, config, origin))

    async def play():
        target = store.RepositoryStore(objects, config, origin)
        for meanwhile in (lambda: None, remove, remove):
            before_publish.append(meanwhile)
            await schedules.Backup(machine, ()).run(target, oracle)

    reports = []
    with processes({1: process}, process), patch.object(point.Point, "publish", publish_later):
        trio.run(play)
        assert reports[0].named_packs > 0
        assert reports[1].deleted_packs == reports[0].named_packs
        reader = RepositoryReader(objects, config)
        (last,) = reader.points
        assert schedules.wrong_bytes(reader, last, oracle) == []
