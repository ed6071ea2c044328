"""Removing points, holding them, and noticing what somebody else removed."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from pipeline import ConfigError, IntegrityError, SinkError
from tests.vadpipe.repository.forgetting_kit import BEGIN, DB, WEB, PointsInMemory
from vadpipe.repository.config import READ_ONLY
from vadpipe.repository.files import hold_name
from vadpipe.repository.forgetting import (
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
from vadpipe.repository.restore_point import name_of


@pytest.fixture
def made():
    return PointsInMemory()


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
    other = PointsInMemory()
    other.add()
    with pytest.raises(ConfigError, match="of the repository with the id"):
        problems(made, remembered(other))
