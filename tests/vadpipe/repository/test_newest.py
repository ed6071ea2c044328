"""Which point of a VM is the newest, noted so that not all of them are read."""

import pytest

from pipeline import MachineId
from tests.vadpipe.repository.forgetting_kit import WEB, PointsAlone
from vadpipe.repository.format import restore_point
from vadpipe.repository.format.restore_point import PointsOf

NOTE = f"points/{WEB.uuid}/newest"


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(restore_point, "NOTED_FROM", 2)
    return PointsAlone()


def points_of(made, machine: MachineId = WEB) -> PointsOf:
    return PointsOf(made.objects, made.config, machine)


def counted(made, monkeypatch):
    """Names of the points that are read from now on."""
    read = []
    real = restore_point.read_point
    monkeypatch.setattr(restore_point, "read_point", lambda *given: (read.append(given[2]), real(*given))[1])
    return read


def test_a_point_that_was_noted_is_read_alone(made, monkeypatch):
    made.add()
    points = points_of(made)
    points.newest()
    added = made.add()
    points.note_newest(added)
    read = counted(made, monkeypatch)
    assert points_of(made).newest().id == added.id
    assert len(read) == 1


def test_a_note_needs_no_second_listing(made, monkeypatch):
    made.add()
    points = points_of(made)
    points.newest()
    added, listed = made.add(), []
    real = made.objects.backend.names
    monkeypatch.setattr(
        made.objects.backend, "names", lambda prefix: (listed.append(prefix), real(prefix))[1]
    )
    points.note_newest(added)
    assert listed == []
    assert points_of(made).newest() is not None
    assert listed == [f"points/{WEB.uuid}/"]


def test_a_note_beside_another_new_point_counts_for_nothing(made, monkeypatch):
    made.add()
    one, two = points_of(made), points_of(made)
    one.newest()
    two.newest()
    first, second = made.add(), made.add()
    two.note_newest(second)
    one.note_newest(first)  # the last one wins, and it does not know of the second point
    read = counted(made, monkeypatch)
    assert points_of(made).newest().id == second.id
    assert len(read) == 3


def test_whoever_did_not_look_for_the_newest_point_notes_nothing(made):
    """A copy of an old point is not the newest one."""
    for _ in range(3):
        made.add()
    points_of(made).note_newest(made.add())
    assert NOTE not in made.objects.backend.names("points/")
