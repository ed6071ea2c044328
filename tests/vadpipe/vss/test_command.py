"""`vadpipe manifest`: every kind of path, what people and machines are told, and the exit codes."""

import io
import json
import re
import subprocess
import sys
import zipfile

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline.errors import SourceError
from vadpipe.cli.findings import verdict_lines, verdict_table
from vadpipe.cli.manifest import LEVELS, manifest
from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import OUTCOMES, ManifestRecipe, manifest_zip, zipped
from vadpipe.vss.classify import DECISIONS, classify_manifest
from vadpipe.vss.rules import ALL_RULES

REQUEST = Request()
SQL = ManifestRecipe(drop_writers=frozenset({"SqlServerWriter"}))


def run(*arguments):
    """(exit code, standard output, standard error)."""
    done = CliRunner().invoke(manifest, [*map(str, arguments)], standalone_mode=False)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.return_value, done.stdout, done.stderr


def told(*arguments):
    code, out, _ = run(*arguments, "--json")
    return code, json.loads(out)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "web01-vss_manifests1.zip"
    path.write_bytes(manifest_zip(REQUEST))
    return path


def test_an_application_consistent_zip_exits_with_0(archive):
    code, document = told(archive)
    assert code == 0
    (one,) = document["manifests"]
    assert (one["path"], one["level"], one["satisfied"]) == (str(archive), "application", True)
    assert one == {
        "path": str(archive),
        "satisfied": True,
        **json.loads(json.dumps(classify_manifest(archive.read_bytes()).as_dict())),
    }


@pytest.mark.parametrize("require", LEVELS)
@pytest.mark.parametrize("recipe", [ManifestRecipe(), SQL])
@pytest.mark.parametrize("context", ["application", "file-system"])
def test_the_exit_code_depends_on_the_required_level(tmp_path, require, recipe, context):
    path = tmp_path / "m.zip"
    path.write_bytes(manifest_zip(Request() if context == "application" else FileSystem(), recipe))
    level = classify_manifest(path.read_bytes()).level.value
    order = ["crash", "file-system", "application-partial", "application"]
    expected = 0 if order.index(level) >= order.index(require) else 3
    assert told(path, "--require", require)[0] == expected


class FileSystem(Request):
    context = "file-system"


def test_people_see_for_each_writer_what_is_covered_and_why_not(tmp_path):
    path = tmp_path / "m.zip"
    path.write_bytes(manifest_zip(REQUEST, SQL))
    code, out, _ = run(path)
    assert code == 3
    lines = out.splitlines()
    assert lines[0].startswith(f"{path}: application-partial: 7 writers")
    assert "  covered          Registry Writer (registry): Registry" in lines
    at = lines.index("  not covered      SqlServerWriter (SQL Server)")
    assert "it was not frozen [writer-not-included]" in lines[at + 1]
    assert lines[at + 2] == (
        "    not covered: WIN-SQL01\\master, WIN-SQL01\\model, WIN-SQL01\\msdb, WIN-SQL01\\sales"
    )


def test_the_table_on_a_terminal_says_the_same():
    verdict = classify_manifest(manifest_zip(REQUEST, OUTCOMES["writer-failed"]))
    screen = io.StringIO()
    Console(width=400, file=screen).print(verdict_table("m.zip", verdict))
    shown = screen.getvalue()
    for line in verdict_lines("m.zip", verdict):
        told = re.sub("^(covered|not covered|partly covered|nothing to cover) +", "", line.strip())
        for part in told.split("): ") if "[" not in told else [told]:
            assert part.rstrip(")") in shown
        assert line.strip()[: -len(told)].strip() in shown


def test_control_characters_from_a_guest_are_replaced():
    hostile = manifest_zip(REQUEST, ManifestRecipe(databases=("a\x9b2Jb", "c\nd", "e\u202ef")))
    verdict = classify_manifest(hostile)
    assert any("\x9b" in path for writer in verdict.writers for path in writer.covered)
    assert all(line.isprintable() for line in verdict_lines("m.zip", verdict))


def test_loose_documents_of_a_directory_are_one_manifest(tmp_path):
    for number, part in enumerate(parts(SQL)):
        (tmp_path / f"{number}.xml").write_bytes(part)
    (tmp_path / ".hidden").write_bytes(b"no document")
    code, document = told(tmp_path)
    assert (code, [one["level"] for one in document["manifests"]]) == (3, ["application-partial"])
    (tmp_path / "notes.txt").write_bytes(b"no document")
    assert "notes.txt cannot be read" in run(tmp_path)[1]


def parts(recipe):
    with zipfile.ZipFile(io.BytesIO(manifest_zip(REQUEST, recipe))) as opened:
        return [opened.read(name) for name in opened.namelist()]


def test_each_zip_of_a_directory_is_a_manifest_and_the_worst_counts(tmp_path):
    (tmp_path / "1.zip").write_bytes(manifest_zip(REQUEST))
    (tmp_path / "2.zip").write_bytes(manifest_zip(REQUEST, SQL))
    code, document = told(tmp_path)
    assert code == 3
    assert [one["level"] for one in document["manifests"]] == ["application", "application-partial"]
    (tmp_path / "3.zip").write_bytes(manifest_zip(REQUEST, OUTCOMES["broken"]))
    code, out, errors = run(tmp_path)
    assert code == 1
    assert "1.zip: application:" in out
    assert "3.zip: The VSS manifest cannot be read: it is not a whole zip file" in errors


def test_a_single_document_is_classified_by_its_root_element(tmp_path):
    path = tmp_path / "quiesce.xml"
    path.write_bytes(manifest_zip(REQUEST, OUTCOMES["linux"]))
    code, document = told(path)
    assert (code, document["manifests"][0]["level"]) == (3, "crash")
    path.write_bytes(parts(ManifestRecipe())[1])
    code, document = told(path)
    assert (code, document["manifests"][0]["findings"][0]["rule"]) == (3, "backup-document-missing")


@pytest.mark.parametrize("content", [b"", b"no XML", b"<a>", manifest_zip(REQUEST)[:5000]])
def test_an_unreadable_manifest_exits_with_1(tmp_path, content):
    path = tmp_path / "m.zip"
    path.write_bytes(content)
    code, document = told(path)
    assert (code, document["manifests"][0]["level"]) == (1, "unknown")
    assert document["manifests"][0]["unreadable"] in run(path)[2]


def test_files_are_not_read_beyond_the_bounds(tmp_path, monkeypatch):
    path = tmp_path / "m.zip"
    path.write_bytes(manifest_zip(REQUEST))
    monkeypatch.setattr("vadpipe.cli.manifest.MAX_ARCHIVE_SIZE", 100)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("read"))
    code, document = told(path)
    assert code == 1
    assert "are no manifest" in document["manifests"][0]["unreadable"]


def test_no_such_file_and_an_empty_directory_are_errors(tmp_path):
    with pytest.raises(SourceError, match="nowhere cannot be read: No such file"):
        run(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no manifest"):
        run(tmp_path)


def test_the_rules_are_listed():
    code, document = told("--rules")
    assert code == 0
    assert [one["id"] for one in document["rules"]] == [rule.id for rule in ALL_RULES]
    assert [one["id"] for one in document["decisions"]] == [decision.id for decision in DECISIONS]
    assert all(all(one.values()) for one in document["rules"] + document["decisions"])
    text = run("--rules")[1]
    assert all(rule.wanted in text and rule.source in text for rule in ALL_RULES)


def test_a_missing_path_and_an_unknown_level_are_usage_errors():
    for arguments in ([], ["--require", "unknown", "x"]):
        assert CliRunner().invoke(manifest, arguments).exit_code == 2


@pytest.mark.slow
def test_the_command_runs_as_a_process(tmp_path):
    path = tmp_path / "m.zip"
    path.write_bytes(zipped({"a.xml": b"<a/>"}))
    code = "import sys; from vadpipe.cli.manifest import manifest; sys.exit(manifest(standalone_mode=False))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"{path}: unknown: no readable backup components document\n"


def test_a_cabinet_is_called_a_cabinet(tmp_path):
    path = tmp_path / "diskshadow.cab"
    path.write_bytes(b"MSCF" + bytes(100))
    code, document = told(path)
    assert code == 1
    assert "it is a cabinet (.cab); extract it" in document["manifests"][0]["unreadable"]
