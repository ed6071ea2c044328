"""What a job requires of the quiescing, and where a verdict falls short of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

from .rules import COMPONENT_MODE_UNSTATED, WRITER_NOT_INCLUDED
from .verdict import ApplicationVerdict, Level, Verdict

LevelName = Literal["application", "application-partial", "file-system", "none"]
MissingWriter = Literal["fail", "continue"]

_DATABASE_FILES = (".mdf", ".edb")  # primary files

# 'none' requires nothing, not even that anything is known.
_LEVELS: dict[str, Level | None] = {
    "application": Level.APPLICATION,
    "application-partial": Level.APPLICATION_PARTIAL,
    "file-system": Level.FILE_SYSTEM,
    "none": None,
}
# With 'auto' VMware Tools choose, and file systems are the least they may choose.
_REQUESTED = {**_LEVELS, "auto": Level.FILE_SYSTEM}


@dataclass(frozen=True)
class RequireApplication:
    """An application that has to be proven consistent: as a whole, or only the databases that are named.

    Args:
        name: As verdicts call it, e.g. 'SQL Server', 'Exchange', 'DHCP server'; a writer that is not well known
            goes by its own name. Letter case does not count.
        databases: A component's name, the end of its path ('INSTANCE\\sales'), or its caption: of Exchange the name
            of the database, of Hyper-V that of the virtual machine. Every component of that name has to be covered.

    Raises:
        ConfigError: A name is empty.
    """

    name: str
    databases: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.databases, str):  # a text is a sequence too, of letters
            raise ConfigError(
                f"databases is the text {self.databases!r}.", remedy=f"Write databases=({self.databases!r},)."
            )
        if not self.name.strip() or not all(one.strip() for one in self.databases):
            raise ConfigError(
                f"{self!r} has an empty name.", remedy="Name an application, and databases or none at all."
            )

    def shortfalls(self, verdict: Verdict) -> Iterator[str]:
        """A sentence for each thing that is not proven."""
        found = verdict.application(self.name)
        if found is None:
            yield self._absent(verdict)
        elif self.databases:
            yield from self._databases_short(found, verdict)
        elif not found.level >= Level.APPLICATION:
            missing = ", ".join(found.uncovered) or verdict.doubts[0].found
            yield f"{self.name} reached {found.level}, but application is required; not proven: {missing}."

    def _absent(self, verdict: Verdict) -> str:
        wanted = f"{self.name} with {', '.join(self.databases)}" if self.databases else self.name
        name = self.name.strip().lower()
        for writer in verdict.writers:
            if writer.excluded and name in (writer.application.lower(), writer.name.lower()):
                return f"{wanted} is required, but the job excludes its writer {writer.name}."
        return f"{wanted} is required, but no writer of it is known to have taken part."

    def _databases_short(self, found: ApplicationVerdict, verdict: Verdict) -> Iterator[str]:
        for doubt in verdict.doubts:
            if doubt.rule == COMPONENT_MODE_UNSTATED:  # then components prove nothing
                yield f"{self.name} is not proven: {doubt.found}."
        for database in self.databases:
            required = f"{self.name}: required database {database}"
            uncovered = [path for path in found.uncovered if _is_part_of(path, found.captions, database)]
            excluded = [path for path in found.uncovered if _is_file_of(path, database)]
            if uncovered:
                yield f"{required} is not proven ({', '.join(uncovered)})."
            elif any(_is_called(path, found.captions, database) for path in found.covered):
                continue
            elif excluded:
                yield f"{required} is excluded by its own writer: the snapshot leaves out {', '.join(excluded)}."
            else:
                yield (
                    f"{required} is not in the manifest; databases that are offline or closed, or of a stopped "
                    "instance, are not offered."
                )


@dataclass(frozen=True)
class Require:
    """What has to be reached.

    Args:
        level: Of the whole manifest; None for the quiescing that the job requests, or for nothing but
            `applications` where some are named.
        applications: Each has to be proven consistent.

    Raises:
        ConfigError: The level does not exist.
    """

    level: LevelName | None = None
    applications: Sequence[RequireApplication] = ()

    def __post_init__(self) -> None:
        if self.level is not None and self.level not in _LEVELS:
            raise ConfigError(
                f"{self.level!r} is no level of consistency that can be required.",
                remedy=f"Choose one of {', '.join(_LEVELS)}.",
            )

    def shortfalls(self, verdict: Verdict, asked: str, missing_writer: MissingWriter) -> tuple[str, ...]:
        """Where the verdict falls short, a sentence each; empty when it suffices.

        Args:
            verdict: What was reached.
            asked: The quiescing that the job requested.
            missing_writer: 'continue' accepts the level when its only fault is that writers with components took no
                part.
        """
        short: list[str] = []
        needed = _LEVELS[self.level] if self.level else None if self.applications else _REQUESTED.get(asked)
        if needed is not None and not verdict.level >= needed:
            only_missing = verdict.level is Level.APPLICATION_PARTIAL and all(
                doubt.rule == WRITER_NOT_INCLUDED for doubt in verdict.doubts
            )
            if missing_writer == "fail" or not only_missing:
                wanted = "is required" if self.level else "was requested"
                short.append(f"Quiescing reached {verdict.level}, but {needed} {wanted}.")
        for application in self.applications:
            short.extend(application.shortfalls(verdict))
        return tuple(short)


def _is_called(path: str, captions: Mapping[str, str], name: str) -> bool:
    """Whether the path, or the caption of the component, ends with the name."""
    end = f"\\{name.strip()}".lower()
    return any(f"\\{one}".lower().endswith(end) for one in (path, captions.get(path, "")))


def _is_part_of(path: str, captions: Mapping[str, str], name: str) -> bool:
    """Whether a component has the name, or comes along with one that has it."""
    if f"\\{name.strip()}\\".lower() in f"\\{path}\\".lower():
        return True
    while path:
        if _is_called("", {"": captions.get(path, "")}, name):
            return True
        path = path.rpartition("\\")[0]
    return False


def _is_file_of(path: str, name: str) -> bool:
    """Whether the path is a database file that is named like the database."""
    stem, dot, suffix = path.rpartition("\\")[2].rpartition(".")
    return (
        f"{dot}{suffix.lower()}" in _DATABASE_FILES
        and stem.lower() == name.strip().lower().rpartition("\\")[2]
    )
