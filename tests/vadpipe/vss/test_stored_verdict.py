"""A verdict that was stored in a restore point, read back."""

import json

import pytest

from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import OUTCOMES, manifest_zip
from vadpipe.vss.classify import classify_manifest
from vadpipe.vss.verdict import Level, read_verdict


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_stored_verdict_says_the_same_when_it_is_read_back(outcome):
    verdict = classify_manifest(manifest_zip(Request(), OUTCOMES[outcome]))
    document = json.loads(json.dumps(verdict.as_dict()))
    again = read_verdict(document)
    assert again.as_dict() == document
    assert (again.level, again.reason, again.writers) == (verdict.level, verdict.reason, verdict.writers)
    assert [one.violation for one in again.findings] == [one.violation for one in verdict.findings]
    assert [one.rule for one in again.doubts] == [one.rule for one in verdict.doubts]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"level": "better", "findings": 3, "writers": {}, "applications": [3, None]},
        {"findings": [{"severity": "fatal", "text": 7}], "writers": [{"covered": "a", "captions": []}]},
    ],
)
def test_parts_of_another_shape_are_left_out(document):
    verdict = read_verdict(document)
    assert verdict.level is Level.UNKNOWN
    assert verdict.applications == ()
    json.dumps(verdict.as_dict())
