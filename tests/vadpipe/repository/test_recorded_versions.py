"""Which versions belong to a repository, what a record says of them, and what puts them back. Without a server."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError, IntegrityError
from vadpipe.repository.backends.administration import History, Marker, Version, grouped
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.config import Origin, create_repository
from vadpipe.repository.format.objects import Objects
from vadpipe.repository.maintenance.recorded_versions import (
    Record,
    belonging,
    is_current,
    kind_of,
    plan_return,
    read_records,
    record_name,
    write_record,
    written_later,
)

PACK = "packs/00/000000000000000000000001.pack"
POINT = "points/vm/0000000000000001.json"
HOLD = "holds/vm/0000000000000001.json"


def history(name, *entries):
    """Entries newest first: (id, time, size) is a version, (id, time) a delete marker."""
    versions = [
        Version(name, entry[0], entry[2], entry[1], entry is entries[0], f"etag {entry[0][0]}")
        for entry in entries
        if len(entry) > 2
    ]
    return History(name, tuple(versions), tuple(Marker(*entry) for entry in entries if len(entry) == 2))


def histories(*given):
    return {each.name: each for each in given}


def record(modified, **versions):
    return Record("0123456789abcdef", "2026-11-28T00:00:00+00:00", modified, versions)


def planned(*given, **settings):
    return [
        (step.name, step.action, step.version_id)
        for step in plan_return(histories(*given), settings.pop("record", None), **settings)
    ]


@given(
    st.dictionaries(
        st.sampled_from(["a", "a/b", "a0", "b", "not a name", "z"]),
        st.lists(st.booleans(), min_size=1, max_size=5),
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_a_page_of_a_listing_may_end_within_a_name(names, size):
    when = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        (marker, {"Key": f"web/{name}", "VersionId": f"{name} {number}", "LastModified": when, "Size": 1})
        for name in sorted(names)
        for number, marker in enumerate(names[name])
    ]
    pages = [
        {
            "Versions": [row for marker, row in rows[low : low + size] if not marker],
            "DeleteMarkers": [row for marker, row in rows[low : low + size] if marker],
        }
        for low in range(0, len(rows), size)
    ]
    found = list(grouped(pages, "web/"))
    assert [each.name for each in found] == [name for name in sorted(names) if " " not in name]
    for each in found:
        numbers = enumerate(names[each.name])
        expected = [f"{each.name} {number}" for number, marker in numbers if not marker]
        assert [version.version_id for version in each.versions] == expected
        assert len(each.markers) == sum(names[each.name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", "config"),
        ("config.json/x", None),
        (POINT, "points"),
        ("points/vm/newest", None),
        ("runs/0000000000000001.json", None),
        ("versions/0000000000000001.json", "records"),
        ("aside/points/vm/0000000000000001.json", None),
    ],
)
def test_hints_and_signs_of_life_have_no_kind(name, kind):
    assert kind_of(name) == kind


def test_the_first_version_of_a_name_belongs():
    overwritten = history(PACK, ("evil", 9, 5), ("good", 1, 5))
    assert belonging(overwritten).version_id == "good"
    assert not is_current(overwritten, belonging(overwritten))


def test_the_name_of_a_point_may_have_been_taken_before():
    freed = history(POINT, ("evil", 9, 700), ("point", 5, 600), ("marker", 4), ("ended", 3, 16))
    assert belonging(freed).version_id == "point"
    assert belonging(history(POINT, ("ended", 3, 16))).version_id == "ended"


def test_a_hold_may_have_been_made_again():
    assert belonging(history(HOLD, ("second", 5, 90), ("marker", 4), ("first", 3, 80))).version_id == "second"


def test_a_copy_of_the_first_version_is_current():
    assert is_current(
        history(PACK, ("g2", 9, 5), ("evil", 5, 5), ("good", 1, 5)),
        Version(PACK, "good", 5, 1, etag="etag g"),
    )


def test_delete_markers_alone_are_removed_and_other_versions_are_copied_over():
    known = record(3, **{PACK: "good", POINT: "right", "config.json": "first"})
    deleted = history(PACK, ("m2", 9), ("m1", 8), ("good", 1, 5))
    overwritten = history(POINT, ("marker", 9), ("evil", 8, 7), ("right", 1, 600))
    sound = history("config.json", ("first", 1, 300))
    steps = plan_return(histories(deleted, overwritten, sound), known)
    assert [(step.name, step.action, step.version_id) for step in steps] == [
        (PACK, "undelete", "good"),
        (POINT, "copy", "right"),
    ]
    assert [marker.version_id for marker in steps[0].markers] == ["m2", "m1"]
    assert "deleted at 1970-01-01T00:00:09+00:00" in steps[0].line()
    assert "would be put back" in steps[0].line(dry_run=True)


def test_what_was_deleted_before_the_record_or_the_time_stays_deleted():
    pruned = history(PACK, ("marker", 2), ("good", 1, 5))
    assert planned(pruned, record=record(3)) == []
    assert planned(pruned, before=3) == []
    assert planned(pruned, before=2) == [(PACK, "undelete", "good")]
    later = history(PACK, ("marker", 6), ("good", 5, 5))
    assert planned(later, record=record(3)) == [(PACK, "undelete", "good")]
    assert planned(later, record=record(3), before=7) == []
    recorded = record(3, **{PACK: "good"})
    assert planned(history(PACK, ("marker", 6), ("good", 1, 5)), record=recorded, before=7) == []


def test_what_came_after_the_time_is_left_or_hidden():
    added = history(POINT, ("evil", 9, 600))
    assert planned(added, before=5) == [(POINT, "added", "evil")]
    assert planned(added, before=5, hide_added=True) == [(POINT, "hide", "evil")]
    assert planned(added, record=record(3)) == []  # a run after the record


def test_what_was_written_after_the_record_is_named():
    found = histories(
        history(PACK, ("good", 1, 5)),
        history(POINT, ("run or evil", 9, 600)),
        history("holds/vm/0000000000000002.json", ("marker", 9), ("gone", 8, 600)),
        history(record_name("0" * 16), ("record", 9, 5)),
    )
    assert written_later(found, record(3, **{PACK: "good"})) == [POINT]


def test_what_came_back_after_it_was_deleted_is_named():
    assert planned(history(PACK, ("old", 1, 5)), record=record(3)) == [(PACK, "added", "old")]


def test_a_recorded_version_that_is_gone_is_lost():
    known = record(3, **{PACK: "good", POINT: "right"})
    assert planned(history(PACK, ("evil", 9, 5)), record=known) == [(PACK, "lost", ""), (POINT, "lost", "")]


def test_a_hold_is_put_back_as_it_was_before_the_time():
    held = history(HOLD, ("evil", 9, 90), ("second", 5, 90), ("marker", 4), ("first", 3, 80))
    assert planned(held, before=8) == [(HOLD, "copy", "second")]


def test_records_are_read_by_their_versions_and_never_put_back():
    name = record_name("0123456789abcdef")
    assert planned(history(name, ("marker", 9), ("record", 1, 100)), before=5) == []


def test_without_a_record_and_a_time_nothing_is_decided():
    with pytest.raises(ConfigError, match="--before"):
        plan_return({}, None)


@pytest.fixture
def store():
    backend = MemoryBackend()
    return Objects(backend), create_repository(backend, Origin())


def listed(record_id, *others):
    name = record_name(record_id)
    return histories(history(name, ("v", 5, 100)), *others)


def test_a_record_is_read_as_it_was_written(store):
    objects, config = store
    pack = history(PACK, ("evil", 9, 5), ("good", 1, 5))
    record_id = write_record(objects, config, Origin(), {PACK: "good"})
    found = listed(record_id, pack)
    (read,) = read_records(objects.backend, config, found)
    assert isinstance(read, Record)
    assert (read.id, read.modified, read.versions) == (record_id, 5, {PACK: "good"})
    assert list(read_records(objects.backend, config, found, before=5)) == []
    assert list(read_records(objects.backend, config, found, only="f" * 16)) == []


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({PACK: "evil"}, "not the first one"),
        ({"runs/0000000000000001.json": "x"}, "no object that is locked"),
        ({PACK: 7}, "no object that is locked"),
    ],
)
def test_a_forged_record_is_not_believed(store, versions, problem):
    """Where a repository is not sealed, everybody can write a record with a right seal."""
    objects, config = store
    record_id = write_record(objects, config, Origin(), versions)
    found = listed(record_id, history(PACK, ("evil", 9, 5), ("good", 1, 5)))
    (error,) = read_records(objects.backend, config, found)
    assert isinstance(error, IntegrityError)
    assert problem in str(error)


def test_a_record_under_another_name_or_with_a_wrong_seal_is_not_believed(store):
    objects, config = store
    record_id = write_record(objects, config, Origin(), {PACK: "good"})
    content = objects.backend.read(record_name(record_id))
    objects.backend.put(record_name("0" * 16), [content])
    (error,) = read_records(objects.backend, config, listed("0" * 16))
    assert isinstance(error, IntegrityError)
    fields = json.loads(content)
    fields["created"] = "2020-01-01"
    objects.backend.replace(record_name(record_id), [json.dumps(fields).encode()])
    (error,) = read_records(objects.backend, config, listed(record_id))
    assert "seal" in str(error)
