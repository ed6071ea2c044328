"""The commands of the proxy: check and harden."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE
from vadpipe.jsonable import json_object
from vadpipe.proxy import linux_rules, windows_rules
from vadpipe.proxy.harden import Undone
from vadpipe.proxy.harden import harden as make_changes
from vadpipe.proxy.harden import undo as take_back
from vadpipe.proxy.machine import Machine, this_machine
from vadpipe.proxy.report import Report, Transport, Unfit
from vadpipe.proxy.settings import Change, plan
from vadpipe.proxy.undo import load_undo, new_undo_path
from vadpipe.rules import Finding, Rule
from vadpipe.words import counted

from .commands import json_option
from .findings import finding_lines, rule_document, rule_line
from .output import show

transport_option = click.option(
    "--transport",
    type=click.Choice([each.value for each in Transport]),
    default=Transport.HOTADD.value,
    show_default=True,
    help="How this proxy reaches the disks; decides which rules apply.",
)


@click.group()
def proxy() -> None:
    """Check whether this machine is fit to be a backup proxy, and make it so."""


@proxy.command()
@transport_option
@click.option("--rules", is_flag=True, help="List the rules of all platforms instead.")
@json_option
def check(transport: str, rules: bool, as_json: bool) -> int:
    """Check what this machine would do to guests' disks. Changes nothing; exit code 3 if there are findings."""
    if rules:
        _show_rules(as_json)
        return EXIT_DONE
    report = this_machine().judge(Transport(transport))
    show(report, _lines(report), as_json)
    return EXIT_ATTENTION if report.findings else EXIT_DONE


@proxy.command()
@transport_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--undo-file", type=click.Path(path_type=Path), help="The undo file to write; it must not exist."
)
@click.option("--undo", "undo_from", type=click.Path(path_type=Path), help="Take back what this file names.")
@json_option
def harden(transport: str, yes: bool, undo_file: Path | None, undo_from: Path | None, as_json: bool) -> int:
    """Make this machine fit: show every change, ask, write an undo file, change, and check again."""
    if as_json and not yes:
        raise click.UsageError("--json needs --yes, because it cannot ask.")
    if undo_from and undo_file:
        raise click.UsageError("--undo writes no --undo-file.")
    machine = this_machine()
    if undo_from:
        return _undo(machine, undo_from, yes, as_json)
    return _harden(machine, Transport(transport), undo_file, yes, as_json)


def _harden(machine: Machine, transport: Transport, undo_file: Path | None, yes: bool, as_json: bool) -> int:
    report = machine.judge(transport)
    changes = plan(report.fixes, machine.read)
    lines = list(finding_lines(finding for finding in report.findings if not finding.violation.fixes))
    if not changes:
        return _result(report, changes, [], None, ["There is nothing to change.", *lines], as_json)
    path = undo_file or new_undo_path(machine.state_directory)
    shown = [f"These changes will be made; {path} is updated before each, to undo them:", *_indented(changes)]
    if not _agreed([*shown, *(["Not done here:", *lines] if lines else [])], yes, as_json):
        return EXIT_ATTENTION
    remarks = list(make_changes(machine, changes, path))
    after = machine.judge(transport)
    done = f"Done. To take it back: vadpipe proxy harden --undo {path}"
    return _result(after, changes, remarks, path, [*remarks, done, *_lines(after)], as_json)


def _result(
    report: Report,
    changes: tuple[Change, ...],
    remarks: list[str],
    undo_file: Path | None,
    lines: list[str],
    as_json: bool,
) -> int:
    document = {
        **json_object(report),
        "changes": [_change(one) for one in changes],
        "remarks": remarks,
        "undo_file": undo_file,
    }
    show(document, lines, as_json)
    return EXIT_ATTENTION if report.findings or remarks else EXIT_DONE


def _undo(machine: Machine, path: Path, yes: bool, as_json: bool) -> int:
    changes = load_undo(path, machine.platform, machine.settings)
    back = tuple(change.back() for change in reversed(changes))
    if not _agreed(["This will be taken back:", *_indented(back)], yes, as_json):
        return EXIT_ATTENTION
    results = take_back(machine, changes)
    remarks = [remark for _, _, more in results for remark in more]
    undone = [{**_change(change), "result": result} for change, result, _ in results]
    lines = [f"{change.setting.id}: {result.value}" for change, result, _ in results]
    show({"undone": undone, "remarks": remarks}, lines + remarks, as_json)
    kept = any(result is Undone.KEPT for _, result, _ in results)
    return EXIT_ATTENTION if kept or remarks else EXIT_DONE


def _lines(report: Report) -> list[str]:
    broken = len({finding.rule for finding in report.findings})
    rules = broken + len(report.held)
    state = f"{len(report.held)} of {counted(rules, 'rule')} hold." if rules else "no rule applies."
    return [
        f"{report.platform} proxy, transport {report.transport.value}: {state}",
        *finding_lines(map(_with_fix, report.findings)),
        *(f"  ok      {rule}" for rule in report.held),
        *report.notes,
    ]


def _with_fix(finding: Finding[Unfit]) -> Finding[Unfit]:
    """The remedy of what harden changes is harden."""
    return replace(finding, remedy="Run vadpipe proxy harden.") if finding.violation.fixes else finding


def _agreed(lines: list[str], yes: bool, as_json: bool) -> bool:
    """Show what is going to be done, and ask. Raises UsageError when standard input is no terminal."""
    if not as_json:
        show({}, lines, False)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("Nothing was changed: give --yes, because standard input is no terminal.")
    return click.confirm("Do it?")


def _indented(changes: tuple[Change, ...]) -> list[str]:
    return [f"  {line}" for change in changes for line in change.lines()]


def _change(change: Change) -> dict[str, object]:
    return {
        "setting": change.setting.id,
        "place": str(change.setting.place),
        "former": change.former,
        "wanted": change.wanted,
        "diskpart": change.setting.script(change.wanted),
        "afterwards": change.setting.afterwards,
    }


def _show_rules(as_json: bool) -> None:
    rows: list[tuple[str, Rule[Any, Unfit]]] = [("windows", rule) for rule in windows_rules.RULES]
    rows += [("linux", rule) for rule in linux_rules.RULES]
    document = {
        "rules": [
            {"platform": platform, **rule_document(rule), "rule": rule.id, "transports": _transports(rule)}
            for platform, rule in rows
        ]
    }
    lines = [f"{platform:8}{','.join(_transports(rule)):16}{rule_line(rule)}" for platform, rule in rows]
    show(document, lines, as_json)


def _transports(rule: Rule[Any, Unfit]) -> list[str]:
    return [each.value for each in Transport if each.value in rule.tags]
