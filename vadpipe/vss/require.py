"""What a job needs of the quiescing, and where a verdict falls short of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

from .rules import COMPONENT_MODE_UNSTATED, WRITER_NOT_INCLUDED
from .verdict import ApplicationVerdict, Level, Verdict

LevelName = Literal["application", "application-partial", "file-system", "none"]
MissingWriter = Literal["fail", "continue"]

# 'none' asks for nothing: not even that anything is known.
_LEVELS: dict[str, Level | None] = {
    "application": Level.APPLICATION,
    "application-partial": Level.APPLICATION_PARTIAL,
    "file-system": Level.FILE_SYSTEM,
    "none": None,
}
# With 'auto' VMware Tools choose, and file systems are the least they may choose.
_ASKED = {**_LEVELS, "auto": Level.FILE_SYSTEM}


@dataclass(frozen=True)
class RequireApplication:
    """An application that has to be proven consistent: as a whole, or only the databases that are named.

    `name`: as verdicts call it, e.g. 'SQL Server', 'Exchange', 'DHCP server'; a writer that is not well known goes
    by its own name. `databases`: a component's name or the end of its path, e.g. 'sales' or 'INSTANCE\\sales';
    every one that is called so has to be covered. Letter case does not count. Raises ConfigError.
    """

    name: str
    databases: Sequence[str] = ()

    def __post_init__(self) -> None:
        _refuse_text(self.databases, "databases")
        if not self.name.strip() or not all(one.strip() for one in self.databases):
            raise ConfigError(
                f"{self!r} names nothing.", remedy="Give an application, and databases or none at all."
            )

    def shortfalls(self, verdict: Verdict) -> Iterator[str]:
        """A sentence for each thing that is not proven."""
        found = verdict.application(self.name)
        if found is None:
            wanted = f" with {', '.join(self.databases)}" if self.databases else ""
            yield f"{self.name}{wanted} is required, but no writer of it is known to have taken part."
        elif self.databases:
            yield from self._databases_short(found, verdict)
        elif not found.level >= Level.APPLICATION:
            wanting = ", ".join(found.uncovered) or verdict.doubts[0].text
            yield f"{self.name} reached {found.level}, required is application: not proven: {wanting}."

    def _databases_short(self, found: ApplicationVerdict, verdict: Verdict) -> Iterator[str]:
        for doubt in verdict.doubts:
            if doubt.rule == COMPONENT_MODE_UNSTATED:  # then components prove nothing
                yield f"{self.name} is not proven: {doubt.text}."
        for database in self.databases:
            short = [path for path in found.uncovered if _is_part_of(path, database)]
            if short:
                yield f"{self.name}: required database {database} is not proven ({', '.join(short)})."
            elif not any(_is_called(path, database) for path in found.covered):
                yield (
                    f"{self.name}: required database {database} is not in the manifest; databases that are offline "
                    "or closed, or of a stopped instance, are not offered."
                )


@dataclass(frozen=True)
class Require:
    """What has to be reached.

    `level`: of the whole manifest; None for the quiescing that the job asks for, or for nothing but `applications`
    where some are named. `applications`: each has to be proven consistent. Raises ConfigError.
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

        `asked`: the quiescing that the job asked for. `missing_writer`: 'continue' lets the level pass when nothing
        is wrong but that writers with components took no part.
        """
        short: list[str] = []
        needed = _LEVELS[self.level] if self.level else None if self.applications else _ASKED.get(asked)
        if needed is not None and not verdict.level >= needed:
            only_missing = verdict.level is Level.APPLICATION_PARTIAL and all(
                doubt.rule == WRITER_NOT_INCLUDED for doubt in verdict.doubts
            )
            if missing_writer == "fail" or not only_missing:
                wanted = "required is" if self.level else "asked for was"
                short.append(f"Quiescing reached {verdict.level}, {wanted} {needed}.")
        for application in self.applications:
            short.extend(application.shortfalls(verdict))
        return tuple(short)


def _is_called(path: str, name: str) -> bool:
    return f"\\{path}".lower().endswith(f"\\{name.strip()}".lower())


def _is_part_of(path: str, name: str) -> bool:
    """Whether a component is the one that is called so, or comes along with it."""
    return f"\\{name.strip()}\\".lower() in f"\\{path}\\".lower()


def _refuse_text(names: Sequence[str], what: str) -> None:
    """A text is a sequence of letters, which nobody means."""
    if isinstance(names, str):
        raise ConfigError(f"{what} is the text {names!r}.", remedy=f"Write {what}=({names!r},).")
