"""`python -m vadpipe.lab.vss_corpus --seed S --count N`: the classifier against manifests with known verdicts.

Prints how often each level was expected and given; how many decisions, reasons, writers, applications and outcomes
of a job's policy agreed; then every disagreement with what happened to that manifest. Exit code 1 if there is one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from vadpipe.vss.classify import classify_manifest, classify_unfetched
from vadpipe.vss.verdict import Level, Verdict

from .vss.alterations import COMPONENT_ROWS
from .vss.calamities import CALAMITIES
from .vss.corpus import Case, case, corpus
from .vss.draft import Standing
from .vss.truth import COMBINED, applications, effective_type
from .vss.writer_alterations import WRITER_ROWS

SEED = 20240501
COUNT = 1000
STATED = COMBINED | {rule for row in (*COMPONENT_ROWS, *WRITER_ROWS, *CALAMITIES) for rule in row.rules}
"""Rules about which the generator speaks. Findings of others are counted, never judged."""

Reason = tuple[str, str, str, str]  # rule, writer id, instance id, component


@dataclass
class Confusion:
    """What was expected against what was given."""

    levels: Counter[tuple[str, str]] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    policies: Counter[tuple[str, bool]] = field(default_factory=Counter)
    unstated: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def add(self, one: Case) -> None:
        given = verdict_on(one)
        level, decision = one.draft.verdict()
        self.levels[level, given.level.value] += 1
        self.decisions[decision] += 1
        self.policies[one.policy.kind, one.policy.satisfied] += 1
        differences = [
            *self._compare("level", [level], [given.level.value]),
            *self._compare("decision", [decision], [given.findings[0].rule]),
            *self._compare("reasons", _expected_reasons(one), self._given_reasons(given)),
            *self._compare("writers", _expected_writers(one), _given_writers(given)),
            *self._compare("applications", _expected_applications(one), _given_applications(given)),
            *self._compare("policy", [one.policy.expected], [one.policy.outcome(given)]),
        ]
        self.disagreements += [f"{one.name}\n  {difference}" for difference in differences]

    def _compare(self, what: str, expected: Iterable[object], given: Iterable[object]) -> Iterator[str]:
        """Both as often as they are there."""
        wanted, got = Counter(expected), Counter(given)
        self.judged[what] += 1
        if wanted == got:
            self.agreed[what] += 1
        else:
            missing = sorted(map(str, (wanted - got).elements()))
            surplus = sorted(map(str, (got - wanted).elements()))
            yield f"{what}: expected and not given {missing}, given and not expected {surplus}"

    def _given_reasons(self, given: Verdict) -> Iterator[Reason]:
        for finding in given.findings[1:]:
            if finding.rule in STATED:
                self.rules[finding.rule] += 1
                yield finding.rule, *finding.violation.writer, finding.subject.lower()
            else:
                self.unstated[finding.rule] += 1

    def lines(self) -> list[str]:
        names = [level.value for level in Level]
        width = max(map(len, names)) + 2
        lines = ["expected \\ given".ljust(width) + "".join(name.rjust(width) for name in names)]
        for expected in names:
            told = "".join(str(self.levels[expected, given] or ".").rjust(width) for given in names)
            lines.append(expected.ljust(width) + told)
        for what, judged in self.judged.items():
            lines.append(f"{what}: {self.agreed[what]} of {judged} agree")
        required = sorted({kind for kind, _ in self.policies})
        met = (f"{kind} {self.policies[kind, True]}/{self.policies[kind, False]}" for kind in required)
        lines.append(f"required (satisfied/short): {', '.join(met)}")
        lines.append(f"decisions: {_counted(self.decisions)}")
        lines.append(f"reasons given: {_counted(self.rules)}")
        lines.append(f"not judged: {_counted(self.unstated) or 'nothing'}")
        return lines + self.disagreements


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def verdict_on(one: Case) -> Verdict:
    if one.draft.missing == "unfetched":
        return classify_unfetched("HTTP 403")
    around = one.draft.circumstances
    archive = None if one.draft.missing else one.draft.archive()
    return classify_manifest(archive, requested=around.sent, excluded=around.excluded)


def _expected_reasons(one: Case) -> Iterator[Reason]:
    if one.draft.refused:
        return
    for rule in one.draft.told.elements():
        yield rule, "", "", ""
    for standing in one.draft.standings:
        for rule, path in standing.told.elements():
            yield rule, standing.writer_id, standing.instance_id, path


def _expected_writers(one: Case) -> Iterator[object]:
    for standing in () if one.draft.refused else one.draft.standings:
        ids = standing.writer_id, standing.instance_id
        state = standing.counts, standing.excluded, *effective_type(one.draft, standing)
        yield (*ids, _coverage(standing), _told(standing.covered), _told(standing.uncovered), *state)


def _given_writers(given: Verdict) -> Iterator[object]:
    for writer in given.writers:
        state = writer.counts, writer.excluded, writer.effective_backup_type, bool(writer.logs)
        parts = _told(writer.covered), _told(writer.uncovered)
        yield (*writer.ids, writer.coverage.value, *parts, *state)


def _expected_applications(one: Case) -> Iterator[object]:
    for name, application in applications(one.draft).items():
        yield name, application.level, _told(application.covered), _told(application.uncovered)


def _given_applications(given: Verdict) -> Iterator[object]:
    for one in given.applications:
        yield one.name, one.level.value, _told(one.covered), _told(one.uncovered)


def _told(paths: Iterable[str]) -> str:
    return ", ".join(sorted(path.lower() for path in paths))


def _coverage(standing: Standing) -> str:
    if standing.covered:
        return "partly covered" if standing.uncovered else "covered"
    return "not covered" if standing.uncovered else "nothing to cover"


@click.command()
@click.option("--seed", default=SEED, show_default=True)
@click.option("--count", default=COUNT, show_default=True, help="Manifests to generate.")
@click.option("--only", type=int, help="Only this case of the seed.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Write the manifests there.")
def main(seed: int, count: int, only: int | None, keep: Path | None) -> None:
    """The classifier against manifests with known verdicts."""
    confusion = Confusion()
    started_s = time.process_time()
    for one in corpus(seed, count) if only is None else [case(seed, only)]:
        confusion.add(one)
        if keep and not one.draft.missing:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{one.number:05}-{one.draft.verdict()[0]}.zip").write_bytes(one.draft.archive())
    click.echo(f"seed {seed}: {sum(confusion.levels.values())} manifests", nl=False)
    click.echo(f" generated and classified in {time.process_time() - started_s:.1f} CPU-s")
    for line in confusion.lines():
        click.echo(line)
    sys.exit(1 if confusion.disagreements else 0)


if __name__ == "__main__":
    main()
