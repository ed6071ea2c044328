"""Which points stay: restic's rules, the calendar, and what no policy may remove."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError, IntegrityError
from vadpipe.repository.maintenance.retention import Age, DatedPoint, Keep, decide

NOW = datetime(2026, 11, 28, 1, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def point(created, name=None, *, machine="uuid-1", vm="web01", **more):
    if isinstance(created, str):
        created = datetime.fromisoformat(created).replace(tzinfo=UTC)
    return DatedPoint(name or created.isoformat(), machine, vm, created, **more)


def decided(points, keep, **settings):
    """The decisions of the only VM, by point."""
    (decisions,) = decide(points, keep, **{"now": NOW, "zone": UTC, **settings}).values()
    return {decision.point.id: decision for decision in decisions}


def kept(points, keep, **settings):
    return [name for name, decision in decided(points, keep, **settings).items() if decision.kept]


def named(*times, **more):
    """Points that have their times as names."""
    return [point(time, time, **more) for time in times]


# --- ages ---


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("30d", Age(days=30)),
        ("12h", Age(hours=12)),
        ("1y6m", Age(years=1, months=6)),
        ("2w", Age(weeks=2)),
        ("6m1y", Age(years=1, months=6)),
        ("007d", Age(days=7)),
    ],
)
def test_an_age_is_read(text, age):
    assert Age.parse(text) == age


@pytest.mark.parametrize(
    "text", ["", "0d", "-3d", "3", "d", "3D", "1.5d", "3d4d", "3 d", "9999999d", "٣d", "3d\n"]
)
def test_what_is_no_age_is_refused(text):
    with pytest.raises(ConfigError, match="is no length of time"):
        Age.parse(text)


counts = st.integers(0, 400)
ages = st.builds(Age, counts, counts, counts, counts, st.integers(1, 400))


@given(ages)
def test_an_age_is_read_as_it_is_printed(age):
    assert Age.parse(str(age)) == age


@given(st.text("0123456789ymwdhx", max_size=8))
def test_no_text_breaks_the_parser_of_ages(text):
    try:
        age = Age.parse(text)
    except ConfigError:
        return
    assert Age.parse(str(age)) == age


def test_a_month_before_the_last_of_march_is_the_last_of_february():
    assert Age(months=1).before(datetime(2026, 3, 31, 12, tzinfo=UTC), UTC) == datetime(
        2026, 2, 28, 12, tzinfo=UTC
    )
    assert Age(years=1).before(datetime(2024, 2, 29, 12, tzinfo=UTC), UTC) == datetime(
        2023, 2, 28, 12, tzinfo=UTC
    )


def test_a_day_before_counts_on_the_calendar_and_an_hour_by_the_clock():
    noon = datetime(2026, 3, 29, 12, tzinfo=BERLIN)  # the clocks went forward in this night
    assert Age(days=1).before(noon, BERLIN) == datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert Age(hours=24).before(noon, BERLIN) == datetime(2026, 3, 28, 11, tzinfo=BERLIN)


def test_an_age_beyond_the_calendar_reaches_its_begin():
    assert Age(years=999_999).before(NOW, UTC) == datetime.min.replace(tzinfo=UTC)


# --- policies ---


@pytest.mark.parametrize(
    "settings",
    [
        {"last": -1},
        {"hourly": -1},
        {"daily": -7},
        {"weekly": -1},
        {"monthly": -1},
        {"yearly": -1},
        {"last": True},
    ],
)
def test_a_count_below_zero_is_refused(settings):
    with pytest.raises(ConfigError, match="no number of points"):
        Keep(**settings)


@pytest.mark.parametrize("settings", [{}, {"last": 0, "daily": 0}])
def test_a_policy_without_rules_is_refused(settings):
    with pytest.raises(ConfigError, match="No rule"):
        Keep(**settings)


@pytest.mark.parametrize("tag", ["", " "])
def test_an_empty_tag_is_refused(tag):
    with pytest.raises(ConfigError, match="tag is empty"):
        Keep(daily=1, tags=(tag,))


def test_a_policy_is_printed_in_the_order_of_its_rules():
    keep = Keep(last=5, daily=7, within=Age(days=30), tags=("audit",))
    assert str(keep) == "last 5, daily 7, within 30d, tag audit"


# --- rules ---


def test_the_newest_point_of_each_day_stays():
    points = named(
        "2026-11-25T20:00", "2026-11-26T08:00", "2026-11-26T20:00", "2026-11-27T08:00", "2026-11-27T20:00"
    )
    assert kept(points, Keep(daily=2)) == ["2026-11-27T20:00", "2026-11-26T20:00"]


def test_days_without_a_point_are_not_counted():
    points = named("2026-10-01T20:00", "2026-10-02T20:00", "2026-11-01T20:00", "2026-11-27T20:00")
    assert kept(points, Keep(daily=3)) == ["2026-11-27T20:00", "2026-11-01T20:00", "2026-10-02T20:00"]


def test_a_rule_with_room_left_keeps_the_oldest_point():
    points = named("2026-11-03T20:00", "2026-11-10T20:00", "2026-11-27T20:00")
    found = decided(points, Keep(monthly=2))
    assert found["2026-11-03T20:00"].reasons == ("monthly: the oldest, as only 1 of 2 are filled",)
    assert not found["2026-11-10T20:00"].kept
    assert kept(points, Keep(monthly=1)) == ["2026-11-27T20:00"]


def test_the_weeks_are_those_of_iso_8601():
    points = named("2026-12-27T20:00", "2026-12-28T20:00", "2027-01-03T20:00", "2027-01-04T20:00")
    found = decided(points, Keep(weekly=3), now=datetime(2027, 2, 1, tzinfo=UTC))
    assert found["2027-01-03T20:00"].reasons == ("weekly 2026-W53",)
    assert not found["2026-12-28T20:00"].kept
    assert found["2026-12-27T20:00"].reasons == ("weekly 2026-W52",)


def test_each_rule_tells_why_a_point_stays():
    points = [*named("2026-11-26T20:00"), point("2026-11-27T20:10", "newest", tags=("audit", "other"))]
    keep = Keep(2, 1, 1, 1, 1, 1, Age(hours=12), ("audit",))
    assert decided(points, keep, held={"newest": "case 7"})["newest"].reasons == (
        "last 1 of 2",
        "hourly 2026-11-27 20:00",
        "daily 2026-11-27",
        "weekly 2026-W48",
        "monthly 2026-11",
        "yearly 2026",
        "within 12h",
        "tag audit",
        "held: case 7",
        "newest of its VM",
    )
    assert decided(points, keep)["2026-11-26T20:00"].reasons == ("last 2 of 2",)


def test_within_reaches_back_from_the_newest_point_and_not_from_now():
    points = named("2020-01-01T00:00", "2020-01-31T00:00", "2020-02-01T00:00")
    assert kept(points, Keep(within=Age(days=1))) == ["2020-02-01T00:00", "2020-01-31T00:00"]


def test_points_with_one_of_the_tags_stay():
    tagged = {1: ("a",), 2: ("b", "c"), 3: ()}
    points = [point(f"2026-11-{day:02}", f"p{day}", tags=tags) for day, tags in tagged.items()]
    assert kept([*points, *named("2026-11-04")], Keep(tags=("a", "c"))) == ["2026-11-04", "p2", "p1"]


def test_a_held_point_stays_whatever_the_rules_say():
    points = named("2026-11-01", "2026-11-02", "2026-11-03")
    assert kept(points, Keep(last=1), held={"2026-11-01": "audit"}) == ["2026-11-03", "2026-11-01"]


def test_the_newest_point_of_a_vm_stays_whatever_the_rules_say():
    found = decided(named("2026-11-01", "2026-11-02"), Keep(tags=("none",)))
    assert found["2026-11-02"].reasons == ("newest of its VM",)
    assert not found["2026-11-01"].kept


def test_the_newest_point_is_the_last_of_the_chain():
    points = [point("2026-11-03", "second", number=2), point("2026-11-02", "third", number=3)]
    assert kept(points, Keep(last=1)) == ["third"]


def test_a_vm_whose_name_changed_is_one_vm():
    points = [point("2026-11-01", "old", vm="old name"), point("2026-11-02", "new", vm="new name")]
    assert kept(points, Keep(last=1)) == ["new"]


def test_vms_come_in_the_order_of_their_names():
    points = [point("2026-11-01", machine="1", vm="web"), point("2026-11-01", machine="2", vm="db")]
    assert list(decide(points, Keep(last=1), now=NOW, zone=UTC)) == ["2", "1"]


def test_no_points_need_no_decision():
    assert decide([], Keep(last=1), now=NOW) == {}


# --- time zones ---


def test_a_day_is_that_of_the_time_zone():
    points = named(
        "2026-11-26T22:30", "2026-11-26T23:30", "2026-11-27T22:30"
    )  # in Berlin the last two are one day
    assert kept(points, Keep(daily=2), zone=BERLIN) == ["2026-11-27T22:30", "2026-11-26T22:30"]
    assert kept(points, Keep(daily=2), zone=UTC) == ["2026-11-27T22:30", "2026-11-26T23:30"]


def test_the_hour_that_comes_twice_is_two_hours():
    points = named("2025-10-26T00:30", "2025-10-26T01:30")  # 02:30 CEST and 02:30 CET
    found = decided(points, Keep(hourly=2), zone=BERLIN)
    assert all(decision.reasons[0] == "hourly 2025-10-26 02:00" for decision in found.values())


def test_the_day_of_25_hours_is_one_day():
    points = named("2025-10-25T22:10", "2025-10-26T00:30", "2025-10-26T22:50")
    assert kept(points, Keep(daily=1), zone=BERLIN) == ["2025-10-26T22:50"]


def test_the_hour_that_is_left_out_takes_no_place():
    points = named("2025-03-30T00:30", "2025-03-30T01:30")  # 01:30 CET and 03:30 CEST
    found = decided(points, Keep(hourly=2), zone=BERLIN)
    assert found["2025-03-30T01:30"].reasons[0] == "hourly 2025-03-30 03:00"
    assert found["2025-03-30T00:30"].reasons[0] == "hourly 2025-03-30 01:00"


def test_a_day_that_ends_twice_is_one_day():
    # In St. John's the clocks went from 00:01 back to 23:01 of the day before.
    points = named("2008-11-02T02:00", "2008-11-02T02:30:30", "2008-11-02T02:45")
    found = decided(points, Keep(daily=3), zone=ZoneInfo("America/St_Johns"))
    assert found["2008-11-02T02:45"].reasons[0] == "daily 2008-11-01"
    assert found["2008-11-02T02:30:30"].reasons[0] == "daily 2008-11-02"
    assert "daily 2008-11-01" not in found["2008-11-02T02:00"].reasons


def test_without_a_zone_that_of_the_machine_counts(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        points = named("2026-06-26T22:30", "2026-11-26T22:30", "2026-11-26T23:30")
        found = decided(points, Keep(daily=3), zone=None)
        assert [decision.reasons[0] for decision in found.values()] == [
            "daily 2026-11-27",
            "daily 2026-11-26",
            "daily 2026-06-27",  # the rule of summer, though it is winter now
        ]
    finally:
        monkeypatch.undo()
        time.tzset()


# --- points from the future ---


def test_a_point_dated_in_the_future_is_refused_with_its_name_and_the_remedy():
    points = [*named("2026-11-26", "2026-11-27"), point("2027-01-01", "forged")]
    with pytest.raises(IntegrityError, match=r"forged of VM web01 \(2027-01-01") as refused:
        decide(points, Keep(last=1), now=NOW, zone=UTC)
    assert refused.value.facts["points"] == ["forged"]
    assert "clock of this machine" in refused.value.remedy


def test_all_points_of_the_future_are_counted():
    with pytest.raises(IntegrityError, match="and 3 more"):
        decide([point("2027-01-01", f"p{n}") for n in range(8)], Keep(last=1), now=NOW)


def test_a_clock_may_be_five_minutes_ahead():
    ahead = [point(NOW + timedelta(minutes=5), "ahead")]
    assert kept(ahead, Keep(last=1)) == ["ahead"]
    with pytest.raises(IntegrityError):
        decide([point(NOW + timedelta(minutes=5, microseconds=1))], Keep(last=1), now=NOW)


# --- properties ---

instants = st.integers(0, 3 * 365 * 24 * 4).map(lambda quarters: NOW - timedelta(minutes=15 * quarters))
machines = st.sampled_from(["a", "b", "c"])
small = st.integers(0, 5)
RULES = "last", "hourly", "daily", "weekly", "monthly", "yearly", "days"
policies = st.fixed_dictionaries(dict.fromkeys(RULES, small))


@st.composite
def point_sets(draw):
    entries = draw(st.lists(st.tuples(instants, machines, st.integers(0, 3), st.booleans()), max_size=40))
    return [
        DatedPoint(f"p{number}", machine, f"vm-{machine}", created, chain, ("tagged",) * tagged)
        for number, (created, machine, chain, tagged) in enumerate(entries)
    ]


def policy(rules, tags=("tagged",)):
    rules = dict(rules)
    days = rules.pop("days")
    return Keep(**rules, within=Age(days=days) if days else None, tags=tags)


def stay(points, keep, held=()):
    decisions = decide(points, keep, now=NOW, held=dict.fromkeys(held, "held"), zone=BERLIN)
    return {decision.point.id for group in decisions.values() for decision in group if decision.kept}


@pytest.mark.slow
@given(point_sets(), policies, policies)
def test_a_larger_policy_never_removes_more(points, rules, more):
    larger = {name: count + more[name] for name, count in rules.items()}
    assert stay(points, policy(rules)) <= stay(points, policy(larger))
    if any(rules.values()):
        assert stay(points, policy(rules, tags=())) <= stay(points, policy(rules))


@pytest.mark.slow
@given(point_sets(), policies)
def test_what_stays_would_stay_again(points, rules):
    first = stay(points, policy(rules))
    assert stay([each for each in points if each.id in first], policy(rules)) == first


@pytest.mark.slow
@given(point_sets(), policies, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(points, rules, random):
    shuffled = random.sample(points, len(points))
    decisions = decide(points, policy(rules), now=NOW, zone=BERLIN)
    again = decide(shuffled, policy(rules), now=NOW, zone=BERLIN)
    assert again == decisions
    assert list(again) == list(decisions)


@pytest.mark.slow
@given(point_sets(), policies)
def test_no_vm_is_decided_on_by_the_points_of_another(points, rules):
    together = stay(points, policy(rules))
    for machine in "abc":
        alone = [each for each in points if each.machine == machine]
        assert stay(alone, policy(rules)) == together & {each.id for each in alone}


@pytest.mark.slow
@given(point_sets(), policies, st.sets(st.integers(0, 39)))
def test_newest_held_and_tagged_points_always_stay(points, rules, chosen):
    held = {f"p{number}" for number in chosen}
    remaining = stay(points, policy(rules), held)
    for machine in {each.machine for each in points}:
        mine = [each for each in points if each.machine == machine]
        newest = max(mine, key=lambda each: (each.number, each.created, each.id))
        assert newest.id in remaining
    assert {each.id for each in points if each.tags or each.id in held} <= remaining


@pytest.mark.slow
@given(point_sets(), st.integers(1, 5))
def test_daily_keeps_that_many_days_and_the_newest_point_of_each(points, count):
    points = [DatedPoint(each.id, "a", "vm", each.created) for each in points]
    days = {}
    for each in sorted(points, key=lambda each: (each.created, each.id)):
        days[each.created.astimezone(BERLIN).date()] = each.id
    expected = {days[day] for day in sorted(days, reverse=True)[:count]}
    if len(days) < count:
        expected |= {min(points, key=lambda each: (each.created, each.id)).id} if points else set()
    assert stay(points, Keep(daily=count)) == expected
