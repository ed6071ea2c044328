"""Rules about what belongs together, and what the documents and the quiesce spec say of each other."""

from dataclasses import replace

import pytest

from tests.vadpipe.vss.documents_kit import (
    APPLICATION,
    ASR,
    EXCHANGE,
    NTDS,
    SQL,
    backup,
    found,
    listed,
    metadata,
    offered,
    part,
)
from vadpipe.rules import Severity
from vadpipe.vss.classify import classify_documents
from vadpipe.vss.documents import Dependency, Unreadable
from vadpipe.vss.requested import RequestedQuiescing
from vadpipe.vss.verdict import Level

# -- dependencies -------------------------------------------------------------------------------

NEEDS_SALES = Dependency(SQL, "SRV", "sales")


def needing(dependency):
    return metadata("0" * 8, offered("site", dependencies=(dependency,)), name="Needing")


@pytest.mark.parametrize(
    ("offers", "paths", "said"),
    [
        ([offered("SRV\\sales")], ["SRV\\sales"], ""),
        ([offered("SRV\\sales")], ["srv\\SALES"], ""),
        ([offered("SRV"), offered("SRV\\sales", selectable=False)], ["SRV"], ""),  # comes along
        (
            [offered("SRV", selectable=False), offered("SRV\\sales", selectable=False)],
            ["SRV"],
            "not shown to be covered",  # Microsoft's pages disagree whether it does
        ),
        ([offered("SRV\\sales")], [], "not shown to be covered"),
        ([offered("SRV\\sales"), offered("SRV\\hr")], ["SRV\\hr"], "not shown to be covered"),
        ([offered("SRV\\hr")], ["SRV\\hr"], "not shown to be covered"),
        ([offered("SRV\\sales")], [listed("SRV\\sales", (("aFailureMsg", "x"),))], "not shown to be covered"),
    ],
)
def test_a_dependency_is_met_by_a_component_that_takes_part(offers, paths, said):
    sql, site = metadata(SQL, *offers), needing(NEEDS_SALES)
    verdict = classify_documents([backup(part(site, "site"), part(sql, *paths)), sql, site])
    findings = found(verdict, "dependency-not-covered")
    assert bool(findings) is bool(said)
    assert all(one.severity is Severity.WARNING and said in one.found for one in findings)
    assert [one.covered for one in verdict.writers if one.name == "Needing"] == [("site",)]


def test_a_dependency_on_another_machine_cannot_be_covered_here():
    site = needing(Dependency(SQL, "\\\\db01\\SRV", "sales"))
    verdict = classify_documents([backup(part(site, "site")), site])
    (finding,) = found(verdict, "dependency-not-covered")
    assert "another machine" in finding.found
    assert verdict.level is Level.APPLICATION


@pytest.mark.parametrize(
    "sql",
    [
        {"more": [offered("SRV\\model", selectable=False)]},  # mandatory, and not listed
        {"kind": "database"},  # of another type than listed
        {"excluded": ("d:\\sales.mdf",)},
    ],
)
def test_a_component_that_took_part_and_is_not_covered_meets_no_dependency(sql):
    sales = offered("SRV\\sales", database_files=("d:\\sales.mdf",))
    sales = replace(sales, kind=sql.get("kind", "filegroup"))
    told = metadata(SQL, sales, *sql.get("more", ()), excluded=sql.get("excluded", ()))
    site = needing(NEEDS_SALES)
    verdict = classify_documents([backup(part(site, "site"), part(told, "SRV\\sales")), told, site])
    assert [one.subject for one in found(verdict, "dependency-not-covered")] == ["site"]


def test_dependencies_of_an_uncovered_component_are_not_reported():
    site = needing(NEEDS_SALES)
    verdict = classify_documents([backup(part(site, "site"), mode=False), site])
    assert not found(verdict, "dependency-not-covered")


def test_dependencies_of_a_writer_that_took_no_part_are_not_reported():
    site, other = needing(NEEDS_SALES), metadata(NTDS, offered("ntds"))
    verdict = classify_documents([backup(part(other, "ntds")), site, other])
    assert not found(verdict, "dependency-not-covered")


# -- system state -------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", ["BOOTABLE_SYSTEM_STATE", "SYSTEM_SERVICE", "USER_DATA"])
@pytest.mark.parametrize("asked", [True, False, None])
def test_system_writers_take_part_together_when_the_system_state_was_asked_for(usage, asked):
    good, system = metadata(NTDS, offered("ntds")), metadata("1" * 8, offered("a"), name="Sys", usage=usage)
    verdict = classify_documents([backup(part(good, "ntds"), system_state=asked), good, system])
    assert bool(found(verdict, "system-state-incomplete")) is (asked is True and usage != "USER_DATA")


def test_a_component_marked_as_no_system_state_may_be_missing():
    system = metadata(
        "1" * 8, offered("a"), offered("b", system_state=False), name="Sys", usage="SYSTEM_SERVICE"
    )
    verdict = classify_documents([backup(part(system, "a")), system])
    assert not found(verdict, "system-state-incomplete")
    verdict = classify_documents([backup(part(system, "b")), system])
    (finding,) = found(verdict, "system-state-incomplete")
    assert "but a did not take part" in finding.found


def test_the_writer_of_the_disk_layout_is_not_missed_in_the_system_state():
    good = metadata(NTDS, offered("ntds"))
    layout = metadata(ASR, offered("ASR"), usage="BOOTABLE_SYSTEM_STATE")
    verdict = classify_documents([backup(part(good, "ntds")), good, layout])
    assert not found(verdict, "system-state-incomplete")


@pytest.mark.parametrize(("mode", "said"), [(True, True), (None, True), (False, False)])
def test_without_component_mode_missing_components_prove_nothing(mode, said):
    names = {"system-state-incomplete", "writer-not-included", "mandatory-component-missing"}
    names |= {"component-not-included"}
    system = metadata("1" * 8, offered("a"), name="Sys", usage="SYSTEM_SERVICE")
    other = metadata(NTDS, offered("b"), offered("c", selectable=False), offered("d"))
    verdict = classify_documents([backup(part(other, "b"), mode=mode), system, other])
    assert names & {one.rule for one in verdict.findings} == (names if said else set())
    assert [one.covered for one in verdict.writers] == [(), ()]


# -- excluded databases -------------------------------------------------------------------------


def test_a_database_whose_files_are_excluded_is_not_covered_though_it_is_listed():
    sql = metadata(
        SQL,
        offered("SRV\\sales", database_files=("d:\\sales.mdf", "e:\\sales.ldf")),
        offered("SRV\\hr", database_files=("d:\\hr.mdf",)),
        excluded=("e:\\sales.ldf",),
    )
    verdict = classify_documents([backup(part(sql, "SRV\\sales", "SRV\\hr")), sql])
    assert verdict.level is Level.APPLICATION_PARTIAL
    assert (verdict.writers[0].covered, verdict.writers[0].uncovered) == (("SRV\\hr",), ("SRV\\sales",))


@pytest.mark.parametrize(
    ("writer_id", "file", "lost"),
    [
        (SQL, "d:\\archive.mdf", True),
        (SQL, "d:\\tempdb.mdf", False),  # is made anew at every start
        (SQL, "d:\\archive.ldf", False),  # its primary file tells
        (NTDS, "c:\\temp.edb", False),
    ],
)
def test_an_excluded_database_without_component_is_reported(writer_id, file, lost):
    writer = metadata(writer_id, offered("one"), excluded=(file,))
    verdict = classify_documents([backup(part(writer, "one")), writer])
    assert verdict.writers[0].covered == ("one",)
    assert verdict.writers[0].uncovered == ((file,) if lost else ())
    assert verdict.level is (Level.APPLICATION_PARTIAL if lost else Level.APPLICATION)


# -- what was sent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "sent", "said"),
    [
        ({}, None, []),
        ({}, APPLICATION, []),
        ({"backup_type": "full"}, None, ["backupType is full, copy is VMware's default"]),
        ({"backup_type": "full"}, RequestedQuiescing("application", "full"), []),
        ({}, RequestedQuiescing("application", "full"), ["backupType is copy, full was requested"]),
        ({"backup_type": "VSS_BT_FULL"}, APPLICATION, []),  # no documented spelling
        ({"backup_type": ""}, APPLICATION, []),
        ({"system_state": False}, APPLICATION, ["bootableSystemStateBackup is no, yes was requested"]),
        ({"system_state": False}, RequestedQuiescing("application", bootable_system_state=False), []),
        ({"partial": True}, None, ["partialFileSupport is yes, no is VMware's default"]),
        ({"partial": None, "system_state": None}, APPLICATION, []),
        ({"mode": False}, APPLICATION, ["selectComponents is no, yes was requested"]),
    ],
)
def test_options_that_differ_from_the_specification_are_warnings(documents, sent, said):
    writer = metadata(NTDS, offered("ntds"))
    verdict = classify_documents([backup(part(writer, "ntds"), **documents), writer], requested=sent)
    assert [one.found for one in found(verdict, "options-differ")] == [f"backup.xml: {text}" for text in said]


def test_without_writers_options_are_not_compared():
    verdict = classify_documents(
        [backup(system_state=False, partial=True)], requested=RequestedQuiescing("file-system")
    )
    assert not found(verdict, "options-differ")


def test_options_are_compared_when_only_writer_documents_exist():
    verdict = classify_documents([backup(partial=True), metadata(NTDS, offered("ntds"))])
    assert len(found(verdict, "options-differ")) == 1


@pytest.mark.parametrize(
    ("kind", "with_writers", "said"),
    [
        ("application", True, ""),
        ("application", False, "application quiescing was requested, writers left no documents"),
        ("file-system", True, "file-system quiescing was requested, writers took part"),
        ("file-system", False, ""),
    ],
)
def test_writers_take_part_exactly_when_they_were_asked_to(kind, with_writers, said):
    writer = metadata(NTDS, offered("ntds"))
    documents = [backup(part(writer, "ntds")), writer] if with_writers else [backup()]
    verdict = classify_documents(documents, requested=RequestedQuiescing(kind))
    assert [one.found for one in found(verdict, "context-differs")] == ([said] if said else [])


def test_documents_that_cannot_be_read_do_not_say_that_no_writer_took_part():
    documents = [backup(part(metadata(NTDS), "ntds")), Unreadable("writer1.xml", "not XML", "line 1")]
    for kind in ("application", "file-system"):
        assert not found(classify_documents(documents, requested=RequestedQuiescing(kind)), "context-differs")


# -- backup types and logs ----------------------------------------------------------------------

ALL_TYPES = 0x1 | 0x2 | 0x8 | 0x10


@pytest.mark.parametrize(
    ("asked", "writer_id", "schema", "effective", "rule", "said"),
    [
        ("copy", SQL, 0x371, "copy", "logs-kept", "base of its differential backups stays"),
        ("full", SQL, 0x371, "full", "logs-changed", "becomes the base"),
        ("differential", SQL, 0x371, "differential", "logs-kept", "last full backup"),
        ("log", SQL, 0x371, "full", "logs-changed", "schema 0x371 lacks and which counts as full"),
        ("incremental", SQL, 0x371, "full", "logs-changed", "becomes the base"),
        ("copy", EXCHANGE, ALL_TYPES, "copy", "logs-kept", "no log is truncated"),
        ("copy", EXCHANGE, 0x3, "full", "logs-changed", "even when this backup fails"),
        ("incremental", EXCHANGE, 0x3, "incremental", "logs-changed", "may truncate its logs"),
        ("copy", NTDS, 0, "full", "counts-as-full", "counts as full"),
        ("full", NTDS, 0, "full", "", ""),
        ("copy", NTDS, 0x10, "copy", "logs-kept", "history stays"),
        ("VSS_BT_COPY", SQL, 0x371, "", "", ""),
    ],
)
def test_each_writer_performs_the_type_that_its_schema_allows(
    asked, writer_id, schema, effective, rule, said
):
    writer = metadata(writer_id, offered("one"), schema=schema, source="TRANSACTION_DB")
    verdict = classify_documents([backup(part(writer, "one"), backup_type=asked), writer])
    about = {one.rule: one.found for one in verdict.findings if "logs-" in one.rule or "counts" in one.rule}
    assert list(about) == ([rule] if rule else [])
    assert said in about.get(rule, "")
    assert verdict.writers[0].effective_backup_type == effective
    assert bool(verdict.writers[0].logs) is ("logs-" in rule)


def test_the_type_that_was_sent_counts_where_the_document_does_not_say_it():
    writer = metadata(SQL, offered("one"), schema=0x371)
    documents = [backup(part(writer, "one"), backup_type="?"), writer]
    sent = RequestedQuiescing("application", "full")
    assert classify_documents(documents, requested=sent).writers[0].effective_backup_type == "full"


def test_a_writer_that_takes_no_part_has_no_backup_type():
    writer, other = metadata(SQL, offered("one"), schema=0x371), metadata(NTDS, offered("ntds"))
    verdict = classify_documents([backup(part(other, "ntds")), writer, other])
    (sql,) = (one for one in verdict.writers if one.writer_id == SQL)
    assert (sql.effective_backup_type, sql.logs) == ("", "")


# -- excluded writers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sql server", "SqlServerWriter", f"{{{SQL.upper()}}}"])
@pytest.mark.parametrize("failing", [True, False])
def test_an_excluded_writer_is_reported_and_does_not_lower_the_level(name, failing):
    sql, other = metadata(SQL, offered("a"), name="SqlServerWriter"), metadata(NTDS, offered("ntds"))
    broken = [part(sql, listed("a", (("aFailureMsg", "x"),)))] if failing else []
    documents = [backup(part(other, "ntds"), *broken), sql, other]
    assert classify_documents(documents).level is Level.APPLICATION_PARTIAL
    verdict = classify_documents(documents, excluded=[name])
    assert verdict.level is Level.APPLICATION
    (finding,) = found(verdict, "writer-excluded")
    assert finding.found.endswith("it took part nonetheless" if failing else "it did not take part")
    (told,) = (one for one in verdict.writers if one.writer_id == SQL)
    assert (told.excluded, told.counts, told.uncovered) == (True, False, ("a",))
    assert verdict.application("SQL Server") is None


def test_excluding_everything_proves_nothing():
    sql = metadata(SQL, offered("a"))
    verdict = classify_documents([backup(part(sql, "a")), sql], excluded=["SQL Server"])
    assert verdict.level is Level.FILE_SYSTEM


def test_nothing_is_excluded_by_an_empty_name():
    unknown = metadata("2" * 8, offered("a"))
    documents = [backup(part(unknown)), unknown]
    assert classify_documents(documents, excluded=["", " "]) == classify_documents(documents)


# -- applications -------------------------------------------------------------------------------


def test_an_application_is_the_sum_of_its_writers():
    first = metadata(SQL, offered("SRV\\a"), name="SqlServerWriter")
    second = metadata(SQL, offered("SRV\\b"), name="SqlServerWriter", instance="j")
    other = metadata("3" * 8, offered("x"), name="Third Party")
    documents = [backup(part(first, "SRV\\a"), part(other, "x")), first, second, other]
    verdict = classify_documents(documents)
    sql = verdict.application("sql server")
    assert sql is not None
    assert (sql.level, sql.writers) == (Level.APPLICATION_PARTIAL, ("SqlServerWriter",))
    assert (sql.covered, sql.uncovered) == (("SRV\\a",), ("SRV\\b",))
    third = verdict.application("Third Party")
    assert third is not None
    assert third.level is Level.APPLICATION
    assert [one["name"] for one in verdict.as_dict()["applications"]] == ["SQL Server", "Third Party"]


def test_a_stranger_cannot_pass_for_a_well_known_application():
    stranger = metadata("3" * 8, offered("x"), name="SQL Server")
    verdict = classify_documents([backup(part(stranger, "x")), stranger])
    assert verdict.application("SQL Server") is None
    assert [one.name for one in verdict.applications] == [f"SQL Server ({'3' * 8})"]


def test_members_of_a_listed_component_are_named_with_it():
    sql = metadata(SQL, offered("SRV"), offered("SRV\\a", selectable=False), offered("SRV\\b"))
    covered = classify_documents([backup(part(sql, "SRV")), sql]).applications[0]
    assert (covered.level, covered.covered) == (Level.APPLICATION, ("SRV", "SRV\\a", "SRV\\b"))
    other = metadata(NTDS, offered("n"))
    missed = classify_documents([backup(part(sql), part(other, "n")), sql, other]).applications[0]
    assert (missed.level, missed.uncovered) == (Level.FILE_SYSTEM, ("SRV", "SRV\\a", "SRV\\b"))


def test_a_doubt_about_a_component_uncovers_those_below_it():
    sql = metadata(
        SQL,
        offered("SRV"),
        offered("SRV\\a", selectable=False, database_files=("d:\\a.mdf",)),
        offered("SRV\\a\\part", selectable=False),
        offered("SRV\\ab", selectable=False),
        excluded=("d:\\a.mdf",),
    )
    told = classify_documents([backup(part(sql, "SRV")), sql]).applications[0]
    assert (told.covered, told.uncovered) == (("SRV", "SRV\\ab"), ("SRV\\a", "SRV\\a\\part"))


@pytest.mark.parametrize(("mode", "level"), [(None, Level.APPLICATION_PARTIAL), (False, Level.FILE_SYSTEM)])
def test_a_doubt_about_the_manifest_lowers_every_application(mode, level):
    sql = metadata(SQL, offered("a"))
    verdict = classify_documents([backup(part(sql, "a"), mode=mode), sql])
    assert (verdict.level, verdict.applications[0].level) == (level, level)


def test_of_contradicting_documents_no_application_is_known():
    sql = metadata(SQL, offered("a"))
    verdict = classify_documents([backup(part(sql, "a")), backup(), sql])
    assert (verdict.level, verdict.applications[0].level) == (Level.UNKNOWN, Level.UNKNOWN)
