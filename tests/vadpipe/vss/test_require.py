"""What a job may require of the quiescing, and where verdicts fall short of it."""

import io
import zipfile
from dataclasses import replace

import pytest

from pipeline import ConfigError
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.classify import classify_manifest, classify_unfetched
from vadpipe.vss.require import Require, RequireApplication
from vadpipe.vss.verdict import ApplicationVerdict, Level


class Request:
    context, backup_type, bootable_system_state, partial_file_support = "application", 5, True, False
    timeout_min, vm_name = 15, "web01"


class FileSystem(Request):
    context = "file-system"


def verdict(**recipe):
    return classify_manifest(manifest_zip(Request(), ManifestRecipe(**recipe)))


GOOD = verdict()
NO_SQL_WRITER = verdict(drop_writers=frozenset({"SqlServerWriter"}))
REGISTRY_MISSING = verdict(drop_writers=frozenset({"Registry Writer"}))
REGISTRY_FAILED = verdict(failing_writers=frozenset({"Registry Writer"}))
MASTER_FAILED = verdict(failing_writers=frozenset({"SqlServerWriter"}))
FILE_SYSTEM = classify_manifest(manifest_zip(FileSystem()))
ABSENT = classify_manifest(None)
UNFETCHED = classify_unfetched("403")


def short(verdict, require=Require(), *, asked="application", missing_writer="fail"):  # noqa: B008
    return require.shortfalls(verdict, asked, missing_writer)


@pytest.mark.parametrize(
    ("reached", "suffices_for"),
    [
        (GOOD, {"application", "application-partial", "file-system", "none"}),
        (MASTER_FAILED, {"application-partial", "file-system", "none"}),
        (FILE_SYSTEM, {"file-system", "none"}),
        (ABSENT, {"none"}),
        (UNFETCHED, {"none"}),
    ],
)
def test_a_requirement_is_met_by_the_levels_that_suffice(reached, suffices_for):
    for level in ("application", "application-partial", "file-system", "none"):
        assert (short(reached, Require(level)) == ()) is (level in suffices_for)
        if level in ("application", "file-system", "none"):  # what a job can ask for is what it requires
            assert (short(reached, asked=level) == ()) is (level in suffices_for)


def test_a_shortfall_names_the_level_that_was_required():
    assert short(ABSENT) == ("Quiescing reached crash, but application was requested.",)
    assert short(ABSENT, Require("file-system")) == ("Quiescing reached crash, but file-system is required.",)


@pytest.mark.parametrize(
    ("reached", "suffices"),
    [
        (REGISTRY_MISSING, True),
        (NO_SQL_WRITER, True),
        (REGISTRY_FAILED, False),
        (MASTER_FAILED, False),
        (FILE_SYSTEM, False),
        (UNFETCHED, False),
    ],
)
def test_a_missing_writer_may_be_passed_over_and_nothing_else(reached, suffices):
    assert short(reached)
    assert (short(reached, missing_writer="continue") == ()) is suffices


SALES = Require(applications=(RequireApplication("SQL Server", databases=("sales",)),))


@pytest.mark.parametrize(
    ("database", "reached", "said"),
    [
        ("sales", GOOD, ""),
        ("SALES", GOOD, ""),
        ("win-sql01\\sales", GOOD, ""),
        ("sales", MASTER_FAILED, ""),
        ("sales", REGISTRY_MISSING, ""),  # other applications are not asked about
        ("master", MASTER_FAILED, "required database master is not proven (WIN-SQL01\\master)"),
        ("ales", GOOD, "not in the manifest"),
        ("hr", GOOD, "not in the manifest"),
        ("other\\sales", GOOD, "not in the manifest"),
        ("sales", NO_SQL_WRITER, "is not proven"),
        ("sales", verdict(databases=()), "sql server with sales is required, but no writer of it"),
        ("sales", FILE_SYSTEM, "no writer of it"),
        ("sales", UNFETCHED, "no writer of it"),
    ],
)
def test_named_databases_may_be_required(database, reached, said):
    required = Require(applications=(RequireApplication("sql server", (database,)),))
    told = short(reached, required)
    assert bool(told) is bool(said)
    assert all(said in sentence for sentence in told)


def test_every_database_of_the_required_name_has_to_be_covered():
    reached = verdict(databases=("sales", "x\\sales"), failing_writers=frozenset({"SqlServerWriter"}))
    assert short(reached, SALES) == ("SQL Server: required database sales is not proven (WIN-SQL01\\sales).",)


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        (GOOD, ""),
        (REGISTRY_FAILED, ""),
        (
            MASTER_FAILED,
            "reached application-partial, but application is required; not proven: WIN-SQL01\\master.",
        ),
        (ABSENT, "is required, but no writer"),
    ],
)
def test_a_whole_application_may_be_required(reached, said):
    told = short(reached, Require(applications=(RequireApplication("SQL Server"),)))
    assert bool(told) is bool(said)
    assert all(said in sentence for sentence in told)


def test_a_level_may_be_required_beside_applications():
    both = Require("application", SALES.applications)
    assert short(MASTER_FAILED, SALES) == ()
    assert short(MASTER_FAILED, both) == (
        "Quiescing reached application-partial, but application is required.",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Require("applications"),
        lambda: RequireApplication(" "),
        lambda: RequireApplication("SQL Server", databases="sales"),
        lambda: RequireApplication("SQL Server", databases=("",)),
    ],
)
def test_mistakes_are_found_before_anything_runs(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_without_component_mode_no_database_is_proven():
    data = manifest_zip(Request())
    assert classify_manifest(data).level is Level.APPLICATION
    # The same documents, but for the attribute that says that components mean something.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        documents = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in documents.items():
            archive.writestr(name, content.replace(b'selectComponents="yes"', b""))
    unstated = classify_manifest(buffer.getvalue())
    assert unstated.level is Level.APPLICATION_PARTIAL
    assert any("does not say whether it selects components" in told for told in short(unstated, SALES))


def test_a_database_is_uncovered_when_a_component_below_it_is():
    store = ApplicationVerdict(
        "Exchange",
        Level.APPLICATION_PARTIAL,
        ("Microsoft Exchange Writer",),
        ("Store\\sales", "Store\\sales\\Logs", "Store\\sales-2"),
        ("Store\\sales\\File",),
    )
    reached = replace(GOOD, applications=(store,))
    for database, suffices in (
        ("sales", False),
        ("Store\\sales", False),
        ("sales-2", True),
        ("Store", False),
    ):
        required = Require(applications=(RequireApplication("Exchange", databases=(database,)),))
        assert (short(reached, required) == ()) is suffices, database
