"""The finisher: what it files with a point, and when it wants another snapshot or none at all."""

import pytest

from pipeline import ConfigError, MachineId, QuiescingShort
from stages.vss_manifest import VssManifest
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.fetched import FetchAttempt, FetchedManifest, ManifestKind
from vadpipe.vss.requested import RequestedQuiescing
from vadpipe.vss.require import Require, RequireApplication


class Request:
    backup_type, bootable_system_state, partial_file_support, timeout_min, vm_name = (
        5,
        True,
        False,
        15,
        "web01",
    )

    def __init__(self, context):
        self.context = context


class Capture:
    machine = MachineId("uuid", "web01")
    disks = ()
    configuration = {}  # noqa: RUF012

    def __init__(self, asked, *fetched, requested="application"):
        self.quiescing_asked = asked
        self.quiescing_sent = RequestedQuiescing(requested) if requested else None
        self.fetched = list(fetched)

    async def fetch_vss_manifest(self):
        return self.fetched.pop(0)


def manifest(context="application", **recipe):
    return FetchedManifest(manifest_zip(Request(context), ManifestRecipe(**recipe)), "", "[ds] web01/m.zip")


APPLICATION = manifest()
PARTIAL = manifest(drop_writers=frozenset({"Registry Writer"}))
FILE_SYSTEM = manifest("file-system")
ABSENT = FetchedManifest(None, "no manifest file appeared", None, absent=True)
UNFETCHED = FetchedManifest(None, "403 Forbidden", "[ds] web01/m.zip")
BROKEN = FetchedManifest(b"PK\x03\x04 broken", "", "[ds] web01/m.zip")


@pytest.mark.parametrize(
    ("asked", "fetched", "reached", "satisfied"),
    [
        ("application", APPLICATION, "application", True),
        ("application", FILE_SYSTEM, "file-system", False),
        ("application", ABSENT, "crash", False),
        ("application", UNFETCHED, "unknown", False),
        ("application", BROKEN, "unknown", False),
        ("file-system", FILE_SYSTEM, "file-system", True),
        ("file-system", APPLICATION, "application", True),
        ("file-system", UNFETCHED, "unknown", False),
        ("auto", APPLICATION, "application", True),
        ("auto", FILE_SYSTEM, "file-system", True),
        ("auto", ABSENT, "crash", False),
        ("none", ABSENT, "crash", True),
    ],
)
async def test_the_evidence_of_a_point(asked, fetched, reached, satisfied):
    evidence = await VssManifest().finish(Capture(asked, fetched))
    assert evidence.reached == reached
    assert evidence.satisfied is satisfied
    assert bool(evidence.shortfalls) is not satisfied
    assert evidence.reasons
    assert evidence.verdict["manifest"] == fetched.path
    assert evidence.verdict["shortfalls"] == list(evidence.shortfalls)
    kept = {} if fetched.content is None else {"vss-manifest.zip": fetched.content}
    assert evidence.documents == kept


@pytest.mark.parametrize("fetched", [APPLICATION, PARTIAL, FILE_SYSTEM, BROKEN])
async def test_a_manifest_that_exists_is_judged_at_once_and_the_same_as_at_the_end(fetched):
    early = await VssManifest().examine(Capture("application", fetched), 0)
    assert early == await VssManifest().finish(Capture("application", fetched))


@pytest.mark.parametrize("first", [ABSENT, UNFETCHED])
async def test_a_manifest_that_does_not_exist_yet_is_looked_for_at_the_end(first):
    capture = Capture("application", first, APPLICATION)
    finisher = VssManifest()
    assert await finisher.examine(capture, 0) is None
    assert (await finisher.finish(capture)).satisfied


async def test_a_shortfall_wants_another_snapshot_as_often_as_allowed():
    finisher = VssManifest(retries=2, retry_after_s=7)
    for attempt in (0, 1):
        with pytest.raises(QuiescingShort) as short:
            await finisher.examine(Capture("application", PARTIAL), attempt)
        assert short.value.retry_after_s == 7
        assert "web01" in short.value.problem
        assert "Registry Writer" in short.value.problem
    evidence = await finisher.examine(Capture("application", PARTIAL), 2)
    assert evidence is not None
    assert not evidence.satisfied


@pytest.mark.parametrize("sent", ["none", None])
async def test_no_further_snapshot_is_taken_where_none_could_be_better(sent):
    """The VM was off, or the files were there before us."""
    capture = Capture("application", PARTIAL, requested=sent)
    assert not (await VssManifest(retries=2).examine(capture, 0)).satisfied


@pytest.mark.parametrize("fetched", [PARTIAL, ABSENT, UNFETCHED])
async def test_discarding_ends_the_job_before_and_after_the_transfer(fetched):
    finisher = VssManifest(on_shortfall="discard")
    for step in (
        finisher.examine(Capture("application", fetched), 0),
        finisher.finish(Capture("application", fetched)),
    ):
        with pytest.raises(QuiescingShort) as short:
            await step
        assert short.value.retry_after_s is None
        assert short.value.facts["shortfalls"]
        assert short.value.exit_code == 1
    assert (await finisher.finish(Capture("application", APPLICATION))).satisfied


async def test_retries_come_before_discarding():
    finisher = VssManifest(on_shortfall="discard", retries=1, retry_after_s=7)
    for attempt, after_s in ((0, 7), (1, None)):
        with pytest.raises(QuiescingShort) as short:
            await finisher.examine(Capture("application", PARTIAL), attempt)
        assert short.value.retry_after_s == after_s


SQL_ONLY = Require(applications=(RequireApplication("SQL Server", databases=("sales",)),))


@pytest.mark.parametrize(
    ("finisher", "satisfied"),
    [
        (VssManifest(), False),
        (VssManifest("application-partial"), True),
        (VssManifest("none"), True),
        (VssManifest(missing_writer="continue"), True),
        (VssManifest(excluded=("Registry Writer",)), True),
        (VssManifest(SQL_ONLY), True),
        (VssManifest("application", excluded=("registry",)), True),
    ],
)
async def test_the_policy_decides_which_level_suffices(finisher, satisfied):
    evidence = await finisher.finish(Capture("application", PARTIAL))
    assert evidence.satisfied is satisfied
    named = any(reason.startswith("writer-excluded: Registry Writer") for reason in evidence.reasons)
    assert named is bool(finisher.excluded)


async def test_documents_are_compared_with_the_specification_and_the_level_with_the_request():
    """The policy 'try' went down to file-system quiescing; the job still asks for application quiescing."""
    evidence = await VssManifest().finish(Capture("application", FILE_SYSTEM, requested="file-system"))
    assert evidence.shortfalls == ("Quiescing reached file-system, but application was requested.",)
    assert not [reason for reason in evidence.reasons if reason.startswith("context-differs")]
    sent = await VssManifest().finish(Capture("application", FILE_SYSTEM))
    assert [reason for reason in sent.reasons if reason.startswith("context-differs")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"require": "applications"},
        {"missing_writer": "ignore"},
        {"on_shortfall": "fail"},
        {"excluded": "Registry Writer"},
        {"retries": -1},
        {"retry_after_s": -1.0},
    ],
)
def test_mistakes_are_found_before_anything_runs(wrong):
    with pytest.raises(ConfigError):
        VssManifest(**wrong)


async def test_the_ways_of_fetching_and_the_kind_are_stored_in_the_point():
    attempts = [
        FetchAttempt("vifs", "it is not installed."),
        FetchAttempt("HTTPS (cookie)", remark="A copy."),
    ]
    content = b'<quiesceManifest productVersion="12" providerName="x"/>'
    fetched = FetchedManifest(content, "", "[ds] a/b.xml", kind=ManifestKind.LINUX_XML, attempts=attempts)
    evidence = await VssManifest().finish(Capture("application", fetched))
    assert evidence.verdict["fetching"] == [
        {"way": "vifs", "problem": "it is not installed."},
        {"way": "HTTPS (cookie)", "remark": "A copy."},
    ]
    assert evidence.documents == {"quiesce-manifest.xml": content}
