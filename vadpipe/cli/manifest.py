"""`vadpipe manifest`: what a manifest proves, offline; and a stored manifest written to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.errors import EXIT_ATTENTION, EXIT_DONE, EXIT_FAILED, SinkError, SourceError
from sinks.restoring import sheet_image, sheet_of
from vadpipe.files import write_durably
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.reader import RepositoryReader
from vadpipe.vss.archive import (
    MAX_ARCHIVE_SIZE,
    MAX_MEMBER_SIZE,
    MAX_MEMBERS,
    MAX_TOTAL_SIZE,
    ManifestUnreadable,
    Member,
    looks_like_zip,
)
from vadpipe.vss.classify import DECISIONS, classify_documents
from vadpipe.vss.documents import Document, Unreadable
from vadpipe.vss.parse import read_documents, read_manifest
from vadpipe.vss.rules import ALL_RULES
from vadpipe.vss.sheet import README
from vadpipe.vss.verdict import Level, Verdict

from .commands import json_option
from .findings import rule_document, rule_line, verdict_lines, verdict_table
from .output import report, show

LEVELS = [level.value for level in Level if level is not Level.UNKNOWN]


@dataclass(frozen=True)
class Classified:
    """One manifest: its verdict, or why it cannot be read."""

    path: Path
    verdict: Verdict | None
    unreadable: str = ""

    def exit_code(self, required: Level) -> int:
        if self.verdict is None:
            return EXIT_FAILED
        return EXIT_DONE if self.verdict.level >= required else EXIT_ATTENTION

    def document(self, required: Level) -> dict[str, object]:
        if self.verdict is None:
            return {"path": self.path, "level": Level.UNKNOWN, "unreadable": self.unreadable}
        return {"path": self.path, "satisfied": self.verdict.level >= required, **self.verdict.as_dict()}


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--require",
    "level",
    type=click.Choice(LEVELS),
    default=Level.APPLICATION.value,
    show_default=True,
    help="Exit with 3 when less than this is shown.",
)
@click.option("--rules", is_flag=True, help="List the rules and decisions instead.")
@json_option
def manifest(path: Path | None, level: str, rules: bool, as_json: bool) -> int:
    """Classify a VSS manifest: a zip, one XML document, a directory of loose documents, or a directory of zips.

    Exit codes: 0 the level of --require is shown; 3 it is not; 1 a manifest cannot be read; 2 usage.
    """
    if rules:
        show(_rules(), _rule_lines(), as_json)
        return EXIT_DONE
    if path is None:
        raise click.UsageError("Missing argument 'PATH'.")
    required = Level(level)
    found = list(_classified(path))
    if sys.stdout.isatty() and not as_json:
        from rich.console import Console

        for one in found:
            if one.verdict:
                Console().print(verdict_table(str(one.path), one.verdict))
    else:
        lines = [line for one in found if one.verdict for line in verdict_lines(str(one.path), one.verdict)]
        show({"required": level, "manifests": [one.document(required) for one in found]}, lines, as_json)
    for one in found:
        if one.unreadable:
            report(f"{one.path}: {one.unreadable}")
    codes = {one.exit_code(required) for one in found}
    return next(code for code in (EXIT_FAILED, EXIT_ATTENTION, EXIT_DONE) if code in codes)


def _classified(path: Path) -> Iterator[Classified]:
    """A zip by itself; other files of a directory together, as documents of one manifest. Raises SourceError."""
    try:
        if not path.is_dir():
            yield _classify(path, [path])
            return
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        zips = [file for file in files if _is_zip(file)]
        loose = [file for file in files if file not in zips]
        for file in zips:
            yield _classify(file, [file])
        if loose:
            yield _classify(path, loose)
    except OSError as exc:
        raise SourceError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    if not files:
        raise SourceError(f"{path} holds no manifest.", remedy="Name a zip, or a directory with documents.")


def _classify(path: Path, files: list[Path]) -> Classified:
    try:
        documents = _documents(files)
        if all(isinstance(one, Unreadable) for one in documents):
            raise ManifestUnreadable(_why_none(documents))
    except ManifestUnreadable as exc:
        return Classified(path, None, str(exc))
    return Classified(path, classify_documents(documents))


def _documents(files: list[Path]) -> tuple[Document, ...]:
    if len(files) == 1 and _is_zip(files[0]):
        _check_sizes(files, MAX_ARCHIVE_SIZE)
        return read_manifest(files[0].read_bytes())
    _check_sizes(files, MAX_MEMBER_SIZE)
    return read_documents(Member(file.name, file.read_bytes()) for file in files)


def _check_sizes(files: list[Path], most: int) -> None:
    """The bounds of an archive and its members, before a byte is read."""
    sizes = [file.stat().st_size for file in files]
    if max(sizes) > most or sum(sizes) > MAX_TOTAL_SIZE or len(files) > MAX_MEMBERS:
        raise ManifestUnreadable(f"{len(files)} files with {sum(sizes):,} bytes are no manifest")


def _why_none(documents: tuple[Document, ...]) -> str:
    causes = [f"{one.document}: {one.why} ({one.where})" for one in documents if isinstance(one, Unreadable)]
    return f"it has no readable document ({'; '.join(causes[:3])})" if causes else "it is empty"


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return looks_like_zip(opened.read(4))


def _rules() -> dict[str, object]:
    return {
        "rules": [{**rule_document(rule), "reads": rule.reads} for rule in ALL_RULES],
        "decisions": [
            {"id": one.id, "level": one.level, "reads": one.reads, "source": one.source} for one in DECISIONS
        ],
    }


def _rule_lines() -> list[str]:
    lines = ["Rules: each violation is a finding."]
    for rule in ALL_RULES:
        lines += [f"{rule_line(rule)} (reads {rule.reads})", f"    source: {rule.source}"]
    lines += ["", "Decisions: the first that applies names the level."]
    for one in DECISIONS:
        lines += [f"{one.id} (reads {one.reads}): {one.level}", f"    source: {one.source}"]
    return lines


def write_new(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a new file, whole or not at all. Raises SinkError, also when the file exists."""
    try:
        write_durably(path, content, replace=replace)
    except FileExistsError as exc:
        remedy = "Name another file, or add --force; nothing is overwritten."
        raise SinkError(f"{path} exists.", remedy=remedy) from exc
    except OSError as exc:
        raise SinkError(f"{path} cannot be written: {exc.strerror or exc}.") from exc


def write_sheet(reader: RepositoryReader, point: RestorePoint, place: Path, *, force: bool) -> None:
    """Write the sheet into a new or empty directory, or as an image where the name ends in `.iso`.

    Raises:
        SinkError: Something is there already and `force` is false, or it cannot be written.
    """
    files = sheet_of(reader, point)
    if place.suffix.lower() == ".iso":
        write_new(place, sheet_image(files, point), replace=force)
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not force and any(place.iterdir()):
            remedy = "Name another directory, or add --force; nothing is overwritten."
            raise SinkError(f"{place} is not empty.", remedy=remedy)
        for directory in {(place / name).parent for name in files}:
            directory.mkdir(exist_ok=True)
    except OSError as exc:
        raise SinkError(f"{place} cannot be written: {exc.strerror or exc}.") from exc
    for name in sorted(files, key=lambda name: name == README):  # that comes last: with it the sheet is whole
        write_new(place / name, files[name], replace=force)
