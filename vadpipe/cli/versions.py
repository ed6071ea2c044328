"""The versions of a repository in a bucket: reading by them, and the command that puts them back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

import click
import trio

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, ConfigError, IntegrityError, SinkError
from vadpipe.repository.backends.administration import S3Administration, at_once
from vadpipe.repository.backends.cached import drop_copies
from vadpipe.repository.backends.location import backend_at, bucket_location
from vadpipe.repository.backends.versions import VersionsBackend
from vadpipe.repository.format.config import Config, read_config
from vadpipe.repository.maintenance.recorded_versions import (
    Histories,
    Record,
    Step,
    belonging,
    histories,
    plan_return,
    read_records,
    summary_of,
    take,
    written_later,
)

from .commands import OnRepository, json_option, repository_argument
from .output import report, show
from .process import run_async
from .repository import local_time

NAMED: Final = 5  # objects that a line names; --json has all
_BATCH: Final = 512  # objects, some seconds of requests

T = TypeVar("T")


@contextmanager
def administration(repository: str) -> Iterator[S3Administration]:
    """The bucket of a repository. Raises ConfigError where it lies in none."""
    if not re.match("s3://", repository, re.IGNORECASE):
        raise ConfigError(
            f"{repository} is not in a bucket, so nothing can be locked there.",
            remedy="Name a repository like s3://bucket/prefix.",
        )
    bucket = S3Administration(bucket_location(repository))
    try:
        yield bucket
    finally:
        bucket.close()


def found_in(bucket: S3Administration) -> Histories:
    """All that lies under the names of the repository. Raises SinkError where there is nothing."""
    found = histories(bucket)
    if not found:
        raise SinkError(
            f"{bucket.location.place()} has no versions of a repository.",
            remedy="Name the bucket and the prefix of a repository.",
        )
    return found


def moment(text: str) -> datetime:
    """A time; a date is its begin, and without a zone it is local. Raises ConfigError."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise ConfigError(
            f"{text!r} is no time.", remedy="Write it like 2026-11-27T20:00 or 2026-11-27T20:00+01:00."
        ) from exc


def believed(bucket: S3Administration, config: Config, found: Histories, **which: Any) -> Iterator[Record]:  # noqa: ANN401
    """The records that can be believed, the newest first; the others are told."""
    for each in read_records(as_written(bucket, found), config, found, **which):
        if isinstance(each, IntegrityError):
            report(str(each))
        else:
            yield each


def as_written(bucket: S3Administration, found: Histories) -> VersionsBackend:
    """The repository as it was written, with all that was deleted since."""
    return VersionsBackend(bucket, {name: belonging(each) for name, each in found.items()})


@click.command("restore", cls=OnRepository)
@repository_argument
@click.option(
    "--before",
    metavar="TIME",
    help="When the intruder began. Put back what was there then: 2026-11-27T20:00, local time without a zone.",
)
@click.option("--record", "record_id", metavar="ID", help="Take this record, not the newest one.")
@click.option(
    "--hide-added", is_flag=True, help="Hide what was first written after --before by delete markers."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done about which object; change nothing.")
@json_option
def restore_versions(
    repository: str,
    before: str | None,
    record_id: str | None,
    hide_added: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Put back the versions that the repository wrote.

    For a bucket in which somebody overwrote or deleted objects. Take the intruder's rights away first. Nothing is
    removed but delete markers. Then run `vadpipe verify`.
    """
    if hide_added and before is None:
        raise ConfigError("--hide-added needs --before.", remedy="Say when the intruder began.")
    time = None if before is None else math.floor(moment(before).timestamp())  # servers tell whole seconds
    work = partial(_return, repository, time, record_id, hide_added=hide_added, dry_run=dry_run)
    done = run_async(trio.to_thread.run_sync, work)
    steps, failed, record = done.steps, done.failed, done.record
    show(
        {
            "repository": repository,
            "dry_run": dry_run,
            "record": record and record.id,
            "written_later": done.later,
            "objects": [
                {
                    "name": step.name,
                    "action": step.action,
                    "happened": step.happened,
                    "version": step.version_id,
                    "failed": error and str(error),
                }
                for step, error in zip(steps, failed, strict=True)
            ],
        },
        [*_return_lines(steps, failed, record, repository, dry_run=dry_run), *_later_lines(done.later)],
        as_json,
    )
    if any(failed):
        return EXIT_FAILED
    return EXIT_ATTENTION if any(step.action in ("lost", "added") for step in steps) else EXIT_DONE


@dataclass(frozen=True)
class _Returned:
    """What was done; `failed`: for each step why it was not. `later`: names that the record cannot have."""

    record: Record | None
    steps: Sequence[Step]
    failed: Sequence[SinkError | None]
    later: Sequence[str]


def _return(
    repository: str, time: float | None, record_id: str | None, *, hide_added: bool, dry_run: bool
) -> _Returned:
    with administration(repository) as bucket:
        found = found_in(bucket)
        config = read_config(as_written(bucket, found))
        record = next(believed(bucket, config, found, before=time, only=record_id), None)
        if record is None and record_id is not None:
            raise ConfigError(
                f"There is no record {record_id} that can be believed.",
                remedy="Leave --record out, or say when the intruder began: --before TIME.",
            )
        steps = plan_return(found, record, before=time, hide_added=hide_added)
        later = written_later(found, record) if record is not None and time is None else []
        if dry_run:
            return _Returned(record, steps, [None] * len(steps), later)
        failed = [error for batch in batches(steps) for error in at_once(partial(_try, bucket), batch)]
    backend = backend_at(repository)
    drop_copies(backend)  # of the index, as the intruder left it
    backend.close()
    return _Returned(record, steps, failed, later)


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Some items at a time. A signal ends the command between them; what was done stays, and it can be repeated."""
    for low in range(0, len(items), _BATCH):
        trio.from_thread.check_cancelled()
        yield items[low : low + _BATCH]


def _try(bucket: S3Administration, step: Step) -> SinkError | None:
    """Others are put back all the same."""
    try:
        take(bucket, step)
    except SinkError as error:
        return error
    return None


def _return_lines(
    steps: Sequence[Step],
    failed: Sequence[SinkError | None],
    record: Record | None,
    repository: str,
    *,
    dry_run: bool,
) -> list[str]:
    lines = [
        f"{step.name}: {step.happened}; NOT put back: {error}" if error else step.line(dry_run=dry_run)
        for step, error in zip(steps, failed, strict=True)
    ]
    of = f"by the record {record.id} of {local_time(record.created)}" if record else "without a record"
    done = [step for step, error in zip(steps, failed, strict=True) if error is None]
    lost = sum(step.action == "lost" for step in steps)
    lines.append(f"{summary_of(done, dry_run=dry_run)}, {of}; {lost} lost, {sum(map(bool, failed))} failed.")
    if lost:
        lines.append(
            f"`vadpipe verify {repository}` says which points that hits, `vadpipe repair` takes it out of use."
        )
    elif not dry_run and steps:
        lines.append(f"Prove it: vadpipe verify {repository}")
    return lines


def _later_lines(later: Sequence[str]) -> list[str]:
    if not later:
        return []
    more = f" and {len(later) - NAMED} more" * (len(later) > NAMED)
    return [
        f"Written after the record, by runs or by the intruder: {', '.join(later[:NAMED])}{more}. "
        "--before TIME --hide-added hides what is his."
    ]
