"""Manifests with known verdicts: the classifier gets all of them right, and the corpus would notice if not."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from click.testing import CliRunner

from vadpipe.lab.vss.corpus import ROWS, case, corpus
from vadpipe.lab.vss.elements import PLAIN
from vadpipe.lab.vss_corpus import SEED, STATED, Confusion, main
from vadpipe.rules import Severity
from vadpipe.vss import classify
from vadpipe.vss.classify import DECISIONS
from vadpipe.vss.rules import ALL_RULES, COVERAGE_RULES, RULES
from vadpipe.vss.verdict import Level

COUNT = 520
JUDGED = ("level", "decision", "reasons", "writers", "applications", "policy")


@pytest.fixture(scope="module")
def cases():
    return list(corpus(SEED, COUNT))


@pytest.mark.slow
def test_every_verdict_is_right_reasons_included(cases):
    confusion = Confusion()
    for one in cases:
        confusion.add(one)
    assert confusion.disagreements == []
    assert dict(confusion.agreed) == dict.fromkeys(JUDGED, COUNT)
    assert {expected for expected, _ in confusion.levels} == {level.value for level in Level}
    assert set(confusion.decisions) == {decision.id for decision in DECISIONS}
    kinds = ("level", "application", "database")
    assert all(confusion.policies[kind, satisfied] > 20 for kind in kinds for satisfied in (True, False))
    assert confusion.policies["missing writer", False] > 5
    assert set(confusion.rules) == {rule.id for rule in ALL_RULES}
    assert not confusion.unstated


def test_every_row_of_the_tables_happens():
    happened = "; ".join(one.name for one in corpus(SEED, len(ROWS)))
    assert [row.name for row in ROWS if row.name not in happened] == []


def test_the_same_seed_gives_the_same_manifests():
    first, again, other = ([one.draft.archive() for one in corpus(seed, 12)] for seed in (3, 3, 4))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_every_rule_is_judged():
    assert {rule.id for rule in ALL_RULES} == STATED


def change_rules(monkeypatch, change):
    """Run every rule through `change` for the classifier; None takes it out."""
    for name, table in (("RULES", RULES), ("COVERAGE_RULES", COVERAGE_RULES)):
        monkeypatch.setattr(classify, name, [new for one in table if (new := change(one)) is not None])


def told(one):
    return set(one.draft.told) | {rule for standing in one.draft.standings for rule, _ in standing.told}


@pytest.mark.parametrize("rule", [rule.id for rule in ALL_RULES])
def test_a_rule_that_says_nothing_is_noticed(rule, cases, monkeypatch):
    one = next(one for one in cases if not one.draft.refused and rule in told(one))
    change_rules(monkeypatch, lambda one: one if one.id != rule else None)
    confusion = Confusion()
    confusion.add(one)
    assert any('reasons: expected and not given ["' in line for line in confusion.disagreements)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.id)
def test_a_rule_that_lowers_when_it_should_not_or_the_other_way_is_noticed(rule, cases, monkeypatch):
    other = replace(rule, severity=Severity.INFO if rule.severity.lowers else Severity.ERROR)
    change_rules(monkeypatch, lambda one: other if one is rule else one)
    confusion = Confusion()
    for one in cases:
        if not one.draft.refused and rule.id in told(one) and not confusion.disagreements:
            confusion.add(one)
    assert confusion.disagreements


def test_a_rule_about_which_the_generator_says_nothing_is_printed(cases, monkeypatch):
    one = next(one for one in cases if "options-differ" in told(one))
    change_rules(monkeypatch, lambda one: replace(one, id="new") if one.id == "options-differ" else one)
    confusion = Confusion()
    confusion.add(one)
    assert any(line.startswith("not judged: new ") for line in confusion.lines())


def test_the_command_prints_the_matrix_and_counts():
    done = CliRunner().invoke(main, ["--count", "60"])
    assert done.exit_code == 0
    assert all(f"{what}: 60 of 60 agree" in done.output for what in JUDGED)
    assert "not judged: nothing" in done.output
    assert done.output.splitlines()[1].split()[:3] == ["expected", "\\", "given"]


def test_a_disagreement_is_printed_with_what_happened_and_fails(monkeypatch, tmp_path):
    change_rules(monkeypatch, lambda one: None)
    number = next(n for n, row in enumerate(ROWS) if row.name == "own document twice")
    done = CliRunner().invoke(main, ["--only", str(number), "--keep", str(tmp_path)])
    assert done.exit_code == 1
    assert f"case {number}: " in done.output
    assert "own document twice" in done.output
    assert "reasons: expected and not given" in done.output
    assert len(list(tmp_path.glob(f"{number:05}-{case(SEED, number).draft.verdict()[0]}.zip"))) == 1


@pytest.mark.slow
def test_xmllint_accepts_every_document_that_is_not_meant_to_be_damaged(tmp_path):
    xmllint = shutil.which("xmllint")
    if xmllint is None:
        pytest.skip("xmllint is not installed")
    for one in corpus(SEED, len(ROWS)):
        for number, root in enumerate(one.draft.well_formed()):
            text = one.draft.outfit.text(root)
            (tmp_path / f"{one.number}-{number}-utf8.xml").write_text(text, "utf-8", newline="")
            (tmp_path / f"{one.number}-{number}-utf16.xml").write_text(text, "utf-16", newline="")
            (tmp_path / f"{one.number}-{number}-plain.xml").write_text(PLAIN.text(root), newline="")
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) > 1500
    done = subprocess.run([xmllint, "--noout", "--nonet", *files], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
