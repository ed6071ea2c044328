"""`python -m lab.vss_corpus --seed S --count N`: the classifier against manifests with known verdicts.

Prints how often each level was expected and given, and how many decisions, reasons and writers agreed; then every
disagreement with what happened to that manifest. Exit code 1 if there is one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from lab.vss.alterations import COMPONENT_ROWS, WRITER_ROWS
from lab.vss.calamities import CALAMITIES
from lab.vss.corpus import Case, case, corpus
from lab.vss.draft import Standing
from stages.vss import Level, Verdict, classify_manifest, classify_unfetched

SEED = 20240501
COUNT = 1000
STATED = frozenset(rule for row in (*COMPONENT_ROWS, *WRITER_ROWS, *CALAMITIES) for rule in row.rules)
"""Rules about which the tables speak. Findings of others are counted, never judged."""

Reason = tuple[str, str, str]  # rule, writer id, instance id


@dataclass
class Confusion:
    """What was expected against what was given."""

    levels: Counter[tuple[str, str]] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    unstated: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def add(self, one: Case) -> None:
        given = verdict_on(one)
        level, decision = one.draft.verdict()
        self.levels[level, given.level.value] += 1
        differences = [
            *self._compare("level", {level}, {given.level.value}),
            *self._compare("decision", {decision}, {given.findings[0].rule}),
            *self._compare("reasons", _expected_reasons(one), self._given_reasons(one, given)),
            *self._compare("writers", set(_expected_writers(one)), set(_given_writers(one, given))),
        ]
        self.disagreements += [f"{one.name}\n  {difference}" for difference in differences]

    def _compare(self, what: str, expected: set[object], given: set[object]) -> Iterator[str]:
        self.judged[what] += 1
        if expected == given:
            self.agreed[what] += 1
        else:
            missing = sorted(map(str, expected - given))
            surplus = sorted(map(str, given - expected))
            yield f"{what}: expected and not given {missing}, given and not expected {surplus}"

    def _given_reasons(self, one: Case, given: Verdict) -> set[object]:
        reasons: set[object] = set()
        for finding in given.findings[1:]:
            if finding.rule not in STATED:
                self.unstated[finding.rule] += 1
            elif finding.rule not in one.draft.unsaid:
                self.rules[finding.rule] += 1
                reasons.add((finding.rule, finding.writer_id, finding.instance_id))
        return reasons

    def lines(self) -> list[str]:
        names = [level.value for level in Level]
        width = max(map(len, names)) + 2
        lines = ["expected \\ given".ljust(width) + "".join(name.rjust(width) for name in names)]
        for expected in names:
            told = "".join(str(self.levels[expected, given] or ".").rjust(width) for given in names)
            lines.append(expected.ljust(width) + told)
        for what, judged in self.judged.items():
            lines.append(f"{what}: {self.agreed[what]} of {judged} agree")
        lines.append("reasons given: " + ", ".join(f"{rule} {n}" for rule, n in sorted(self.rules.items())))
        if self.unstated:
            lines.append(
                "not judged: " + ", ".join(f"{rule} {n}" for rule, n in sorted(self.unstated.items()))
            )
        return lines + self.disagreements


def verdict_on(one: Case) -> Verdict:
    if one.draft.missing == "unfetched":
        return classify_unfetched("HTTP 403")
    return classify_manifest(None if one.draft.missing else one.draft.archive())


def _expected_reasons(one: Case) -> set[object]:
    if one.draft.refused:
        return set()
    reasons: set[object] = {(rule, "", "") for rule in one.draft.rules}
    for standing in one.draft.standings:
        reasons |= {(rule, standing.writer_id, standing.instance_id) for rule in standing.rules}
    return reasons


def _expected_writers(one: Case) -> Iterator[object]:
    for standing in () if one.draft.refused else one.draft.standings:
        ids = standing.writer_id, standing.instance_id
        parts = (paths | _along(standing, paths) for paths in (standing.covered, standing.uncovered))
        yield (*ids, _coverage(standing), *map(_told, parts))


def _given_writers(one: Case, given: Verdict) -> Iterator[object]:
    """The writers of a verdict. It may leave unsaid all that comes along with listed components, but not some."""
    standings = {(standing.writer_id, standing.instance_id): standing for standing in one.draft.standings}
    for writer in given.writers:
        ids = writer.writer_id, writer.instance_id
        parts = [{path.lower() for path in paths} for paths in (writer.covered, writer.uncovered)]
        standing = standings.get(ids)
        if standing and not (parts[0] | parts[1]) & _unlisted(standing):
            parts = [paths | _along(standing, paths) for paths in parts]
        yield (*ids, writer.coverage.value, *map(_told, parts))


def _unlisted(standing: Standing) -> set[str]:
    return set(standing.along) - standing.covered - standing.uncovered


def _along(standing: Standing, paths: set[str]) -> set[str]:
    """What comes along with these components."""
    return {path for path in _unlisted(standing) if standing.along[path] in paths}


def _told(paths: set[str]) -> str:
    return ", ".join(sorted(paths))


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
