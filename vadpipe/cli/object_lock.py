"""The commands about object lock of a bucket: prepare, extend, status, restore."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, ConfigError, IntegrityError, SinkError
from vadpipe.repository.backends.administration import MODES, LockSettings, S3Administration
from vadpipe.repository.format.config import Origin
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.maintenance.object_lock import Extension, KindState, lock_state, plan_extension
from vadpipe.repository.maintenance.recorded_versions import (
    Histories,
    belonging,
    histories,
    is_current,
    kind_of,
    record_name,
    told,
    write_record,
)
from vadpipe.repository.reader import RepositoryReader
from vadpipe.repository.store import Repository
from vadpipe.words import counted

from .commands import OnRepository, json_option, repository_argument, vm_option
from .output import report, show, table
from .process import run_async
from .repository import local_time, named_point, points_of
from .versions import NAMED, administration, batches, believed, found_in, moment, restore_versions


class OnBucket(OnRepository):
    """A command on a repository that needs no key of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of click
        super().__init__(*args, **kwargs)
        self.params = [param for param in self.params if param not in self._keys]
        self._keys = []


@click.group("object-lock")
def object_lock() -> None:
    """Lock what restore points need in a bucket, and put it back after somebody overwrote or deleted it."""


object_lock.add_command(restore_versions)

_mode_option = click.option(
    "--mode",
    type=click.Choice([mode.lower() for mode in MODES]),
    help="compliance: nobody can shorten a lock; governance: whoever has the right to. Without it, that of the "
    "bucket, or compliance.",
)


@object_lock.command(cls=OnBucket)
@repository_argument
@click.option("--make", is_flag=True, help="Make the bucket.")
@click.option(
    "--days",
    type=click.IntRange(min=1),
    metavar="N",
    help="Lock each new version for N days. Without it, versions are kept and nothing is locked.",
)
@_mode_option
@click.option("--dry-run", is_flag=True, help="Show what the bucket does now; change nothing.")
@json_option
def prepare(
    repository: str, make: bool, days: int | None, mode: str | None, dry_run: bool, as_json: bool
) -> None:
    """Switch on versions and locks in a bucket.

    With --days everything that is written from now on is locked for so long. Do this before `vadpipe init`:
    some servers take object lock only when the bucket is made (--make).
    """
    with administration(repository) as bucket:
        if not dry_run:
            before = "" if mode or make else bucket.settings().mode
            bucket.prepare_bucket(make=make, retention_days=days, mode=(mode or before or MODES[0]).upper())
        settings = bucket.settings()
    show(
        {"repository": repository, "dry_run": dry_run, "bucket": settings},
        [f"{bucket.location.place()}: {_told_settings(settings)}."],
        as_json,
    )


def _told_settings(settings: LockSettings) -> str:
    if not settings.versions:
        return "versions are not kept, so what is overwritten or deleted is lost"
    if not settings.lock:
        return "versions are kept; object lock is off, so they can be removed"
    if not settings.mode:
        return "versions are kept and can be locked; new ones are not locked by themselves"
    return f"versions are kept; new ones are locked for {counted(settings.days, 'day')} ({settings.mode.lower()})"


@dataclass(frozen=True)
class _Wanted:
    """Which points are kept until when, as the options say."""

    until: datetime | None
    days: int | None
    from_creation: bool
    vm: str | None
    points: Sequence[str]
    tags: Sequence[str]

    def of(self, reader: RepositoryReader, now: datetime) -> dict[str, datetime]:
        """Per id of a point until when it is kept. Raises ConfigError."""
        chosen: Sequence[RestorePoint] = points_of(reader, self.vm)
        if self.points:
            chosen = list(
                {
                    each.id: each for each in (named_point(reader, name, self.vm) for name in self.points)
                }.values()
            )
        if self.tags:
            chosen = [point for point in chosen if set(self.tags).intersection(point.tags)]
        found = {point.id: self._until(point, now) for point in chosen}
        if self.from_creation:
            found = {name: until for name, until in found.items() if until > now}
        if not found:
            raise ConfigError(
                "There is no point to keep.",
                remedy="`vadpipe points` lists what is there; with --from-creation older ones need more --days.",
            )
        return found

    def _until(self, point: RestorePoint, now: datetime) -> datetime:
        if self.until is not None:
            return self.until
        assert self.days is not None
        begin = now
        if self.from_creation:
            try:
                begin = datetime.fromisoformat(point.created).astimezone(UTC)
            except ValueError as exc:
                raise IntegrityError(
                    f"Point {point.id} of VM {point.machine.name} has no valid time: {point.created!r}.",
                    remedy="Leave --from-creation out, or name other points.",
                ) from exc
        try:
            return (begin + timedelta(days=self.days)).replace(microsecond=0)
        except OverflowError as exc:
            raise ConfigError(f"{self.days} days are too many.", remedy="Give fewer --days.") from exc


@dataclass(frozen=True)
class _Extended:
    extension: Extension
    points: Mapping[str, datetime]
    names: Sequence[str]
    mode: str
    record: str | None


@object_lock.command(cls=OnRepository)
@repository_argument
@click.option("--until", metavar="TIME", help="Keep it until this time or the end of this day: 2027-01-31.")
@click.option("--days", type=click.IntRange(min=1), metavar="N", help="Keep it for N days from now.")
@click.option("--from-creation", is_flag=True, help="The --days of a point begin when it was made.")
@vm_option
@click.option("--point", "points", multiple=True, metavar="POINT", help="Only this point; may be repeated.")
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Only points with this tag; may be repeated."
)
@_mode_option
@click.option("--dry-run", is_flag=True, help="Say what would be locked; change nothing.")
@json_option
def extend(
    repository: str,
    until: str | None,
    days: int | None,
    from_creation: bool,
    vm: str | None,
    points: Sequence[str],
    tags: Sequence[str],
    mode: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Lock what restore points need, and record it.

    It is kept until a time, or for days from now. A pack is kept until the last point that needs it. No lock is
    shortened, so several calls add up: all points for 30 days, those with a tag for 400.
    """
    if (until is None) == (days is None):
        raise ConfigError("Say until when.", remedy="Give either --until or --days.")
    if from_creation and days is None:
        raise ConfigError("--from-creation needs --days.", remedy="Give --days N.")
    wanted = _Wanted(None if until is None else _future(until), days, from_creation, vm, points, tags)

    async def work() -> _Extended:
        with administration(repository) as bucket:
            settings = await trio.to_thread.run_sync(bucket.settings)
            if not settings.versions or not settings.lock:
                raise SinkError(
                    f"{bucket.location.place()}: {_told_settings(settings)}.",
                    remedy="Prepare the bucket first: vadpipe object-lock prepare REPOSITORY --days N",
                )
            chosen = mode.upper() if mode else settings.mode or MODES[0]
            async with Repository(repository).read() as reader:
                return await trio.to_thread.run_sync(
                    partial(_extend, bucket, reader, wanted, chosen, dry_run=dry_run)
                )

    done = run_async(work)
    extension = done.extension
    needed = Counter(map(kind_of, extension.until))
    extended = Counter(map(kind_of, done.names))
    document = {
        "repository": repository,
        "dry_run": dry_run,
        "mode": done.mode,
        "until": extension.latest.isoformat(),
        "points": {point: when.isoformat() for point, when in done.points.items()},
        "kinds": {kind: {"needed": count, "extended": extended[kind]} for kind, count in needed.items()},
        "extended": {
            name: extension.until[name].isoformat() for name in done.names if name in extension.until
        },
        "record": done.record,
        "recorded": len(extension.recorded),
        "problems": extension.problems,
    }
    show(document, _extension_lines(done, needed, extended, dry_run=dry_run), as_json)
    for problem in extension.problems:
        report(problem)
    if extension.problems:
        report(f"Look what happened, and put it back: vadpipe object-lock restore {repository} --dry-run")
    return EXIT_ATTENTION if extension.problems else EXIT_DONE


def _extension_lines(
    done: _Extended, needed: Mapping[str | None, int], extended: Mapping[str | None, int], *, dry_run: bool
) -> list[str]:
    rows = []
    for kind, count in needed.items():
        ends = [when for name, when in done.extension.until.items() if kind_of(name) == kind]
        rows.append((str(kind), str(count), str(extended[kind]), _local(min(ends)), _local(max(ends))))
    lines = table(("KIND", "NEEDED", "EXTENDED", "FROM", "UNTIL"), rows, right=("NEEDED", "EXTENDED"))
    would = "would be " if dry_run else ""
    lines.append(
        f"{counted(len(done.points), 'point')} {would}kept until {_local(done.extension.latest)} at the latest "
        f"({done.mode.lower()}): {counted(len(done.names), 'lock')} {would}extended of {len(done.extension.until)}."
    )
    if done.record is not None:
        lines.append(
            f"Record {done.record} names {counted(len(done.extension.recorded), 'version')}. Keep its id elsewhere."
        )
    return lines


def _extend(
    bucket: S3Administration, reader: RepositoryReader, wanted: _Wanted, mode: str, *, dry_run: bool
) -> _Extended:
    now = datetime.now(UTC)
    points = wanted.of(reader, now)
    found = histories(bucket)
    last = next(believed(bucket, reader.config, found), None)
    extension = plan_extension(reader, found, points, last)
    names: list[str] = []
    for batch in batches(list(extension.versions.items())):
        names += bucket.extend_retention(dict(batch), extension.until, mode, dry_run=dry_run)
    if dry_run:
        return _Extended(extension, points, names, mode, None)
    record = write_record(reader.objects, reader.config, Origin(), extension.recorded)
    written = bucket.recorded_versions(record_name(record))
    bucket.extend_retention(written, extension.latest, mode)
    _drop_old_records(bucket, found, now)
    return _Extended(extension, points, names, mode, record)


def _drop_old_records(bucket: S3Administration, found: Histories, now: datetime) -> None:
    """Records before the new one whose lock has ended."""
    old = {
        name: belonging(each).version_id
        for name, each in found.items()
        if kind_of(name) == "records" and each.current is not None
    }
    for name, kept in bucket.retentions(old).items():
        if kept is None or kept <= now:
            bucket.delete(name)


@object_lock.command(cls=OnBucket)
@repository_argument
@json_option
def status(repository: str, as_json: bool) -> int:
    """Show what is locked until when, and what is not."""
    with administration(repository) as bucket:
        settings = bucket.settings()
        found = found_in(bucket)
        there = {name: belonging(each) for name, each in found.items() if each.current is not None}
        records = sorted(
            (name for name in found if kind_of(name) == "records"),
            key=lambda name: belonging(found[name]).modified,
        )
        for name in records[:-1]:  # what they say is outdated
            there.pop(name, None)
        kept: Mapping[str, datetime | None] = dict.fromkeys(there)
        if settings.lock:
            kept = bucket.retentions({name: version.version_id for name, version in there.items()})
    overwritten = [name for name, version in there.items() if not is_current(found[name], version)]
    states = lock_state(found, kept, datetime.now(UTC))
    last = told(belonging(found[records[-1]]).modified) if records else None
    deleted = sum(each.current is None for each in found.values())
    document = {
        "repository": repository,
        "bucket": settings,
        "kinds": states,
        "overwritten": overwritten,
        "deleted": deleted,
        "last_record": last,
    }
    lines = [f"{bucket.location.place()}: {_told_settings(settings)}.", *_state_lines(states)]
    lines += [f"{name} was overwritten; its first version is there." for name in overwritten]
    if deleted:
        lines.append(
            f"{counted(deleted, 'object')} deleted, by vadpipe or by others; versions of them are there."
        )
    lines.append(
        f"The last record was written at {local_time(last)}." if last else "There is no record of versions."
    )
    show(document, lines, as_json)
    fine = settings.lock and not overwritten and not any(state.not_locked for state in states)
    return EXIT_DONE if fine else EXIT_ATTENTION


def _state_lines(states: Sequence[KindState]) -> list[str]:
    rows = [
        (
            state.kind,
            str(state.objects),
            str(state.locked),
            local_time(state.first) or "-",
            local_time(state.last) or "-",
            str(len(state.not_locked)),
        )
        for state in states
    ]
    numbers = ("OBJECTS", "LOCKED", "NOT LOCKED")
    lines = table(("KIND", "OBJECTS", "LOCKED", "FROM", "UNTIL", "NOT LOCKED"), rows, right=numbers)
    for state in states:
        if state.not_locked:
            more = f" and {len(state.not_locked) - NAMED} more" * (len(state.not_locked) > NAMED)
            lines.append(f"Not locked: {', '.join(state.not_locked[:NAMED])}{more}.")
    return lines


def _future(text: str) -> datetime:
    """A time that is not past; a date is its end. Raises ConfigError."""
    until = moment(text)
    if re.fullmatch(r"[\d-]{8,10}", text.strip()):
        until = (until + timedelta(days=1)).astimezone()
    if until <= datetime.now(UTC):
        raise ConfigError(f"{text} is past.", remedy="Give a time to come.")
    return until.astimezone(UTC).replace(microsecond=0)


def _local(when: datetime) -> str:
    return local_time(when.isoformat())
