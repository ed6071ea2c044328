"""What is locked until when: packs until the last point that needs them."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from pipeline import ConfigError, IntegrityError, MiB
from tests.vadpipe.repository.repository_kit import MemoryDisk, backup, random_bytes, two_points
from vadpipe.repository.backends.administration import History, Version
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.format.objects import INDEX, PACKS
from vadpipe.repository.maintenance.forgetting import forget
from vadpipe.repository.maintenance.object_lock import lock_state, plan_extension
from vadpipe.repository.maintenance.prune import prune
from vadpipe.repository.maintenance.recorded_versions import Record, kind_of
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.store import Repository

NOW = datetime(2026, 11, 28, tzinfo=UTC)
SHORT, LONG = NOW + timedelta(days=10), NOW + timedelta(days=400)


@pytest.fixture
def repository():
    return two_points(Repository(MemoryBackend()))


def listed(repository):
    """The objects as a bucket with versions lists them, each written once."""
    return {
        found.name: History(found.name, (Version(found.name, "first", found.size, 1.0, True, found.name),))
        for found in repository.backend().list("")
        if kind_of(found.name)
    }


def planned(repository, until, found=None, last=None):
    """What is extended; `until`: of the points, oldest first, None for one that is not kept."""
    reader = RepositoryReader.of(repository.backend())
    points = {point.id: when for point, when in zip(reader.points, until, strict=True) if when is not None}
    return plan_extension(reader, listed(repository) if found is None else found, points, last)


def packs_of(repository, number):
    """The packs that the point with this number wrote."""
    point = RepositoryReader.of(repository.backend()).points[number]
    return {name for name in repository.backend().names(PACKS) if point.id in name}


def test_a_pack_is_kept_until_the_last_point_that_needs_it(repository):
    first, second = packs_of(repository, 0), packs_of(repository, 1)
    extension = planned(repository, [SHORT, LONG])
    assert {extension.until[name] for name in first | second} == {LONG}  # the second point needs both
    extension = planned(repository, [LONG, SHORT])
    assert {extension.until[name] for name in first} == {LONG}
    assert {extension.until[name] for name in second} == {SHORT}
    assert extension.latest == LONG
    for kind in ("config", "index"):
        assert {when for name, when in extension.until.items() if kind_of(name) == kind} == {LONG}
    ends = sorted(when for name, when in extension.until.items() if kind_of(name) == "points")
    assert ends == [SHORT, LONG]
    assert not extension.problems


def test_what_only_other_points_need_is_recorded_and_not_kept(repository):
    extension = planned(repository, [LONG, None])
    assert packs_of(repository, 1).isdisjoint(extension.until)
    assert set(extension.recorded) == set(listed(repository))


def test_packs_and_segments_of_a_removal_are_not_kept(repository):
    first = packs_of(repository, 0)
    old = set(repository.backend().names(INDEX))
    reader = RepositoryReader.of(repository.backend())
    forget(reader.objects, reader.config, repository.origin, reader.points[:1])
    with repository.open_for_maintenance() as (objects, config):
        prune(objects, config, repository.origin, rewrite_below=1)  # names the pack, and copies half of it
    extension = planned(repository, [LONG])
    assert first.isdisjoint(extension.until)
    assert first <= set(extension.recorded)
    assert old <= set(extension.until)  # prune rewrites segments when the packs go
    assert not extension.problems
    (copied,) = set(repository.backend().names(PACKS)) - first - packs_of(repository, 0)
    assert extension.until[copied] == LONG


def test_what_is_needed_and_gone_is_told(repository):
    found = listed(repository)
    (pack,) = packs_of(repository, 0)
    deleted = Version(pack, "first", 9, 1.0, False)
    found[pack] = History(pack, (deleted,))
    extension = planned(repository, [LONG, LONG], found)
    assert "needed and was deleted" in extension.problems[0]
    assert extension.versions[pack] == "first"
    del found[pack]
    extension = planned(repository, [LONG, LONG], found)
    assert "has no version" in extension.problems[0]
    assert pack not in extension.until


def test_the_first_version_is_kept_where_another_one_lies_above(repository):
    found = listed(repository)
    evil = Version("config.json", "evil", 9, 2.0, True, "evil")
    found["config.json"] = History("config.json", (evil, Version("config.json", "first", 9, 1.0)))
    extension = planned(repository, [LONG, LONG], found)
    assert extension.versions["config.json"] == extension.recorded["config.json"] == "first"
    assert "config.json was overwritten" in extension.problems[0]


def test_a_point_of_the_last_record_is_missed_unless_it_was_forgotten(repository):
    last = Record("0" * 16, "2026-11-27", 1.0, planned(repository, [LONG, LONG]).recorded)
    reader = RepositoryReader.of(repository.backend())
    first, second = reader.points
    forget(reader.objects, reader.config, repository.origin, [first])
    assert not planned(repository, [LONG], last=last).problems
    repository.backend().delete([name for name in repository.backend().names("points/") if second.id in name])
    with pytest.raises(ConfigError, match="no point to keep"):
        planned(repository, [])
    disk = MemoryDisk(random_bytes(3, MiB))
    trio.run(backup, repository, [disk])
    (problem,) = planned(repository, [LONG], last=last).problems
    assert second.id in problem
    assert "without `forget`" in problem


def test_a_lost_index_is_told_before_anything_is_locked(repository):
    repository.backend().delete(list(repository.backend().names(INDEX)))
    with pytest.raises(IntegrityError, match="not in the index"):
        planned(repository, [LONG, LONG])


def test_the_state_counts_locks_by_day(repository):
    found = listed(repository)
    kept = dict.fromkeys(found)
    first, second = (name for name in found if kind_of(name) == "points")
    kept.update({first: SHORT, second: NOW, "config.json": LONG})
    states = {state.kind: state for state in lock_state(found, kept, NOW)}
    assert states["points"].until == {"2026-12-08": 1}
    assert states["points"].not_locked == (second,)  # its lock has ended
    assert states["config"].locked == states["config"].objects == 1
    assert states["config"].first == states["config"].last == LONG.isoformat()
    assert states["index"].locked == 0
    assert "holds" not in states
