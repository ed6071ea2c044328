"""What lies beside a restored machine for its applications: the sheets, the documents, and what they never say."""

import json
import re
from pathlib import Path

import pytest

from tests.vadpipe.vss.documents_kit import NTDS, SQL
from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import OUTCOMES, ManifestRecipe, manifest_zip, zipped
from vadpipe.vss.advice import ORDER_OF_WORK, WORDS
from vadpipe.vss.classify import classify_manifest
from vadpipe.vss.documents import ComponentKey
from vadpipe.vss.material import MAX_LISTED, FileNames, RestoreMethod, read_locations
from vadpipe.vss.parse import read_manifest
from vadpipe.vss.sheet import MAX_SHEETS, README, PointFacts, restore_sheet

FACTS = PointFacts("web01", "20261127T200000-aa", "2026-11-27T20:00:00+00:00", "application", "application")
ALL = manifest_zip(Request(), OUTCOMES["all-applications"])
SQL_SERVER = frozenset({"SqlServerWriter"})


def sheet(manifest, verdict=None, facts=FACTS):
    """The files; texts as text with plain line ends."""
    if verdict is None:
        verdict = classify_manifest(manifest).as_dict()
    files = restore_sheet(facts, manifest, json.loads(json.dumps(verdict)))
    return {name: text_of(content) if name.endswith(".txt") else content for name, content in files.items()}


def text_of(content):
    assert content.startswith(b"\xef\xbb\xbf")
    assert content.count(b"\n") == content.count(b"\r\n")
    return content.decode("utf-8-sig").replace("\r\n", "\n")


def flat(text):
    """Without the line breaks of the layout."""
    return " ".join(text.split())


def part(text, title):
    """A section's lines, stripped."""
    lines = text.split("\n")
    start = lines.index(title) + 2
    ends = [
        number for number in range(start, len(lines) - 1) if lines[number] and set(lines[number + 1]) == {"-"}
    ]
    end = ends[0] if ends else len(lines)
    return [line.strip() for line in lines[start:end] if line.strip()]


def of_writer(files, word):
    (name,) = [name for name in files if re.match(rf"\d\d-.*{word}", name)]
    return files[name]


@pytest.fixture(scope="module")
def whole():
    return sheet(ALL)


def test_there_is_a_readme_a_sheet_per_writer_and_every_document(whole):
    verdict = classify_manifest(ALL)
    sheets = [name for name in whole if re.fullmatch(r"\d\d-[A-Za-z0-9_-]+\.txt", name)]
    assert next(iter(whole)) == README
    assert len(sheets) == len(verdict.writers) == len(set(sheets))
    documents = {name: content for name, content in whole.items() if name.startswith("documents/")}
    assert documents.pop("documents/vss-manifest.zip") == ALL
    assert len(documents) == len(read_manifest(ALL))
    assert set(whole) == {README, *sheets, *documents, "documents/vss-manifest.zip"}
    for name in sheets:
        assert name in whole[README]
    for name in documents:
        assert name in whole[README]


def test_the_documents_beside_the_sheet_give_the_same_verdict(whole):
    loose = {
        name.removeprefix("documents/"): content for name, content in whole.items() if name.endswith(".xml")
    }
    assert classify_manifest(zipped(loose)).as_dict() == classify_manifest(ALL).as_dict()


def test_the_readme_names_the_level_its_reasons_and_what_was_proven():
    verdict = classify_manifest(ALL)
    text = sheet(ALL, facts=PointFacts("web01", "p", "c", "application", "application", ["all was well"]))[
        README
    ]
    proven = flat(text)
    assert f'"{WORDS}"' in proven
    assert "Asked for: application. Reached: application." in proven
    assert "Application-consistent. " in proven
    assert "- all was well" in proven
    assert f"- {verdict.reason}" in proven


def test_the_readme_gives_the_order_of_work_the_tools_and_the_sign_in(whole):
    text = flat(whole[README])
    places = [text.index(flat(f"{number}. {step}")) for number, step in enumerate(ORDER_OF_WORK, 1)]
    assert places == sorted(places)
    calls = re.findall(
        r"InitializeForRestore|GatherWriterMetadata|PreRestore\.|SetFileRestoreStatus|PostRestore\.|GatherWriterStatus",
        text,
    )
    assert calls[:6] == [
        "InitializeForRestore",
        "GatherWriterMetadata",
        "PreRestore.",
        "SetFileRestoreStatus",
        "PostRestore.",
        "GatherWriterStatus",
    ]
    assert "backup components document: documents/backup.xml" in text
    assert "DiskShadow" in text
    assert "VShadow" in text
    assert "SSPI" in text
    assert "unless the session was recently authenticated" in text
    assert "wbadmin" not in text  # whether it reads foreign documents is not known


def test_a_database_stands_with_its_files_and_what_is_proven_of_it(whole):
    text = of_writer(whole, "SqlServer")
    lines = part(text, "Components and their files")
    at = lines.index("WIN-SQL01\\sales: selected, proven")
    assert lines[at + 1 : at + 3] == ["D:\\MSSQL\\DATA\\sales.mdf", "D:\\MSSQL\\DATA\\sales_log.ldf"]
    assert "restore method: RESTORE_IF_CAN_BE_REPLACED" in flat(text)
    assert "This was a copy backup." in text
    assert "no log is truncated" in flat(text)
    assert "SetAdditionalRestores" in text
    assert f"class id of the writer:     {SQL}" in text
    (document,) = re.findall(r"document of this writer: +(\S+)", text)
    assert b"SqlServerWriter" in whole[document]


def test_active_directory_is_told_of_the_generation_id_and_of_authoritative_restores(whole):
    text = flat(of_writer(whole, "NTDS"))
    for words in ("VM-GenerationID", "USN rollback", "Not authoritative", "ntdsutil", NTDS):
        assert words in text
    assert "Directory Services Restore Mode" in text
    # A copy backup of a writer that does not know copies.
    assert "for it this was a full backup" in text


def test_exchange_is_told_when_its_logs_are_replayed(whole):
    assert "replays its logs in PostRestore" in flat(of_writer(whole, "Exchange"))


def test_applications_that_have_advice_come_first_and_writers_without_components_last(whole):
    names = [name for name in whole if name[:2].isdigit()]
    first = {re.sub(r"^\d\d-|\.txt$", "", name) for name in names[:3]}
    assert first == {"SqlServerWriter", "Microsoft_Exchange_Writer", "NTDS"}
    assert "took no part" in of_writer(whole, "BITS")
    assert names.index(next(name for name in names if "BITS" in name)) > 10


def test_a_failed_writer_says_what_failed():
    files = sheet(manifest_zip(Request(), OUTCOMES["writer-failed"]))
    text = of_writer(files, "SqlServer")
    assert "Some of its components are proven." in text
    assert "failure reported: " in text
    assert ": selected, not proven" in text
    assert "error: " in text
    assert "Application-consistent in part." in files[README]


def test_a_writer_that_the_requester_left_out_was_not_prepared():
    files = sheet(manifest_zip(Request(), OUTCOMES["writer-excluded"]))
    text = flat(of_writer(files, "SqlServer"))
    assert "Nothing of it is proven." in text
    assert "it was not prepared for this snapshot" in text
    assert "WIN-SQL01\\master: not selected, not proven" in text
    assert "The writer took no part in the backup" in text


def test_a_writer_without_its_document_still_has_a_sheet():
    files = sheet(manifest_zip(Request(), OUTCOMES["document-lost"]))
    text = of_writer(files, "SqlServer")
    assert "It left no document." in text
    assert "its files are not known" in text
    assert "document of this writer:    there is none" in text


def test_file_system_quiescing_has_no_sheets_and_says_what_it_means():
    files = sheet(manifest_zip(Request(context="file-system")))
    assert "File-system consistent." in files[README]
    assert "No writer left a document" in files[README]
    assert "If it is a domain controller" in files[README]
    assert set(files) == {README, "documents/vss-manifest.zip", "documents/backup.xml"}


def test_without_a_manifest_a_crash_level_is_explained():
    verdict = classify_manifest(None, absent_reason="the guest was off").as_dict()
    files = sheet(None, verdict, PointFacts("web01", "p", "c", "application", "crash", ["quiescing failed"]))
    assert set(files) == {README}
    text = flat(files[README])
    assert "Crash-consistent. The disks are as if the machine had suddenly lost its power" in text
    assert "there is no manifest: the guest was off" in text
    assert "- quiescing failed" in text
    assert "The restore point holds no VSS documents." in text
    assert "Order of work" not in text


def test_where_nobody_looked_the_sheet_says_so():
    text = flat(sheet(None, {}, PointFacts("web01", "p", "c", "none", None))[README])
    assert "Not verified. Nobody looked" in text
    assert "Reached: not verified." in text


def test_an_older_point_with_a_level_and_no_verdict_keeps_its_level():
    text = sheet(None, {}, PointFacts("web01", "p", "c", "file-system", "file-system"))[README]
    assert "File-system consistent." in text


def test_documents_without_a_verdict_are_judged_now_and_the_sheet_says_so():
    files = sheet(ALL, {})
    assert "they were judged when this sheet was written" in flat(files[README])
    assert "All its components are proven." in of_writer(files, "SqlServer")


@pytest.mark.parametrize(
    "verdict",
    [
        {"level": "application", "writers": 3, "findings": {}},
        {"level": "better", "writers": [{"name": "Old Writer", "covered": ["a\\b"]}]},
        {"level": "application", "writers": [{"writer_id": SQL, "name": "\ud800\x1b[2J"}]},
    ],
)
@pytest.mark.parametrize("manifest", [None, ALL])
def test_a_verdict_of_an_older_shape_says_what_it_has(manifest, verdict):
    files = sheet(manifest, verdict)
    assert README in files
    if "Old Writer" in str(verdict):
        assert "a\\b: " in of_writer(files, "Old_Writer")
    if manifest is not None:  # what the documents say stands beside what the verdict says
        assert any("WIN-SQL01\\sales: selected" in files[name] for name in files if name.endswith(".txt"))


def test_a_linux_guest_has_its_document_and_no_word_of_domain_controllers():
    files = sheet(manifest_zip(Request(), OUTCOMES["linux"]))
    assert set(files) == {README, "documents/quiesce-manifest.xml"}
    assert "Crash-consistent." in files[README]
    assert "domain controller" not in files[README]


def test_a_broken_manifest_lies_there_whole_and_the_sheet_says_why():
    manifest = manifest_zip(Request(), OUTCOMES["broken"])
    files = sheet(manifest)
    assert files["documents/vss-manifest.zip"] == manifest
    assert "Not everything can be read: it is not a whole zip file" in flat(files[README])
    assert "Unknown. " in files[README]


@pytest.mark.parametrize(
    "outcome",
    [pytest.param(one, marks=pytest.mark.slow) if one == "huge" else one for one in sorted(OUTCOMES)],
)
@pytest.mark.parametrize("asked", ["application", "file-system"])
def test_no_text_says_that_an_application_came_back(outcome, asked):
    manifest = manifest_zip(Request(context=asked), OUTCOMES[outcome])
    for name, text in sheet(manifest).items():
        if name.endswith(".txt"):
            claims = re.findall(r"\bapplications?\b[^.]{0,40}\brestored\b", flat(text), re.IGNORECASE)
            assert claims == [], name
        assert "application" not in name


def test_a_long_list_of_files_is_cut_and_counted():
    files = sheet(manifest_zip(Request(), ManifestRecipe(huge=1_000)))
    lines = part(of_writer(files, "System_Writer"), "Components and their files")
    assert sum(line.endswith(".dll") for line in lines) == 2 * MAX_LISTED
    assert sum("400 file entries more" in line for line in lines) == 2


def test_the_locations_are_those_of_the_document():
    document = zipped_document(ALL, b"SqlServerWriter")
    found = read_locations(document)
    assert found.method == RestoreMethod("RESTORE_IF_CAN_BE_REPLACED", "never", "no")
    key = ComponentKey.of("WIN-SQL01", "sales")
    assert [entry.path for entry in found.files[key]] == [
        "D:\\MSSQL\\DATA\\sales.mdf",
        "D:\\MSSQL\\DATA\\sales_log.ldf",
    ]
    assert found.counted[key] == 2
    assert read_locations(document[:-100]).files == {}


def zipped_document(manifest, words):
    files = restore_sheet(FACTS, manifest, {})
    return next(
        content for name, content in files.items() if name.endswith(".xml") and words in content[:600]
    )


def test_names_that_a_guest_gave_make_no_paths():
    names = FileNames(set())
    given = ["a/b.xml", "A\\B.XML", "con.xml", "...", "x" * 200 + ".xml", "naïve\u202e.xml", "NUL", "b" * 60]
    made = [names.of(one) for one in given]
    assert made[:4] == ["a_b.xml", "A_B-2.XML", "_con.xml", "document"]
    assert len({one.lower() for one in made}) == len(made)
    for one in made:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", one)


def test_hostile_names_of_members_writers_and_files_are_cleaned():
    hostile = manifest_zip(Request())
    documents = {"dir/backup.xml": zipped_document(hostile, b"BACKUP_COMPONENTS")}
    writer = zipped_document(hostile, b"SqlServerWriter")
    documents["dir/con"] = writer.replace(b"SqlServerWriter", "..\\..\u202ecod/exe".encode()).replace(
        b"sales_log.ldf", b"&#10;==&#13;x.ldf"
    )
    files = sheet(zipped(documents))
    assert all(re.fullmatch(r"(documents/)?[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in files)
    assert {"documents/dir_backup.xml", "documents/dir_con"} <= set(files)
    text = of_writer(files, "cod_exe")
    assert "\u202e" not in text
    assert "D:\\MSSQL\\DATA\\==\ufffdx.ldf" in text


@pytest.mark.slow
def test_thousands_of_writers_get_a_bounded_number_of_sheets():
    verdict = {
        "level": "application-partial",
        "writers": [
            {"writer_id": f"{number}", "instance_id": "i", "name": f"w{number}", "covered": ["c"] * 3}
            for number in range(2_000)
        ],
    }
    files = sheet(None, verdict)
    assert len(files) == MAX_SHEETS + 1
    assert f"There are {2_000 - MAX_SHEETS:,} more writers without a sheet" in flat(files[README])


def test_nothing_in_the_product_or_its_pages_says_so_either():
    root = Path(__file__).parents[3]
    places = [root / name for name in ("pipeline", "stages", "sinks", "vadpipe", "docs", "examples")]
    texts = [path for place in places for path in place.rglob("*") if path.suffix in (".py", ".md", ".pyi")]
    texts += [root / "README.md", root / "CHANGELOG.md"]
    assert len(texts) > 200
    claim = re.compile(
        r"\bapplications?\s+(?:(?:is|are|was|were|has been|have been)\s+)?restored\b", re.IGNORECASE
    )
    assert [path for path in texts if claim.search(path.read_text())] == []
