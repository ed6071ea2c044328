"""forget, hold, release, head, stats and diff as users call them."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
import trio
from click.testing import CliRunner

from pipeline import MiB
from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError, IntegrityError
from tests.vadpipe.repository import repository_kit as kit
from tests.vadpipe.repository.forgetting_kit import DB, WEB, PointsAlone
from vadpipe.cli.commands import vadpipe
from vadpipe.repository.backends.location import backend_at
from vadpipe.repository.format.restore_point import name_of
from vadpipe.repository.format.ways import KeyFile, make_key_file
from vadpipe.repository.store import Repository


@pytest.fixture(autouse=True)
def in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("VADPIPE_REPOSITORY", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def made(tmp_path):
    """Four days of web01, one point of db01."""
    points = PointsAlone(backend_at(str(tmp_path / "repository")))
    for day in (10, 11, 12, 13):
        points.add(created=datetime(2026, 11, day, 20, tzinfo=UTC), tags=["monthly"] * (day == 10))
    points.add(DB, created=datetime(2026, 11, 9, 20, tzinfo=UTC))
    return points


def run(*arguments):
    done = CliRunner().invoke(vadpipe, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done


def call(*arguments):
    done = run(*arguments)
    assert done.return_value in (EXIT_DONE, None)
    return done.stdout


def place(made):
    return made.objects.place()


def of(made, machine):
    return [point for point in made.points if point.machine == machine]


# --- forget ---

TABLE = """\
VM db01: 1 point stays, 0 go
  POINT             CREATED                     WHY
  {db[0]}  2026-11-09 20:00:00  stays  last 1 of 1, newest of its VM

VM web01: 3 points stay, 1 goes
  POINT             CREATED                     WHY
  {web[3]}  2026-11-13 20:00:00  stays  last 1 of 1, newest of its VM
  {web[2]}  2026-11-12 20:00:00  goes
  {web[1]}  2026-11-11 20:00:00  stays  held: case 7
  {web[0]}  2026-11-10 20:00:00  stays  tag monthly

1 point would go by the rules last 1, tag monthly; nothing was removed.
"""


def test_the_table_says_what_stays_and_why(made):
    web, db = ([point.id for point in of(made, machine)] for machine in (WEB, DB))
    call("hold", place(made), web[1], "--reason", "case 7")
    shown = call("forget", place(made), "--keep-last", 1, "--keep-tag", "monthly", "--dry-run")
    assert shown == TABLE.format(web=web, db=db)
    assert len(made.points) == 5


def test_points_go_by_rules_and_prune_is_named(made):
    shown = call("forget", place(made), "--keep-daily", 2, "--vm", "web01")
    assert "2 points removed by the rules daily 2. What only they needed stays on disk until: " in shown
    assert shown.endswith(f"vadpipe prune {place(made)}\n")
    assert [point.number for point in of(made, WEB)] == [3, 4]
    assert len(of(made, DB)) == 1
    assert "Nothing goes by the rules daily 2." in call("forget", place(made), "--keep-daily", 2)


def test_the_document_has_every_decision(made):
    web = [point.id for point in of(made, WEB)]
    found = json.loads(call("forget", place(made), "--keep-within", "25h", "--dry-run", "--json"))
    assert found["dry_run"] is True
    assert found["record"] is None
    assert found["rules"] == "within 25h"
    assert found["removed"] == web[:2]
    newest = found["vms"][1]["points"][0]
    assert newest == {
        "id": web[3],
        "created": "2026-11-13T20:00:00+00:00",
        "kept": True,
        "reasons": ["within 25h", "newest of its VM"],
    }
    assert json.loads(call("forget", place(made), "--keep-within", "25h", "--json"))["record"]


def test_points_go_by_their_ids_also_the_newest(made):
    web, (only,) = of(made, WEB), of(made, DB)
    shown = call("forget", place(made), web[3].id[:10], only.id, web[3].id)
    assert "2 points removed." in shown
    assert "VM db01 has no point left; its next backup reads everything." in shown
    assert [point.id for point in made.points] == [point.id for point in web[:3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No rule says what is kept"),
        (["--keep-daily", "-1"], "no number of points"),
        (["--keep-within", "soon"], "no length of time"),
        (["--keep-daily", "1", "--timezone", "Mars/Base"], "no time zone 'Mars/Base'"),
        (["--keep-daily", "1", "--timezone", "/etc/passwd"], "no time zone"),
        (["--keep-daily", "1", "--vm", "web"], r"no restore points of VM 'web'\. It has points of web01"),
        (["latest"], "`latest` is another point after each backup"),
        (["ffffffffffffffff"], "No restore point begins with"),
        (["0", "--keep-daily", "1"], "Points and rules were given"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, arguments, message):
    with pytest.raises(ConfigError, match=message):
        call("forget", place(made), *arguments)
    assert len(made.points) == 5


def test_a_held_point_is_not_removed_by_its_id(made):
    point = of(made, WEB)[0]
    call("hold", place(made), point.id, "--reason", "case 7")
    with pytest.raises(ConfigError, match="case 7"):
        call("forget", place(made), point.id)
    assert "it was: case 7" in call("release", place(made), point.id)
    call("forget", place(made), point.id)
    assert point.id not in made.ids


def test_a_point_of_the_future_stops_all_vms_unless_one_is_named(made):
    forged = made.add(DB, created=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(IntegrityError, match=f"{forged.id} of VM db01"):
        call("forget", place(made), "--keep-last", 1)
    assert len(made.points) == 6
    call("forget", place(made), "--keep-last", 1, "--vm", "web01")
    assert len(of(made, WEB)) == 1
    call("forget", place(made), forged.id)
    call("forget", place(made), "--keep-last", 1)


def test_hours_and_days_are_those_of_the_zone_that_was_named(made):
    made.add(created=datetime(2026, 11, 13, 23, 30, tzinfo=UTC))
    shown = call("forget", place(made), "--keep-daily", 9, "--dry-run", "--timezone", "Europe/Berlin")
    assert "daily 2026-11-14" in shown
    assert "daily 2026-11-14" not in call("forget", place(made), "--keep-daily", 9, "--dry-run")


def test_damaged_points_are_named_and_stay(made):
    damaged = of(made, WEB)[0]
    made.objects.backend.replace(name_of(damaged, made.config), [b"rot"])
    done = run("forget", place(made), "--keep-last", 1)
    assert done.return_value == EXIT_ATTENTION
    assert damaged.id in done.stderr
    assert made.objects.exists(name_of(damaged, made.config))


def test_the_repository_of_the_environment_is_used(made, monkeypatch):
    monkeypatch.setenv("VADPIPE_REPOSITORY", place(made))
    assert "2 points would go" in call("forget", "--keep-last", 2, "--dry-run")


def test_points_of_a_sealed_repository_need_its_key(tmp_path):
    key = tmp_path / "key"
    make_key_file(key)
    made = PointsAlone(backend_at(str(tmp_path / "sealed")), KeyFile(key))
    made.add()
    newest = made.add()
    with pytest.raises(ConfigError):
        call("forget", place(made), "--keep-last", 1)
    assert len(made.points) == 2
    call("hold", place(made), newest.id, "--reason", "case 7", "--key-file", key)
    shown = call("forget", place(made), "--keep-last", 1, "--key-file", key)
    assert "held: case 7" in shown
    assert made.ids == [newest.id]
    assert newest.seal in call("head", place(made), "--key-file", key)


# --- hold, release ---


def test_a_hold_is_shown_as_a_document(made):
    point = of(made, WEB)[0]
    found = json.loads(call("hold", place(made), point.id, "--reason", "case 7", "--json"))
    assert found == {"point": point.id, "reason": "case 7", "remark": None}
    assert json.loads(call("release", place(made), point.id, "--json")) == {
        "point": point.id,
        "reason": "case 7",
    }


def test_the_newest_point_of_a_vm_can_be_held_by_its_word(made):
    assert f"Point {of(made, WEB)[-1].id} of VM web01 is held" in call(
        "hold", place(made), "latest", "--vm", "web01", "--reason", "before the upgrade"
    )


# --- head ---


def test_heads_are_printed_with_their_seals(made):
    web, db = of(made, WEB)[-1], of(made, DB)[-1]
    lines = call("head", place(made)).splitlines()
    assert lines[0].split() == ["VM", "NUMBER", "POINT", "CREATED", "SEAL"]
    assert lines[1].split() == ["db01", "1", db.id, "2026-11-09", "20:00:00", db.seal]
    assert lines[2].split() == ["web01", "4", web.id, "2026-11-13", "20:00:00", web.seal]


def test_what_head_prints_is_compared_later(made, tmp_path):
    (tmp_path / "heads.json").write_text(call("head", place(made), "--json"))
    made.add()
    call("forget", place(made), "--keep-last", 1, "--vm", "web01")
    compared = call("head", place(made), "--compare", tmp_path / "heads.json")
    assert "2 remembered heads compared: nothing is missing." in compared


def test_a_deleted_point_fails_the_comparison(made, tmp_path):
    (tmp_path / "heads.json").write_text(call("head", place(made), "--json"))
    newest = of(made, WEB)[-1]
    made.objects.backend.delete([name_of(newest, made.config)])
    done = run("head", place(made), "--compare", tmp_path / "heads.json")
    assert done.return_value == EXIT_FAILED
    assert f"point {newest.id}" in done.stdout
    done = run("head", place(made), "--compare", tmp_path / "heads.json", "--json")
    assert len(json.loads(done.stdout)["problems"]) == 1


# --- stats, diff ---


@pytest.fixture
def stored(tmp_path):
    """Two points of one VM, with one MiB of eight rewritten."""
    repository = Repository(tmp_path / "stored")
    repository.init()
    disk = kit.MemoryDisk(kit.random_bytes(1, 8 * MiB))

    async def fill():
        await kit.backup(repository, [disk])
        disk.write(2 * MiB, kit.random_bytes(2, MiB))
        await kit.backup(repository, [disk], kit.incremental_path)

    trio.run(fill)
    return repository.path


def test_statistics_are_a_table_per_vm(stored):
    header, row, summary, *_ = call("stats", stored).splitlines()
    assert header.split() == ["VM", "POINTS", "SIZE", "ALLOCATED", "UNIQUE", "STORED", "ONLY", "HERE"]
    assert row.split()[:6] == ["fake", "2", "16.0", "MiB", "16.0", "MiB"]
    assert summary.startswith("2 points of 1 VM hold 16.0 MiB in disks of 16.0 MiB; 9.")


def test_statistics_of_points_are_shown_when_they_are_asked_for(stored):
    lines = call("stats", stored, "--points").splitlines()
    assert lines[2].split()[:3] == ["POINT", "CREATED", "VM"]
    assert len(lines) == 2 + 3 + 3
    found = json.loads(call("stats", stored, "--json"))
    assert [point["logical"] for point in found["points"]] == [8 * MiB, 8 * MiB]
    assert found["vms"][0]["points"] == 2
    assert found["deduplication"] > 1.5
    with pytest.raises(ConfigError, match="no restore points of VM 'none'"):
        call("stats", stored, "--vm", "none")


def test_a_difference_names_disks_and_ranges(stored):
    first, second = (point["id"] for point in json.loads(call("points", stored, "--json"))["points"])
    title, disk, *ranges = call("diff", stored, first, second, "--ranges").splitlines()
    assert title.startswith(f"{first} (fake, ")
    assert "disk scsi0:0 (Hard disk 1), 8.0 MiB: " in disk
    covered = [tuple(map(int, line.split())) for line in ranges]
    assert any(low <= 2 * MiB and low + length >= 3 * MiB for low, length in covered)
    found = json.loads(call("diff", stored, first, second, "--json"))
    assert [tuple(each) for each in found["disks"][0]["ranges"]] == covered
    assert found["changed"] == sum(length for _, length in covered) < 2 * MiB
    assert len(call("diff", stored, first, second).splitlines()) == 2


def test_equal_points_have_no_difference(stored):
    newest = json.loads(call("points", stored, "--json"))["points"][-1]["id"]
    title, disk = call("diff", stored, newest, "latest").splitlines()
    assert title.endswith("0 B changed")
    assert disk.endswith("8.0 MiB: equal")
