"""The rules engine: tables, judging, severities that are lowered, and what nobody can tell."""

from vadpipe.jsonable import jsonable
from vadpipe.rules import Finding, RuleTable, Severity, Undecided, Unknown, Violation, judge

RULES: RuleTable[int, Violation] = RuleTable()


@RULES.rule("odd", Severity.WARNING, wanted="an even number", remedy="Add 1.", source="arithmetic")
def _odd(number):
    if number % 2:
        yield Violation(f"{number} is odd", "number")


@RULES.rule("large", Severity.ERROR, wanted="a number below 10", source="own", tags={"size"})
def _large(number):
    if number is None:
        yield Unknown("no number")
    elif number >= 10:
        yield Violation("it is large")


@RULES.rule("negative", Severity.ERROR, wanted="a number from 0", source="own")
def _negative(number):
    if number < 0:
        yield Violation("it is negative", may_pass=number == -1)


def severities(number, **options):
    return {one.rule: one.severity for one in judge(RULES, number, **options).findings}


def test_a_table_keeps_its_rules_in_the_order_of_their_definition():
    assert [rule.id for rule in RULES] == ["odd", "large", "negative"]
    assert [rule.id for rule in RuleTable([*RULES, _odd])] == ["odd", "large", "negative", "odd"]


def test_a_finding_carries_what_its_rule_says():
    judgement = judge(RULES, 11)
    assert judgement.findings[0] == Finding(
        "odd", Severity.WARNING, Violation("11 is odd", "number"), "an even number", "Add 1.", "arithmetic"
    )
    assert judgement.findings[0].sentence == "number: 11 is odd"
    assert judgement.held == ["negative"]
    assert [one.rule for one in judgement.worst_first] == ["large", "odd"]


def test_a_rule_without_an_answer_is_undecided_and_does_not_hold():
    judgement = judge([_large], None)
    assert (judgement.findings, judgement.undecided, judgement.held) == (
        [],
        [Undecided("large", "no number")],
        [],
    )


def test_an_error_that_the_job_survives_becomes_a_warning():
    assert severities(10) == {"large": Severity.ERROR}
    assert severities(10, survivable=lambda rule: "size" in rule.tags) == {"large": Severity.WARNING}
    assert severities(-2, survivable=lambda rule: "size" in rule.tags) == {"negative": Severity.ERROR}


def test_an_error_at_a_place_that_the_job_may_never_meet_becomes_a_warning():
    assert severities(-1)["negative"] is Severity.WARNING


def test_errors_and_unproven_findings_lower_what_they_name():
    assert [one for one in Severity if one.lowers] == [Severity.ERROR, Severity.UNPROVEN]


def test_the_document_of_a_finding_has_plain_values():
    document = jsonable(judge([_odd], 3).findings[0])
    assert document["severity"] == "warning"
    assert document["found"] == "3 is odd"
