"""The commands that keep a repository: prune, repair, copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click
import trio

from pipeline.errors import EXIT_DONE, ConfigError
from pipeline.units import format_size
from sinks.copying import CopyReceipt, copy_points
from vadpipe.kernels.codecs import Zstd
from vadpipe.repository.backends.cached import drop_copies
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.maintenance.prune import REWRITE_BELOW, PruneReport, prune
from vadpipe.repository.maintenance.repair import RepairReport, repair
from vadpipe.repository.store import Repository
from vadpipe.words import counted

from .commands import OnRepository, json_option, repository_argument, vm_option
from .output import show
from .process import run_async
from .progress import show_progress


@click.command("prune", cls=OnRepository)
@repository_argument
@click.option(
    "--rewrite-below",
    type=click.FloatRange(0, 1),
    default=REWRITE_BELOW,
    show_default=True,
    help="Write packs anew of which less than this share is needed.",
)
@click.option("--most", metavar="SIZE", help="Copy at most so much out of such packs, e.g. 50GiB.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@json_option
def prune_command(
    repository: str, rewrite_below: float, most: str | None, dry_run: bool, as_json: bool
) -> int:
    """Give back the space of what no restore point needs.

    Works in two phases: what no point needs is named, and deleted by a later prune, when every run that may use it
    has ended. Runs may write at the same time.
    """
    limit = None if most is None else parse_size(most)

    settings = Repository(repository)

    async def work() -> PruneReport:
        with settings.open_for_maintenance() as (objects, config):
            pruned = partial(
                prune,
                objects,
                config,
                settings.origin,
                rewrite_below=rewrite_below,
                most_copied=limit,
                dry_run=dry_run,
            )
            return await trio.to_thread.run_sync(pruned)

    report = run_async(work)
    show(report, report.lines(), as_json)
    return EXIT_DONE


@click.command("repair", cls=OnRepository)
@repository_argument
@click.option("--dry-run", is_flag=True, help="Read everything, and say what would be done; change nothing.")
@json_option
def repair_command(repository: str, dry_run: bool, as_json: bool) -> int:
    """Take damaged packs, index segments and points out of use, and keep what is sound of them.

    Reads everything. A lost index is made again from the packs. What was lost with a frame stays lost: `vadpipe
    verify` names the points, disks and ranges. Runs may write at the same time.
    """
    settings = Repository(repository)

    async def work() -> RepairReport:
        with settings.open_for_maintenance() as (objects, config):
            drop_copies(objects.backend)
            repaired = partial(repair, objects, config, settings.origin, dry_run=dry_run)
            return await trio.to_thread.run_sync(repaired)

    report = run_async(work)
    show(report, report.lines(), as_json)
    return EXIT_DONE


@click.command("copy", cls=OnRepository)
@repository_argument
@click.argument("target")
@vm_option
@click.option("--point", "points", multiple=True, metavar="POINT", help="Only this point; may be repeated.")
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Only points with this tag; may be repeated."
)
@click.option(
    "--level", type=click.IntRange(-7, 22), default=1, show_default=True, help="zstd level of new frames."
)
@json_option
def copy_command(
    repository: str,
    target: str,
    vm: str | None,
    points: Sequence[str],
    tags: Sequence[str],
    level: int,
    as_json: bool,
) -> int:
    """Copy restore points into another repository: those that it does not have.

    The points keep their ids, times and chains. The target has keys of its own; it may be sealed or not.
    """

    def wanted(point: RestorePoint) -> bool:
        return (
            vm in (None, point.machine.name, point.machine.uuid)
            and (not points or any(point.id.startswith(name) for name in points))
            and (not tags or bool(set(tags).intersection(point.tags)))
        )

    async def work() -> CopyReceipt:
        async with show_progress(as_json) as progress:
            watch = progress.of()
            return await copy_points(
                Repository(repository), Repository(target), wanted=wanted, codec=Zstd(level), watch=watch
            )

    receipt = run_async(work)
    line = (
        f"{counted(len(receipt.copied), 'point')} copied, {counted(len(receipt.present), 'point')} there already; "
        f"{format_size(receipt.read)} read, {format_size(receipt.stored)} stored in {target}."
    )
    show(receipt, [line], as_json)
    return EXIT_DONE


def parse_size(text: str) -> int:
    """A size like 50GiB in bytes. Raises ConfigError."""
    from vadpipe.repository.maintenance.verify import Budget

    if text.endswith("%"):
        raise ConfigError(f"{text!r} is no size.", remedy="Write a size like 50GiB.")
    return Budget(text, 0).of(0)
