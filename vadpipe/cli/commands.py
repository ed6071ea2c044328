"""The group `vadpipe`, its commands by name, and the arguments and options that commands share.

A command is loaded when it is called. The help of the group loads none: the summaries of our own commands stand
in a table here, which a test compares with the commands themselves. Other packages add commands through the entry
point group `vadpipe.commands`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from vadpipe.repository.format.restore_point import RestorePoint

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

GROUP = "vadpipe.commands"
REPOSITORY = "VADPIPE_REPOSITORY"


class BuiltIn(NamedTuple):
    """Where a command of ours is, its summary, and the extra of the distribution that it needs, if any."""

    place: str
    summary: str
    extra: str = ""


BUILT_IN = {
    "bench": BuiltIn("vadpipe.bench.commands:bench", "Measure throughput."),
    "boot": BuiltIn(
        "vadpipe.cli.boot:boot",
        "Print the command that boots a restore point under QEMU, or run it; the point stays as it is.",
    ),
    "cleanup": BuiltIn(
        "vadpipe.cli.cleanup:cleanup", "Undo what killed runs left on the servers of a configuration."
    ),
    "copy": BuiltIn(
        "vadpipe.cli.maintenance:copy_command",
        "Copy restore points into another repository: those that it does not have.",
    ),
    "diff": BuiltIn(
        "vadpipe.cli.retention:diff",
        "Show what changed on the disks from restore point A to restore point B.",
    ),
    "files": BuiltIn(
        "vadpipe.cli.files:files",
        "List and fetch single files and trees out of the disks of a restore point.",
    ),
    "fleet": BuiltIn(
        "vadpipe.cli.fleet:fleet", "Plan many backups on several machines: what a site allows, simulated."
    ),
    "forget": BuiltIn(
        "vadpipe.cli.retention:forget", "Remove restore points by rules, per VM, or by their ids."
    ),
    "guest-config": BuiltIn(
        "vadpipe.cli.guest_config:guest_config",
        "Show, apply or undo the settings for quiescing inside the guests of a configuration.",
    ),
    "head": BuiltIn(
        "vadpipe.cli.retention:head",
        "Print the newest point of each VM with its seal, for keeping elsewhere.",
    ),
    "hold": BuiltIn(
        "vadpipe.cli.retention:hold", "Keep a restore point from being removed, until it is released."
    ),
    "init": BuiltIn(
        "vadpipe.cli.repository:init",
        "Make a repository in an empty or new directory, or below a prefix of a bucket.",
    ),
    "key": BuiltIn("vadpipe.cli.keys:key", "List, add, change and remove the keys of a sealed repository."),
    "lab": BuiltIn(
        "vadpipe.lab.commands:lab", "A vCenter, a VDDK and a VM to try things on, without any of them.", "lab"
    ),
    "manifest": BuiltIn(
        "vadpipe.cli.manifest:manifest",
        "Classify a VSS manifest: a zip, one XML document, a directory of loose documents, or a directory of zips.",
    ),
    "migrate": BuiltIn(
        "vadpipe.cli.migrate:migrate",
        "Bring the replica of a running VM up to date, and cut over to it.",
    ),
    "object-lock": BuiltIn(
        "vadpipe.cli.object_lock:object_lock",
        "Lock what restore points need in a bucket, and put it back after somebody overwrote or deleted it.",
    ),
    "plan": BuiltIn(
        "vadpipe.cli.run:plan",
        "Show the stages, the memory and what the jobs would touch, without touching anything.",
    ),
    "points": BuiltIn(
        "vadpipe.cli.repository:points", "List restore points, oldest first, in local time; --json has UTC."
    ),
    "preflight": BuiltIn(
        "vadpipe.cli.preflight:preflight",
        "Check every condition of the jobs of a configuration, without changing anything.",
    ),
    "prepare": BuiltIn(
        "vadpipe.cli.preflight:prepare",
        "Prepare the VMs of a configuration for application quiescing and for incremental backups.",
    ),
    "proxy": BuiltIn(
        "vadpipe.cli.proxy:proxy", "Check whether this machine is fit to be a backup proxy, and make it so."
    ),
    "prune": BuiltIn(
        "vadpipe.cli.maintenance:prune_command", "Give back the space of what no restore point needs."
    ),
    "release": BuiltIn("vadpipe.cli.retention:release", "End the hold of a restore point."),
    "repair": BuiltIn(
        "vadpipe.cli.maintenance:repair_command",
        "Take damaged packs, index segments and points out of use, and keep what is sound of them.",
    ),
    "restore": BuiltIn(
        "vadpipe.cli.restore:restore",
        "Restore a restore point into files or into a new VM, or prove that it can be restored.",
    ),
    "run": BuiltIn("vadpipe.cli.run:run", "Run the jobs of a configuration: one backup or restore each."),
    "serve": BuiltIn(
        "vadpipe.cli.serve:serve", "Serve the disks of a restore point as block devices, over NBD."
    ),
    "show": BuiltIn(
        "vadpipe.cli.repository:show_point",
        "Show a restore point: its disks, its consistency and the reasons, and what preflight found.",
    ),
    "stats": BuiltIn(
        "vadpipe.cli.retention:stats",
        "Show what the points of a repository take, per VM, and what only one of them holds.",
    ),
    "verify": BuiltIn(
        "vadpipe.cli.repository:verify",
        "Read everything in a repository back, and prove that it can be restored.",
    ),
}


class Commands(click.Group):
    """Commands that are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*BUILT_IN, *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            place, extra = BUILT_IN[cmd_name].place, BUILT_IN[cmd_name].extra
        elif cmd_name in _added():
            place, extra = _added()[cmd_name], ""
        else:
            return None
        _check_for_other_packages()
        try:
            module, _, name = place.partition(":")
            command = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as exc:
            remedy = f"pip install 'vadpipe[{extra}]'" if extra else str(exc)
            raise click.UsageError(f"{cmd_name}: not available: {remedy}") from exc
        assert isinstance(command, click.Command)
        return _with_output_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self._summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _summary(self, ctx: click.Context, name: str) -> str:
        if name in BUILT_IN:
            return BUILT_IN[name].summary
        try:
            command = self.get_command(ctx, name)
        except click.UsageError as exc:
            return exc.message.removeprefix(f"{name}: ")
        return command.get_short_help_str(limit=200) if command else ""


def _check_for_other_packages() -> None:
    """Find a foreign package `pipeline`, `stages` or `sinks` that Python would import instead of ours."""
    ours = Path(__file__).parents[2]
    for name in ("pipeline", "stages", "sinks"):
        spec = importlib.util.find_spec(name)
        places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
        if places and places[0].resolve() != (ours / name).resolve():
            raise click.UsageError(
                f"Another package called {name} hides vadpipe's own: {places[0]}. Start vadpipe elsewhere, "
                "or take that directory out of PYTHONPATH."
            )


def _added() -> dict[str, str]:
    """The commands of other packages: name and place."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def _setting(ctx: click.Context, param: click.Parameter, value: int | bool | Path | None) -> None:
    """Keep an output option, wherever it stands on the command line, and set up the output with all so far."""
    if not value or ctx.resilient_parsing:
        return
    from .output import configure

    settings = ctx.find_root().ensure_object(dict)
    settings[param.name] = value
    configure(**settings)


def _output_options() -> list[click.Option]:
    """The options that every command takes, before or after its name."""
    shared: dict[str, Any] = {"callback": _setting, "expose_value": False}
    return [
        click.Option(
            ["-v", "--verbose"],
            count=True,
            help="Show the stages of a run, and log to standard error; -vv logs every call.",
            **shared,
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress, only results and errors.", **shared),
        click.Option(["--no-progress"], is_flag=True, help="No progress bars or lines.", **shared),
        click.Option(
            ["--log-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Append the log to FILE.",
            **shared,
        ),
    ]


def _with_output_options(command: click.Command) -> click.Command:
    """The command, which takes the output options too; so do the commands of a group."""
    known = {name for param in command.params for name in param.opts}
    command.params += [option for option in _output_options() if not known & set(option.opts)]
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _with_output_options(each)
    return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[*_output_options()],
)
@click.version_option(package_name="vadpipe")
@click.pass_context
def vadpipe(ctx: click.Context) -> None:
    """Streaming data mover for VMware virtual machines.

    \b
    Exit codes:
      0    done as asked
      1    failed; nothing was published
      2    the command line or the configuration is wrong; nothing was touched
      3    published, but something needs attention
      130  ended by SIGINT, SIGTERM or SIGHUP, after clean-up

    \b
    Environment:
      VADPIPE_REPOSITORY  the repository of commands that are given none

    \b
    Completion of commands, jobs, points and VMs, for bash (zsh and fish alike):
      eval "$(_VADPIPE_COMPLETE=bash_source vadpipe)"
    """
    from .output import configure

    configure(**ctx.ensure_object(dict))  # options behind the command's name come later


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def _quietly(candidates: Callable[[click.Context], Iterable[str]]) -> Completion:
    """Completion by these candidates; nothing is offered where they cannot be found."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(name) for name in candidates(ctx) if name.startswith(incomplete)]
        except Exception:
            return []

    return complete


def _jobs(ctx: click.Context) -> Iterable[str]:
    """The jobs of the configuration on the command line; those of a source are not looked up."""
    from .config import read_config

    return [entry.title for entry in read_config(Path(_first_argument(ctx, "config")))]


def _first_argument(ctx: click.Context, name: str) -> str:
    """It is among the arguments that are left over where the line ends in an option without its value."""
    return str(ctx.params.get(name) or next(iter(ctx.args), "") or os.environ[REPOSITORY])


def _repository_points(ctx: click.Context) -> Sequence[RestorePoint]:
    from vadpipe.repository.backends.location import backend_at
    from vadpipe.repository.reader import RepositoryReader

    return RepositoryReader.of(backend_at(_first_argument(ctx, "repository"))).points


def _points(ctx: click.Context) -> Iterable[str]:
    vm = ctx.params.get("vm")
    found = [
        point for point in _repository_points(ctx) if vm in (None, point.machine.name, point.machine.uuid)
    ]
    return ["latest", *(point.id for point in reversed(found))]


def _vms(ctx: click.Context) -> Iterable[str]:
    return sorted({point.machine.name for point in _repository_points(ctx)})


def _repositories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Paths; and points, where the environment names the repository and a point may stand first."""
    may_be_left_out = REPOSITORY in os.environ and any(each.name == "point" for each in ctx.command.params)
    found = _quietly(_points)(ctx, param, incomplete) if may_be_left_out else []
    return [*found, CompletionItem(incomplete, type="file")]


def key_options() -> list[click.Option]:
    """What opens a sealed repository. A passphrase is never an argument."""
    kind = click.Path(path_type=Path)
    return [
        click.Option(
            ["--key-file"],
            type=kind,
            metavar="FILE",
            envvar="VADPIPE_KEY_FILE",
            help="Open a sealed repository with this key file.",
        ),
        click.Option(
            ["--passphrase-file"],
            type=kind,
            metavar="FILE",
            envvar="VADPIPE_PASSPHRASE_FILE",
            help="Open it with the passphrase in the first line.",
        ),
        click.Option(
            ["--passphrase-env"],
            metavar="NAME",
            help="Open it with the passphrase in this environment variable.",
        ),
        click.Option(
            ["--age-identity"],
            type=kind,
            metavar="FILE",
            envvar="VADPIPE_AGE_IDENTITY",
            help="Open it with this age identity or ssh private key.",
        ),
    ]


class OnRepository(click.Command):
    """A command whose first argument is a repository; without it, it is that of the environment.

    It takes the options that open a sealed repository, unless it has such options of its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of click
        super().__init__(*args, **kwargs)
        names = {param.name for param in self.params}
        self._keys = [option for option in key_options() if option.name not in names]
        self.params += self._keys

    def invoke(self, ctx: click.Context) -> object:
        if not self._keys:
            return super().invoke(ctx)
        given = {option.name: ctx.params.pop(str(option.name)) for option in self._keys}
        from .keys import opening

        with opening(ctx.params["repository"], **given):
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = os.environ.get(REPOSITORY)
        try:
            return super().parse_args(ctx, list(args))
        except click.MissingParameter:
            if not place:
                raise
        ctx.params.clear()
        return super().parse_args(ctx, [place, *args])


config_argument = click.argument("config", type=click.Path(path_type=Path))
job_option = click.option(
    "--job",
    "only",
    metavar="NAME",
    help="Only this job of the configuration.",
    shell_complete=_quietly(_jobs),
)
# A path, or s3://bucket/prefix.
repository_argument = click.argument("repository", shell_complete=_repositories)
point_argument = click.argument("point", shell_complete=_quietly(_points))
disk_option = click.option(
    "--disk", "keys", multiple=True, metavar="KEY", help="Only this disk; may be repeated."
)
vm_option = click.option(
    "--vm", metavar="NAME", help="Only points of this VM (name or UUID).", shell_complete=_quietly(_vms)
)
