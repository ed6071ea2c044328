"""`vadpipe show`: what a stored verdict says of writers, also an old one's, and the manifest as it came."""

import io
import json
import os

import pycdlib
import pytest
import trio
from click.testing import CliRunner

from pipeline import Evidence, KiB
from pipeline.errors import SinkError
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import MACHINE, MemoryDisk, full_path, random_bytes
from vadpipe.cli.findings import stored_verdict_lines
from vadpipe.cli.manifest import write_new
from vadpipe.cli.repository import show_point
from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.classify import classify_manifest

MANIFEST = manifest_zip(Request(), ManifestRecipe(drop_writers=frozenset({"SqlServerWriter"})))


async def published(repository, evidence):
    disk = MemoryDisk(random_bytes(1, 64 * KiB))
    async with repository.open() as store, store.begin(MACHINE) as point:
        receipt = await full_path(disk, point).run()
        return await point.publish(FakeCapture(MACHINE, [disk], "application", {}), [receipt], evidence)


def shown(repository, *arguments):
    done = CliRunner().invoke(
        show_point, [str(repository.path), "latest", *map(str, arguments)], standalone_mode=False
    )
    if done.exception:
        raise done.exception
    return done.stdout


def stored(repository, evidence):
    return trio.run(published, repository, evidence)


def with_manifest(repository):
    verdict = classify_manifest(MANIFEST)
    evidence = Evidence(
        str(verdict.level), False, ["because"], verdict.as_dict(), {"vss-manifest.zip": MANIFEST}
    )
    return stored(repository, evidence)


def test_applications_are_shown_with_their_components_and_no_writer_twice(repository):
    with_manifest(repository)
    lines = shown(repository).splitlines()
    assert "  application registry: application; covered: Registry" in lines
    databases = ", ".join(f"WIN-SQL01\\{name}" for name in ("master", "model", "msdb", "sales"))
    assert f"  application SQL Server: file-system; not covered: {databases}" in lines
    # Nothing is said twice: a writer has a line only when it is part of no application.
    assert not any("writer Registry" in line or "SqlServerWriter" in line for line in lines[4:])
    assert json.loads(shown(repository, "--json"))["quiescing"]["verdict"]["level"] == "application-partial"


@pytest.mark.parametrize("verdict", [{}, {"writers": 3}, {"writers": [3, {}], "applications": {"a": 1}}])
def test_a_verdict_of_another_shape_shows_what_it_has(repository, verdict):
    stored(repository, Evidence("file-system", False, ["a writer failed"], verdict, {}))
    assert "reached file-system" in shown(repository)


def test_applications_come_first_and_long_lists_are_counted_and_control_characters_are_replaced():
    verdict = {
        "writers": [
            {
                "name": "a\x1b[2Jb",
                "coverage": "partly covered",
                "covered": list("abcdefgh"),
                "uncovered": ["i"],
            },
            {"name": "BITS Writer", "coverage": "nothing to cover", "covered": [], "uncovered": []},
        ],
        "applications": [{"name": "SQL Server", "level": "application-partial", "uncovered": ["x"]}],
    }
    assert stored_verdict_lines(verdict) == [
        "  application SQL Server: application-partial; not covered: x",
        "  writer a\ufffd[2Jb: covered: a, b, c, d, e, f and 2 more; not covered: i",
        "  writer BITS Writer: nothing to cover",
    ]


def test_an_older_verdict_without_applications_shows_its_writers():
    writer = {
        "name": "Registry Writer",
        "application": "registry",
        "coverage": "covered",
        "covered": ["Registry"],
    }
    assert stored_verdict_lines({"writers": [writer]}) == [
        "  writer Registry Writer (registry): covered: Registry"
    ]


def test_the_extracted_manifest_has_the_stored_bytes(repository, tmp_path):
    identity = with_manifest(repository)
    shown(repository, "--extract-manifest", tmp_path / "m.zip")
    shown(repository, "--extract-manifest", tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"m.zip": MANIFEST, f"{identity}-vss-manifest.zip": MANIFEST}


def test_nothing_is_overwritten(repository, tmp_path):
    with_manifest(repository)
    (tmp_path / "m.zip").write_bytes(b"dear")
    with pytest.raises(SinkError, match=r"m\.zip exists\..*nothing is overwritten"):
        shown(repository, "--extract-manifest", tmp_path / "m.zip")
    assert (tmp_path / "m.zip").read_bytes() == b"dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.zip", "repository"]


def test_a_point_without_manifest_says_so(repository, tmp_path):
    stored(repository, Evidence("crash", False, [], {}, {}))
    with pytest.raises(SinkError, match="holds no VSS manifest"):
        shown(repository, "--extract-manifest", tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_the_restore_sheet_is_written_whole_and_nothing_is_overwritten(repository, tmp_path):
    identity = with_manifest(repository)
    place = tmp_path / "a" / "sheet"
    shown(repository, "--restore-sheet", place)
    readme = (place / "README.txt").read_text("utf-8-sig")
    assert identity in readme
    assert "because" in readme
    assert (place / "documents" / "vss-manifest.zip").read_bytes() == MANIFEST
    assert "not prepared" in next(place.glob("*SqlServerWriter.txt")).read_text("utf-8-sig")
    with pytest.raises(SinkError, match=r"sheet is not empty\..*--force"):
        shown(repository, "--restore-sheet", place)
    shown(repository, "--restore-sheet", place, "--force")


def test_the_restore_sheet_of_a_name_in_iso_is_an_image_with_the_same_files(repository, tmp_path):
    with_manifest(repository)
    shown(repository, "--restore-sheet", tmp_path / "sheet")
    shown(repository, "--restore-sheet", tmp_path / "sheet.iso")
    image = pycdlib.PyCdlib()
    image.open(str(tmp_path / "sheet.iso"))
    found = {}
    for directory, _, names in image.walk(joliet_path="/"):
        for name in names:
            content = io.BytesIO()
            image.get_file_from_iso_fp(content, joliet_path=f"{directory.rstrip('/')}/{name}")
            found[f"{directory}/{name}".strip("/")] = content.getvalue()
    image.close()
    files = [path for path in (tmp_path / "sheet").rglob("*") if path.is_file()]
    assert found == {path.relative_to(tmp_path / "sheet").as_posix(): path.read_bytes() for path in files}
    with pytest.raises(SinkError, match=r"sheet\.iso exists"):
        shown(repository, "--restore-sheet", tmp_path / "sheet.iso")


def test_a_point_without_documents_has_a_readme_that_says_so(repository, tmp_path):
    stored(repository, Evidence("crash", False, ["the guest was off"], {}, {}))
    shown(repository, "--restore-sheet", tmp_path / "sheet")
    assert [path.name for path in (tmp_path / "sheet").iterdir()] == ["README.txt"]
    assert "the guest was off" in (tmp_path / "sheet" / "README.txt").read_text("utf-8-sig")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SinkError, match="cannot be written: No space left"):
        write_new(tmp_path / "m.zip", b"x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SinkError, match="cannot be written: No such file"):
        write_new(tmp_path / "nowhere" / "m.zip", b"x")
