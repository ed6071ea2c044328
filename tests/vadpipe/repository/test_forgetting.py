"""Removing points, holding them, and noticing what somebody else removed."""

import itertools
import json
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from pipeline import ConfigError, IntegrityError, SinkError
from tests.vadpipe.repository.forgetting_kit import BEGIN, DB, WEB, PointsAlone
from vadpipe.repository.format.config import READ_ONLY
from vadpipe.repository.format.objects import hold_name
from vadpipe.repository.format.restore_point import name_of
from vadpipe.repository.format.ways import KeyFile, make_key_file
from vadpipe.repository.maintenance.forgetting import (
    compare_heads,
    dated,
    forget,
    forgotten,
    heads,
    hold,
    holds,
    read_heads,
    release,
)


@pytest.fixture
def made():
    return PointsAlone()


def forget_in(made, *points):
    return forget(made.objects, made.config, made.origin, points)


def hold_in(made, point, reason="audit"):
    return hold(made.objects, made.config, made.origin, point, reason)


class Interposed:
    """A backend that calls `before` ahead of the first call of one method with a matching name."""

    def __init__(self, backend, method, prefix, before):
        self._backend = backend
        self._method = method
        self._prefix = prefix
        self._before = before

    def __getattr__(self, name):
        real = getattr(self._backend, name)
        if name != self._method:
            return real

        def called(target, *args):
            first = target if isinstance(target, str) else next(iter(target), "")
            if self._before is not None and first.startswith(self._prefix):
                before, self._before = self._before, None
                before()
            return real(target, *args)

        return called


# --- forget ---


def test_points_that_are_forgotten_are_gone_and_written_down(made):
    first, second, third = made.add(), made.add(), made.add(DB)
    record = forget_in(made, first, third)
    assert made.ids == [second.id]
    found = forgotten(made.objects, made.config)
    assert {(point.id, point.number, point.seal, point.record) for point in found.values()} == {
        (first.id, 1, first.seal, record),
        (third.id, 1, third.seal, record),
    }
    assert set(found) == {(WEB.uuid, first.id), (DB.uuid, third.id)}


def test_the_record_is_written_before_a_point_goes(made):
    first, _ = made.add(), made.add()
    seen = []
    made.objects.backend = Interposed(
        made.objects.backend, "delete", "points/", lambda: seen.append((made.names("forgotten/"), made.ids))
    )
    record = forget_in(made, first)
    ((written, still_there),) = seen
    assert written == [f"forgotten/{record}.json"]
    assert first.id in still_there


def test_the_record_has_the_form_of_the_format_page(made):
    first, _ = made.add(), made.add()
    record = forget_in(made, first)
    fields = json.loads(made.objects.backend.read(f"forgotten/{record}.json"))
    assert sorted(fields) == ["created", "points", "seal", "version"]
    assert fields["version"] == 2
    assert fields["points"] == [{"machine": WEB.uuid, "id": first.id, "number": 1, "seal": first.seal}]


def test_the_hint_of_the_newest_point_goes_with_the_points(made):
    first, second = made.add(), made.add()
    made.objects.backend.replace(f"points/{WEB.uuid}/newest", [b"hint"])
    made.objects.backend.replace(f"points/{DB.uuid}/newest", [b"hint"])
    forget_in(made, first)
    assert made.names("points/") == [f"points/{WEB.uuid}/{second.id}.json", f"points/{DB.uuid}/newest"]


def test_no_points_leave_no_record(made):
    assert forget_in(made) is None
    assert made.names("forgotten/") == []


def test_a_held_point_is_not_forgotten_and_nothing_else_is(made):
    first, second = made.add(), made.add()
    hold_in(made, first, "case 7")
    with pytest.raises(ConfigError, match=f"{first.id} \\(case 7\\).*Nothing was removed"):
        forget_in(made, first, second)
    assert made.ids == [first.id, second.id]
    assert made.names("forgotten/") == []


def test_a_hold_that_comes_while_a_point_is_forgotten_saves_it(made):
    first, _ = made.add(), made.add()
    real = made.objects.backend

    def hold_now():
        hold_in(made, first)

    made.objects.backend = Interposed(real, "put", "forgotten/", hold_now)
    with pytest.raises(ConfigError, match="Nothing was removed"):
        forget_in(made, first)
    made.objects.backend = real
    assert first.id in made.ids
    assert made.names("forgotten/") == []


def test_a_repository_of_format_1_is_not_changed(made):
    point = made.add()
    old = replace(made.config, version=READ_ONLY)
    for work in (
        lambda: forget(made.objects, old, made.origin, [point]),
        lambda: hold(made.objects, old, made.origin, point, "audit"),
        lambda: release(made.objects, old, point),
    ):
        with pytest.raises(SinkError, match=r"format version 1.*vadpipe copy"):
            work()
    assert made.ids == [point.id]


def test_a_damaged_record_is_named(made):
    first, _ = made.add(), made.add()
    record = forget_in(made, first)
    made.objects.backend.replace(f"forgotten/{record}.json", [b"{}"])
    with pytest.raises(IntegrityError, match=f"forgotten/{record}.json is damaged"):
        forgotten(made.objects, made.config)


# --- hold and release ---


def test_a_hold_is_told_with_its_reason_until_it_is_released(made):
    first, second = made.add(), made.add()
    assert hold_in(made, first, " case 7 ") is None
    assert holds(made.objects, made.config, made.points) == {first.id: "case 7"}
    assert holds(made.objects, made.config, [second]) == {}
    assert release(made.objects, made.config, first) == "case 7"
    assert holds(made.objects, made.config, made.points) == {}


def test_a_second_hold_names_the_reason_of_the_first(made):
    first = made.add()
    hold_in(made, first, "case 7")
    with pytest.raises(ConfigError, match="held already: case 7"):
        hold_in(made, first, "case 8")
    assert holds(made.objects, made.config, [first]) == {first.id: "case 7"}


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_hold_without_a_reason_is_refused(made, reason):
    first = made.add()
    with pytest.raises(ConfigError, match="needs a reason"):
        hold_in(made, first, reason)
    assert made.names("holds/") == []


def test_what_is_not_held_is_not_released(made):
    first = made.add()
    with pytest.raises(ConfigError, match="is not held"):
        release(made.objects, made.config, first)


def test_a_point_that_is_gone_is_not_held(made):
    first, _ = made.add(), made.add()
    forget_in(made, first)
    with pytest.raises(ConfigError, match="was removed meanwhile"):
        hold_in(made, first)
    assert made.names("holds/") == []


def test_a_hold_tells_of_a_removal_that_began_before_it(made):
    first, _ = made.add(), made.add()
    told = []
    real = made.objects.backend

    def hold_now():
        made.objects.backend = real
        told.append(hold_in(made, first))

    made.objects.backend = Interposed(real, "delete", f"points/{WEB.uuid}/newest", hold_now)
    forget_in(made, first)
    assert "is held now, but a removal" in told[0]
    assert first.id not in made.ids


def test_a_damaged_hold_still_holds_and_can_be_released(made):
    first, _ = made.add(), made.add()
    name = hold_name(made.config.directory(WEB.uuid), first.id)
    made.objects.backend.put(name, [b"rot"])
    assert holds(made.objects, made.config, made.points) == {first.id: "its hold is damaged"}
    with pytest.raises(ConfigError, match="its hold is damaged"):
        forget_in(made, first)
    release(made.objects, made.config, first)
    assert made.names("holds/") == []


def test_a_sealed_repository_tells_nothing_of_what_is_held_and_forgotten(tmp_path):
    make_key_file(tmp_path / "key")
    made = PointsAlone(seal_for=KeyFile(tmp_path / "key"))
    first, second, third = made.add(), made.add(), made.add()
    then = remembered(made)
    hold_in(made, second, "case 7")
    record = forget_in(made, first)
    assert holds(made.objects, made.config, made.points) == {second.id: "case 7"}
    assert made.ids == [second.id, third.id]
    assert [point.id for point in forgotten(made.objects, made.config).values()] == [first.id]
    assert problems(made, then) == []
    (held,) = made.names("holds/")
    for name in (held, f"forgotten/{record}.json"):
        content = name.encode() + made.objects.backend.read(name)
        assert not any(told in content for told in (WEB.uuid.encode(), first.seal.encode(), b"case 7"))


# --- what fails, and what happens at the same time ---


class Failing:
    """A backend whose n-th call that changes or reads something fails."""

    def __init__(self, backend, left):
        self._backend = backend
        self.left = left

    def __getattr__(self, name):
        real = getattr(self._backend, name)
        if name not in ("put", "delete", "replace", "read", "list", "size"):
            return real

        def called(*args):
            self.left -= 1
            if self.left < 0:
                raise SinkError("The store is gone.")
            return real(*args)

        return called


def calls_of(work):
    """How many calls `work` makes on a backend."""
    made = PointsAlone()
    points = [made.add(), made.add(DB), made.add()]
    made.objects.backend = Failing(made.objects.backend, 1000)
    work(made, points)
    return 1000 - made.objects.backend.left


def test_whatever_call_fails_points_go_only_when_they_are_written_down():
    def work(made, points):
        forget_in(made, *points[:2])

    for number in range(calls_of(work)):
        made = PointsAlone()
        points = [made.add(), made.add(DB), made.add()]
        real = made.objects.backend
        made.objects.backend = Failing(real, number)
        with pytest.raises(SinkError, match="The store is gone"):
            work(made, points)
        made.objects.backend = real
        written = {point.id for point in forgotten(made.objects, made.config).values()}
        assert {point.id for point in points} - set(made.ids) <= written
        forget_in(made, *(point for point in points[:2] if point.id in made.ids))
        assert made.ids == [points[2].id]


def test_whatever_call_fails_a_hold_is_there_or_not():
    def work(made, points):
        hold_in(made, points[0])

    for number in range(calls_of(work)):
        made = PointsAlone()
        points = [made.add(), made.add(DB), made.add()]
        real = made.objects.backend
        made.objects.backend = Failing(real, number)
        with pytest.raises(SinkError, match="The store is gone"):
            work(made, points)
        made.objects.backend = real
        assert holds(made.objects, made.config, points) in ({}, {points[0].id: "audit"})
        assert len(made.ids) == 3


class Turns:
    """A backend for several threads: each call waits until the schedule lets its thread go on."""

    def __init__(self, backend):
        self._backend = backend
        self._turn = {}
        self._done = threading.Semaphore(0)

    def __getattr__(self, name):
        real = getattr(self._backend, name)
        if name not in ("put", "delete", "replace", "read", "list", "size"):
            return real

        def called(*args):
            self._done.release()
            self._turn[threading.get_ident()].acquire()
            result = real(*args)
            return list(result) if name == "list" else result

        return called

    def run(self, works, schedule):
        """Run each function on a thread, one call at a time, in the order of the schedule; then in turn."""
        results, threads = [None] * len(works), []

        def body(number):
            self._turn[threading.get_ident()] = turns[number]
            try:
                results[number] = works[number]()
            except Exception as error:
                results[number] = error
            finished[number] = True
            self._done.release()

        turns = [threading.Semaphore(0) for _ in works]
        finished = [False] * len(works)
        for number in range(len(works)):
            threads.append(threading.Thread(target=body, args=(number,)))
            threads[-1].start()
            self._done.acquire()
        for number in itertools.chain(schedule, itertools.cycle(range(len(works)))):
            if all(finished):
                break
            if not finished[number]:
                turns[number].release()
                self._done.acquire()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.slow
def test_in_every_order_of_calls_a_hold_that_says_so_holds():
    """`forget` and `hold` of one point at the same time, in each order in which their calls can come."""
    longest = calls_of(lambda made, points: forget_in(made, points[0]))
    seen = set()
    for places in itertools.combinations(range(longest + 4), 4):
        made = PointsAlone()
        first, _ = made.add(), made.add()
        real = made.objects.backend
        made.objects.backend = Turns(real)
        schedule = [1 if place in places else 0 for place in range(longest + 4)]
        forgot, held = made.objects.backend.run(
            [partial(forget_in, made, first), partial(hold_in, made, first)], schedule
        )
        made.objects.backend = real
        there = first.id in made.ids
        if held is None:
            assert there
            assert isinstance(forgot, ConfigError)
        if isinstance(forgot, str):
            assert not there
            assert isinstance(held, (str, ConfigError))
        if isinstance(forgot, ConfigError):
            assert there
            assert made.names("forgotten/") == []
        seen.add((type(forgot).__name__, type(held).__name__))
    assert {("str", "ConfigError"), ("ConfigError", "NoneType"), ("str", "str")} <= seen


# --- what retention sees ---


def test_retention_sees_the_fields_of_a_point(made):
    made.add(tags=("monthly",))
    (found,) = dated(made.points)
    assert (found.machine, found.vm, found.number, found.tags) == (WEB.uuid, "web01", 1, ("monthly",))
    assert found.created == BEGIN


@pytest.mark.parametrize("created", ["yesterday", "2026-11-01T20:00:00"])
def test_a_point_without_a_valid_time_is_named(made, created):
    point = made.add(created=created)
    with pytest.raises(IntegrityError, match=f"{point.id} of VM web01 has no valid time"):
        dated(made.points)


# --- heads ---


def remembered(made):
    return heads(made.config, made.points)


def problems(made, then):
    return compare_heads(made.objects, made.config, made.points, then)


def delete(made, *points):
    made.objects.backend.delete([name_of(point, made.config) for point in points])


def test_the_head_of_a_vm_is_its_newest_point(made):
    made.add()
    newest, other = made.add(), made.add(DB)
    found = remembered(made)
    assert [(head.vm, head.number, head.point, head.seal) for head in found.heads] == [
        ("db01", 1, other.id, other.seal),
        ("web01", 2, newest.id, newest.seal),
    ]
    assert found.repository == made.config.id.hex()


def test_heads_are_read_as_they_were_written(made, tmp_path):
    made.add()
    made.add(DB)
    (tmp_path / "heads").write_text(json.dumps(remembered(made).as_dict()))
    assert read_heads(tmp_path / "heads") == remembered(made)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "vadpipe heads", "version": 1}', "[" * 100_000]
)
def test_what_holds_no_heads_is_refused(tmp_path, content):
    (tmp_path / "heads").write_text(content)
    with pytest.raises(ConfigError, match="holds no heads"):
        read_heads(tmp_path / "heads")


def test_a_missing_file_of_heads_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_heads(tmp_path / "heads")


def test_new_points_are_no_problem(made):
    made.add()
    then = remembered(made)
    made.add()
    made.add(DB)
    assert problems(made, then) == []


def test_retention_that_removed_the_remembered_point_is_no_problem(made):
    first = made.add()
    then = remembered(made)
    made.add()
    forget_in(made, first)
    assert problems(made, then) == []


def test_a_deleted_point_is_noticed(made):
    first = made.add()
    then = remembered(made)
    made.add()
    delete(made, first)
    (problem,) = problems(made, then)
    assert f"VM web01: point {first.id}" in problem
    assert "somebody deleted it" in problem


def test_a_vm_without_points_is_noticed(made):
    first = made.add()
    then = remembered(made)
    delete(made, first)
    assert len(problems(made, then)) == 1


def test_points_that_were_rolled_back_are_noticed_though_new_ones_follow(made):
    made.add()
    second = made.add()
    then = remembered(made)
    delete(made, second)
    made._last = {WEB.uuid: made.points[-1]}
    made.add(created=BEGIN + timedelta(days=5)), made.add(created=BEGIN + timedelta(days=6))
    assert any(second.id in problem for problem in problems(made, then))


def test_a_replaced_point_is_noticed(made):
    first = made.add()
    then = remembered(made)
    made.put(replace(first, configuration={"changed": True}))
    (problem,) = problems(made, then)
    assert "another seal" in problem


def test_a_newest_point_that_was_forgotten_by_its_id_is_told_as_such(made):
    made.add()
    newest = made.add()
    then = remembered(made)
    forget_in(made, newest)
    (problem,) = problems(made, then)
    assert "newest point has number 1 now. `vadpipe forget` removed it at" in problem
    assert "write the heads anew" in problem


def test_a_forged_record_of_another_seal_is_no_excuse(made):
    first = made.add()
    then = remembered(made)
    made.add()
    forget_in(made, replace(first, seal="0" * 64))
    assert "somebody deleted it" in problems(made, then)[0]


def test_heads_of_another_repository_are_refused(made):
    other = PointsAlone()
    other.config = replace(other.config, id=bytes(16))
    other.add()
    with pytest.raises(ConfigError, match="of the repository with the id"):
        problems(made, remembered(other))
