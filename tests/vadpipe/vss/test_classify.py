"""Every outcome of the classification, and every rule, on documents written for the purpose."""

import io
import json
import zipfile
from dataclasses import dataclass, field

import pytest

from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.rules import Severity
from vadpipe.vss.classify import DECISIONS, classify_manifest, classify_unfetched
from vadpipe.vss.requested import RequestedQuiescing
from vadpipe.vss.rules import ALL_RULES
from vadpipe.vss.verdict import Coverage, Level, Verdict
from vadpipe.vss.writers import WELL_KNOWN_WRITERS, known_writer

SQL = "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a"
ASR = "be000cbe-11fe-4426-9c58-531aa6355fc4"
OWN = "11111111-2222-4333-8444-555555555555"  # of no well-known writer
INSTANCE = "99999999-0000-4000-8000-000000000001"


@dataclass
class Writer:
    """One writer of a small manifest: components are (full path, selectable); listed ones by full path."""

    writer_id: str = OWN
    offers: list[tuple[str, bool]] = field(default_factory=lambda: [("data", True)])
    listed: list[str] | None = field(default_factory=lambda: ["data"])  # None: not in the backup document
    instance: str = INSTANCE
    listed_instance: str = INSTANCE
    name: str = "Own Writer"
    schema: int = 0
    kind: str = "FILE_GROUP"
    attributes: str = ""  # of each listed component
    writer_attributes: str = ""
    described: int = 1  # how many documents
    usage: str = "USER_DATA"
    source: str = "OTHER"
    inside: str = ""  # of each offered component
    beside: str = ""  # the offered components


def component(path: str) -> str:
    logical, _, name = path.rpartition("\\")
    return f'logicalPath="{logical}" componentName="{name}"'


def manifest(
    *writers: Writer, root: str = 'selectComponents="yes"', extra: dict[str, str] | None = None
) -> bytes:
    listed = "".join(
        f'<WRITER_COMPONENTS writerId="{one.writer_id}" instanceId="{one.listed_instance}" backupSchema="0" '
        f"{one.writer_attributes}>"
        + "".join(
            f'<COMPONENT {component(path)} componentType="filegroup" {one.attributes}/>'
            for path in one.listed
        )
        + "</WRITER_COMPONENTS>"
        for one in writers
        if one.listed is not None
    )
    documents = {"backup.xml": f"<BACKUP_COMPONENTS {root}>{listed}</BACKUP_COMPONENTS>"}
    for number, one in enumerate(writers, 1):
        offers = "".join(
            f'<{one.kind} {component(path)} selectable="{"yes" if selectable else "no"}">{one.inside}</{one.kind}>'
            for path, selectable in one.offers
        )
        for copy in range(one.described):
            documents[f"writer{number}{'abc'[copy]}.xml"] = (
                f'<WRITER_METADATA backupSchema="{one.schema}"><IDENTIFICATION writerId="{one.writer_id}" '
                f'instanceId="{one.instance}" friendlyName="{one.name}" usage="{one.usage}" '
                f'dataSource="{one.source}"/>'
                f"<BACKUP_LOCATIONS>{one.beside}{offers}</BACKUP_LOCATIONS></WRITER_METADATA>"
            )
    return zipped(documents | (extra or {}))


def zipped(documents: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in documents.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def rules(verdict: Verdict) -> set[str]:
    return {finding.rule for finding in verdict.findings[1:]}


GOOD = Writer(writer_id="22222222-2222-4333-8444-555555555555", name="Good Writer")


# -- levels -------------------------------------------------------------------------------------


def test_an_application_quiesced_guest_is_application_consistent():
    verdict = classify_manifest(manifest_zip(Request()))
    assert verdict.level is Level.APPLICATION
    assert verdict.reason == "all 8 writers that count took part, 12 components covered"
    by_name = {writer.name: writer for writer in verdict.writers}
    assert len(by_name) == 11
    sql = by_name["SqlServerWriter"]
    assert (sql.application, sql.coverage) == ("SQL Server", Coverage.COVERED)
    assert sql.covered == tuple(f"WIN-SQL01\\{name}" for name in ("master", "model", "msdb", "sales"))
    assert by_name["BITS Writer"].coverage is Coverage.NOTHING_TO_COVER
    assert not by_name["ASR Writer"].counts
    assert by_name["ASR Writer"].coverage is Coverage.NOT_COVERED


def test_a_file_system_quiesced_guest_is_file_system_consistent():
    verdict = classify_manifest(manifest_zip(Request(context="file-system")))
    assert (verdict.level, verdict.findings[0].rule) == (Level.FILE_SYSTEM, "backup-document-alone")


@pytest.mark.parametrize("knob", ["drop_writers", "failing_writers"])
@pytest.mark.parametrize("name", ["SqlServerWriter", "Registry Writer"])
def test_one_writer_without_its_components_makes_the_level_partial_and_is_named(knob, name):
    recipe = ManifestRecipe(**{knob: frozenset({name})})
    verdict = classify_manifest(manifest_zip(Request(), recipe))
    assert verdict.level is Level.APPLICATION_PARTIAL
    assert verdict.reason.endswith(f"not proven: {name}")
    short = [writer.name for writer in verdict.writers if writer.counts and writer.uncovered]
    assert short == [name]


def test_a_failing_database_leaves_the_others_covered():
    verdict = classify_manifest(
        manifest_zip(Request(), ManifestRecipe(failing_writers=frozenset({"SqlServerWriter"})))
    )
    (sql,) = (writer for writer in verdict.writers if writer.writer_id == SQL)
    assert sql.coverage is Coverage.PARTLY
    assert sql.uncovered == ("WIN-SQL01\\master",)
    (finding,) = (one for one in verdict.findings if one.rule == "component-failed")
    assert finding.violation.document == "backup.xml"
    assert "0x800423F4" in finding.found
    assert finding.subject == "WIN-SQL01\\master"


LINUX = "<quiesceManifest><providerName>syncProvider</providerName></quiesceManifest>"
BACKUP = "<BACKUP_COMPONENTS selectComponents='yes'/>"


@pytest.mark.parametrize(
    ("verdict", "level", "decision", "reason"),
    [
        (
            classify_manifest(None, absent_reason="the VM was off"),
            Level.CRASH,
            "manifest-absent",
            "the VM was off",
        ),
        (classify_manifest(None), Level.CRASH, "manifest-absent", "left no manifest"),
        (classify_unfetched("403 Forbidden"), Level.UNKNOWN, "manifest-unfetched", "403 Forbidden"),
        (classify_manifest(b""), Level.UNKNOWN, "archive-refused", "not a whole zip"),
        (classify_manifest(b"<html>login</html>"), Level.UNKNOWN, "archive-refused", "not a whole zip"),
        (classify_manifest(zipped({"../b": ""})), Level.UNKNOWN, "archive-refused", "points outside"),
        (classify_manifest(zipped({})), Level.UNKNOWN, "backup-document-missing", "no readable backup"),
        (classify_manifest(LINUX.encode()), Level.CRASH, "linux-quiesce-manifest", "syncProvider"),
        (classify_manifest(zipped({"q": LINUX})), Level.CRASH, "linux-quiesce-manifest", "syncProvider"),
        (
            classify_manifest(zipped({"backup.xml": "<a"})),
            Level.UNKNOWN,
            "backup-document-missing",
            "unreadable: backup.xml",
        ),
        (
            classify_manifest(zipped({"a": BACKUP, "b": BACKUP})),
            Level.UNKNOWN,
            "backup-document-twice",
            "a and b",
        ),
        (
            classify_manifest(zipped({"a": BACKUP, "b": "<a"})),
            Level.UNKNOWN,
            "writer-documents-unreadable",
            "none of 1 document",
        ),
        (
            classify_manifest(zipped({"a": BACKUP, "b": "<other/>"})),
            Level.FILE_SYSTEM,
            "backup-document-alone",
            "without writer documents",
        ),
        (
            classify_manifest(manifest(GOOD, root='selectComponents="no"')),
            Level.FILE_SYSTEM,
            "no-component-mode",
            "does not select components",
        ),
        (
            classify_manifest(manifest(Writer(listed_instance="other"))),
            Level.UNKNOWN,
            "foreign-documents",
            "different runs",
        ),
        (
            classify_manifest(manifest(Writer(listed=None))),
            Level.FILE_SYSTEM,
            "nothing-covered",
            "no writer's component",
        ),
        (
            classify_manifest(manifest(Writer(offers=[], listed=None))),
            Level.FILE_SYSTEM,
            "nothing-covered",
            "no writer's component",
        ),
        (
            classify_manifest(manifest(GOOD, Writer(listed=None))),
            Level.APPLICATION_PARTIAL,
            "some-covered",
            "not proven: Own Writer",
        ),
        (
            classify_manifest(manifest(GOOD)),
            Level.APPLICATION,
            "all-covered",
            "the only writer that counts",
        ),
    ],
)
def test_each_decision_gives_its_level(verdict, level, decision, reason):
    assert (verdict.level, verdict.findings[0].rule) == (level, decision)
    assert reason in verdict.reason


def test_no_writer_is_called_covered_below_application_partial():
    doubtful = [
        manifest(GOOD, root='selectComponents="no"'),
        manifest(GOOD, extra={"second.xml": BACKUP}),
    ]
    for data in doubtful:
        assert [writer.covered for writer in classify_manifest(data).writers] == [()]


# -- rules --------------------------------------------------------------------------------------

EXCLUDED = r'<EXCLUDE_FILES path="D:\Data" filespec="sales.mdf" recursive="no"/>'
NEEDS_ANOTHER = f'<DEPENDENCY writerId="{{{ASR}}}" logicalPath="" componentName="other"/>'
PARENT_AND_CHILD = [("app", True), ("app\\child", False)]


@pytest.mark.parametrize(
    ("rule", "writer"),
    [
        ("writer-without-metadata", Writer(described=0)),
        ("writer-without-metadata", Writer(listed_instance="99999999-0000-4000-8000-000000000002")),
        ("writer-described-twice", Writer(described=2)),
        ("writer-failed", Writer(writer_attributes='someFailureMsg="0x800423F2"')),
        ("writer-not-included", Writer(listed=None)),
        ("schema-differs", Writer(schema=16)),
        ("component-failed", Writer(attributes='prepareFailureMsg="broken"')),
        ("component-failed", Writer(attributes='backupSucceeded="no"')),
        ("component-not-offered", Writer(listed=["data", "other"])),
        ("component-of-other-type", Writer(kind="DATABASE")),
        ("mandatory-component-missing", Writer(offers=[("data", True), ("must", False)])),
        ("component-not-included", Writer(offers=[("data", True), ("more", True)])),
        ("component-not-included", Writer(offers=[("data", False), ("data\\more", True)])),
        ("below-included-ancestor", Writer(offers=[("a", True), ("a\\b", True)], listed=["a", "a\\b"])),
        ("implicit-component-listed", Writer(offers=PARENT_AND_CHILD, listed=["app", "app\\child"])),
        ("component-twice", Writer(listed=["data", "DATA"])),
        ("component-twice", Writer(offers=[("data", True), ("Data", True)])),
        ("sql-component-without-stamp", Writer(writer_id=SQL)),
        ("database-excluded", Writer(writer_id=SQL, beside=EXCLUDED)),
        ("dependency-not-covered", Writer(inside=NEEDS_ANOTHER)),
    ],
)
def test_each_rule_about_a_writer_is_applied(rule, writer):
    verdict = classify_manifest(manifest(GOOD, writer))
    (finding, *_) = (one for one in verdict.findings if one.rule == rule)
    assert finding.severity.lowers is (verdict.level is Level.APPLICATION_PARTIAL)
    assert (finding.violation.writer_id, finding.found != "") == (writer.writer_id, True)
    good, own = verdict.writers[0], next(one for one in verdict.writers if rule in one.rules)
    assert good.coverage is Coverage.COVERED
    assert (own.coverage is Coverage.COVERED) is not finding.severity.lowers


COPY = 'selectComponents="yes" backupType="copy"'
FULL = 'selectComponents="yes" backupType="full"'
SYSTEM_STATE = 'selectComponents="yes" bootableSystemStateBackup="yes"'


@pytest.mark.parametrize(
    ("rule", "data", "level", "known"),
    [
        ("document-unreadable", manifest(GOOD, extra={"w.xml": "<a"}), Level.APPLICATION_PARTIAL, {}),
        ("document-unrecognised", manifest(GOOD, extra={"w.xml": "<a/>"}), Level.APPLICATION, {}),
        ("component-mode-unstated", manifest(GOOD, root=""), Level.APPLICATION_PARTIAL, {}),
        ("options-differ", manifest(GOOD, root=FULL), Level.APPLICATION, {}),
        ("logs-kept", manifest(Writer(writer_id=SQL, schema=0x10), root=COPY), Level.APPLICATION, {}),
        ("logs-changed", manifest(Writer(writer_id=SQL), root=COPY), Level.APPLICATION, {}),
        ("counts-as-full", manifest(Writer(source="TRANSACTION_DB"), root=COPY), Level.APPLICATION, {}),
        (
            "system-state-incomplete",
            manifest(GOOD, Writer(listed=None, usage="SYSTEM_SERVICE"), root=SYSTEM_STATE),
            Level.APPLICATION_PARTIAL,
            {},
        ),
        (
            "writer-excluded",
            manifest(GOOD, Writer(listed=None)),
            Level.APPLICATION,
            {"excluded": ["own writer"]},
        ),
        (
            "context-differs",
            manifest(GOOD),
            Level.APPLICATION,
            {"requested": RequestedQuiescing("file-system")},
        ),
    ],
    ids=lambda value: "zip" if isinstance(value, bytes) else None,  # a zip holds the time
)
def test_each_rule_about_the_manifest_is_applied(rule, data, level, known):
    verdict = classify_manifest(data, **known)
    assert rule in rules(verdict)
    assert verdict.level is level


def test_every_rule_has_a_case_here():
    tested = {
        mark.args[1][0] if isinstance(mark.args[1], tuple) else case[0]
        for test in (test_each_rule_about_a_writer_is_applied, test_each_rule_about_the_manifest_is_applied)
        for mark in test.pytestmark
        for case in mark.args[1]
    }
    assert {rule.id for rule in ALL_RULES} == tested


def test_the_tables_can_be_printed():
    ids = [*(row.id for row in ALL_RULES), *(row.id for row in DECISIONS)]
    assert len(set(ids)) == len(ids)
    assert all(rule.reads and rule.wanted and rule.source for rule in ALL_RULES)
    assert all(decision.reads and decision.source for decision in DECISIONS)


@pytest.mark.parametrize(
    "writer",
    [
        Writer(offers=[("data", True), ("data\\sub", True), ("data\\sub\\x", False)]),
        Writer(offers=[("data", True), ("DATA\\Sub", False)]),
        Writer(offers=[("data", False), ("data\\config", False)]),
        Writer(offers=[("data", False), ("data\\config", False)], listed=["data", "data\\config"]),
        Writer(offers=[("data", True)], listed=["Data"]),
        Writer(attributes='backupSucceeded="yes" someFailureMsg=""'),
        Writer(offers=[("Database", True)], listed=["Database"], attributes='strange="1"'),
    ],
)
def test_variants_that_break_no_rule_have_no_findings(writer):
    verdict = classify_manifest(manifest(GOOD, writer))
    assert (verdict.level, rules(verdict)) == (Level.APPLICATION, set())


def test_without_the_backup_document_no_writer_counts_as_left_out():
    whole = zipfile.ZipFile(io.BytesIO(manifest(Writer())))
    verdict = classify_manifest(
        zipped({name: whole.read(name).decode() for name in whole.namelist() if name != "backup.xml"})
    )
    assert (verdict.level, rules(verdict)) == (Level.UNKNOWN, set())


def test_a_similar_name_is_no_ancestor():
    verdict = classify_manifest(manifest(GOOD, Writer(offers=[("data", True), ("database\\x", True)])))
    assert verdict.writers[1].uncovered == ("database\\x",)


def test_the_writer_of_the_disk_layout_is_listed_and_never_counts():
    failing = Writer(writer_id=ASR, attributes='someFailureMsg="x"', name="ASR Writer")
    verdict = classify_manifest(manifest(GOOD, failing))
    assert verdict.level is Level.APPLICATION
    assert "component-failed" in rules(verdict)
    assert classify_manifest(manifest(failing)).level is Level.FILE_SYSTEM


def test_the_shared_id_of_message_queuing_is_resolved_by_the_writers_name():
    shared = "7e47b561-971a-46e6-96b9-696eeaa53b2a"
    plain, exchange = (
        known_writer(shared, "MSMQ Writer"),
        known_writer(shared, "Microsoft Exchange Replica Writer"),
    )
    assert plain is not None
    assert exchange is not None
    assert (plain.application, exchange.application) == ("Message Queuing", "Exchange")
    assert len(WELL_KNOWN_WRITERS) == 38


# -- values -------------------------------------------------------------------------------------


def test_levels_are_ordered_and_unknown_stands_apart():
    ordered = [Level.CRASH, Level.FILE_SYSTEM, Level.APPLICATION_PARTIAL, Level.APPLICATION]
    assert sorted([ordered[2], ordered[0], ordered[3], ordered[1]]) == ordered
    assert [str(level) for level in Level] == [
        "crash",
        "file-system",
        "application-partial",
        "application",
        "unknown",
    ]
    for level in ordered:
        for unordered in (level < Level.UNKNOWN, level > Level.UNKNOWN, level <= Level.UNKNOWN):
            assert not unordered
        assert not level >= Level.UNKNOWN
        assert level <= level
        assert not level < level
    assert Level.UNKNOWN >= Level.UNKNOWN


def test_a_verdict_is_one_json_document():
    recipe = ManifestRecipe(drop_writers=frozenset({"SqlServerWriter"}))
    told = json.loads(json.dumps(classify_manifest(manifest_zip(Request(), recipe)).as_dict()))
    assert told["level"] == "application-partial"
    assert told["findings"][0] == {
        "rule": "some-covered",
        "severity": Severity.WARNING.value,
        "document": "backup.xml",
        "text": told["reason"],
    }
    (sql,) = (writer for writer in told["writers"] if writer["writer_id"] == SQL)
    assert sql["coverage"] == "not covered"
    assert sql["rules"] == ["writer-not-included"]
    assert len(sql["uncovered"]) == 4


def test_a_backup_document_that_came_alone_gives_no_error_for_every_writer():
    verdict = classify_manifest(manifest(Writer(described=0), Writer(writer_id=SQL, described=0)))
    assert [one.rule for one in verdict.findings if one.severity.lowers] == []
    assert verdict.findings[0].rule == "backup-document-alone"
    assert {writer.coverage for writer in verdict.writers} == {Coverage.NOT_COVERED}


def test_two_instances_of_a_writer_are_named_once_in_the_reason():
    other = "99999999-0000-4000-8000-000000000002"
    verdict = classify_manifest(
        manifest(
            GOOD,
            Writer(listed=None),
            Writer(listed=None, instance=other, listed_instance=other),
        )
    )
    assert verdict.reason == "1 writer with consistent components took part; not proven: Own Writer"
