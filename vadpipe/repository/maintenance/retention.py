"""Which points of a VM stay and which go. Kernel.

The rules are those that users of restic know. Each rule marks points, and what no rule marks goes. `last` counts
points. `hourly` to `yearly` count *buckets*: the hours, days, ISO weeks, months or years in which there is a point
at all; of each bucket the newest point is marked, beginning with the newest bucket. A rule that has more buckets to
fill than there are marks the oldest point as well, so that a young series of points keeps its begin. `within`
reaches back from the newest point, not from now: a VM that is not backed up any more does not lose its points to
the calendar.

Hours and days are those of a time zone. The clock is asked for one thing only: a point that is dated in the future
would push good points out of their buckets, so nothing is decided on a VM that has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from types import MappingProxyType
from typing import Final, TypeAlias

from pipeline import ConfigError, IntegrityError

# What the clocks of two machines may differ by; Kerberos allows as much (RFC 4120, section 8.2).
CLOCK_SKEW: Final = timedelta(minutes=5)

_NAMED = 5  # points that an error names
_MOST = 10**6  # of a unit of an age: beyond any calendar, and short enough to be computed with
_NONE: Mapping[str, str] = MappingProxyType({})

_UNITS: Final = {"y": "years", "m": "months", "w": "weeks", "d": "days", "h": "hours"}


@dataclass(frozen=True)
class Age:
    """A length of time on the calendar, such as `30d`, `12h` or `1y6m`. Not zero."""

    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    hours: int = 0

    def __post_init__(self) -> None:
        counts = [getattr(self, name) for name in _UNITS.values()]
        if not any(counts) or not all(0 <= count <= _MOST for count in counts):
            raise _no_age("".join(f"{count}{unit}" for count, unit in zip(counts, _UNITS, strict=True)))

    @classmethod
    def parse(cls, text: str) -> Age:
        """An age from its text: numbers with the units y, m, w, d and h, each unit once.

        Raises:
            ConfigError: For other text, and for an age of zero.
        """
        if not re.fullmatch(r"(?:[0-9]{1,7}[ymwdh])+", text):
            raise _no_age(text)
        parts = [(unit, int(count)) for count, unit in re.findall(r"([0-9]+)([ymwdh])", text)]
        counts = {_UNITS[unit]: count for unit, count in parts}
        if len(counts) < len(parts):
            raise _no_age(text)
        return cls(**counts)

    def __str__(self) -> str:
        return "".join(f"{count}{unit}" for unit, name in _UNITS.items() if (count := getattr(self, name)))

    def before(self, instant: datetime, zone: tzinfo | None) -> datetime:
        """The instant that lies this age before `instant`: years to days on the calendar of the zone, then hours.

        Where the earlier month is too short, its last day counts: one month before 31 March is 28 February.
        """
        local = instant.astimezone(zone)
        months = local.year * 12 + local.month - 1 - self.years * 12 - self.months
        try:
            month = local.replace(tzinfo=None, year=months // 12, month=months % 12 + 1, day=1)
            day = min(local.day, _days_of(month))
            wall = month.replace(day=day) - timedelta(weeks=self.weeks, days=self.days)
            return _instant(wall, zone, local.fold) - timedelta(hours=self.hours)
        except (ValueError, OverflowError):  # before the year 1
            return datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Keep:
    """What is kept of each VM. Zero or empty: this rule marks nothing.

    Args:
        last: The newest points.
        hourly: Hours of which the newest point is kept.
        daily: Days, likewise.
        weekly: ISO weeks, likewise.
        monthly: Months, likewise.
        yearly: Years, likewise.
        within: Everything that is at most this much older than the newest point of the VM.
        tags: Everything that has one of these tags.

    Raises:
        ConfigError: For a negative number, an empty tag, and where no rule is given.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Age | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("last", *_PERIODS):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ConfigError(f"keep {name}: {count!r} is no number of points.", remedy="Give 1 or more.")
        if any(not tag.strip() for tag in self.tags):
            raise ConfigError("keep tag: a tag is empty.", remedy="Name the tag whose points stay.")
        if not str(self):
            raise ConfigError(
                "No rule says what is kept.",
                remedy="Give at least one, such as --keep-daily 7, or name the points that go.",
            )

    def __str__(self) -> str:
        """The rules for people: 'last 5, daily 7, within 30d, tag audit'."""
        counts = [f"{name} {count}" for name in ("last", *_PERIODS) if (count := getattr(self, name))]
        within = [f"within {self.within}"] if self.within else []
        return ", ".join([*counts, *within, *(f"tag {tag}" for tag in self.tags)])


@dataclass(frozen=True)
class DatedPoint:
    """What retention has to know of a point.

    Args:
        id: Of the point.
        machine: UUID of the VM.
        vm: Its name.
        created: When; with a time zone.
        number: The place of the point in the chain of its VM.
        tags: Of the point.
    """

    id: str
    machine: str
    vm: str
    created: datetime
    number: int = 0
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether a point stays, and why. What goes has no reasons."""

    point: DatedPoint
    reasons: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


def decide(
    points: Iterable[DatedPoint],
    keep: Keep,
    *,
    now: datetime,
    held: Mapping[str, str] = _NONE,
    zone: tzinfo | None = None,
) -> dict[str, list[Decision]]:
    """Decide on the points of each VM, and on no VM by the points of another one.

    The newest point of a VM stays in any case, and so do points that are held.

    Args:
        points: Of any number of VMs, in any order.
        keep: The rules.
        now: The present, with a time zone.
        held: Why points are held, by their ids.
        zone: Whose hours and days count. None: that of this machine.

    Returns:
        The decisions per VM (UUID), the newest point first. VMs are in the order of their names.

    Raises:
        IntegrityError: A point is dated more than five minutes into the future. It names all such points.
    """
    by_machine: dict[str, list[DatedPoint]] = {}
    for point in points:
        by_machine.setdefault(point.machine, []).append(point)
    ordered = {machine: sorted(group, key=_age, reverse=True) for machine, group in by_machine.items()}
    _refuse_the_future([point for group in ordered.values() for point in group], now)
    names = sorted((group[0].vm, machine) for machine, group in ordered.items())
    return {machine: _decisions(ordered[machine], keep, held, zone) for _, machine in names}


def _decisions(
    points: Sequence[DatedPoint], keep: Keep, held: Mapping[str, str], zone: tzinfo | None
) -> list[Decision]:
    """Of one VM, the newest first."""
    reasons: list[list[str]] = [[] for _ in points]
    for place in range(min(keep.last, len(points))):
        reasons[place].append(f"last {place + 1} of {keep.last}")
    local = [point.created.astimezone(zone) for point in points]
    for name, bucket in _PERIODS.items():
        _mark_buckets(name, getattr(keep, name), [bucket(instant) for instant in local], reasons)
    if keep.within:
        # The latest time, not the first point: of two chains of one VM the one with the higher number may be older.
        reach = keep.within.before(max(point.created for point in points), zone)
        for place, point in enumerate(points):
            if point.created >= reach:
                reasons[place].append(f"within {keep.within}")
    for place, point in enumerate(points):
        reasons[place] += [f"tag {tag}" for tag in keep.tags if tag in point.tags]
        if point.id in held:
            reasons[place].append(f"held: {held[point.id]}")
    reasons[0].append("newest of its VM")
    return [Decision(point, tuple(why)) for point, why in zip(points, reasons, strict=True)]


def _mark_buckets(name: str, count: int, buckets: Sequence[_Bucket], reasons: Sequence[list[str]]) -> None:
    """Mark the newest point of each of the newest `count` buckets; points come with the newest first."""
    if not count:
        return
    # A dict, as the clocks of a zone may go back over midnight: then a day ends twice.
    newest: dict[_Bucket, int] = {}
    for place, bucket in enumerate(buckets):
        newest.setdefault(bucket, place)
    places = list(newest.values())[:count]
    for place in places:
        reasons[place].append(f"{name} {buckets[place][0]}")
    if len(newest) < count and places[-1] != len(buckets) - 1:
        reasons[-1].append(f"{name}: the oldest, as only {len(newest)} of {count} are filled")


def _refuse_the_future(points: Sequence[DatedPoint], now: datetime) -> None:
    ahead = [point for point in points if point.created > now + CLOCK_SKEW]
    if not ahead:
        return
    named = ", ".join(
        f"{point.id} of VM {point.vm} ({point.created.astimezone(UTC).isoformat(timespec='seconds')})"
        for point in ahead[:_NAMED]
    )
    more = f" and {len(ahead) - _NAMED} more" if len(ahead) > _NAMED else ""
    raise IntegrityError(
        f"Dated in the future, by the clock of this machine ({now.astimezone(UTC).isoformat(timespec='seconds')}): "
        f"{named}{more}. Nothing is removed, as such points would take the place of good ones.",
        remedy="Check the clock of this machine. If it is right, find out who wrote these points, and remove each "
        "of them by its id: vadpipe forget REPOSITORY POINT. Or name another VM with --vm.",
        points=[point.id for point in ahead],
    )


def _age(point: DatedPoint) -> tuple[int, datetime, str]:
    """The order of points that docs/repository.md says."""
    return point.number, point.created, point.id


_Bucket: TypeAlias = tuple[str, object]


def _hour(local: datetime) -> _Bucket:
    """The offset tells the two hours apart that have one name when the clocks go back."""
    return local.strftime("%Y-%m-%d %H:00"), local.utcoffset()


def _day(local: datetime) -> _Bucket:
    return local.date().isoformat(), None


def _week(local: datetime) -> _Bucket:
    year, week, _ = local.isocalendar()
    return f"{year}-W{week:02d}", None


def _month(local: datetime) -> _Bucket:
    return f"{local.year:04d}-{local.month:02d}", None


def _year(local: datetime) -> _Bucket:
    return f"{local.year:04d}", None


_PERIODS: Final[Mapping[str, Callable[[datetime], _Bucket]]] = {
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
    "yearly": _year,
}


def _days_of(month: datetime) -> int:
    """The days of the month that begins then."""
    after = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    return (after - month).days


def _instant(wall: datetime, zone: tzinfo | None, fold: int) -> datetime:
    """A time on the clock of a zone as an instant."""
    wall = wall.replace(fold=fold)
    return (wall.astimezone() if zone is None else wall.replace(tzinfo=zone)).astimezone(UTC)


def _no_age(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is no length of time.",
        remedy="Write it like 30d, 12h or 1y6m, with the units y, m, w, d and h.",
    )
