"""The generator's manifests: xmllint reads them, ids agree, and the same recipe gives the same bytes."""

import io
import shutil
import subprocess
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from vadpipe.lab.vss.draft import Request
from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.writers import WELL_KNOWN_WRITERS


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def test_file_system_quiescing_leaves_exactly_one_member():
    documents = members(manifest_zip(Request(context="file-system")))
    assert list(documents) == ["backup.xml"]
    assert len(ElementTree.fromstring(documents["backup.xml"])) == 0


def test_application_quiescing_leaves_a_document_per_writer_with_agreeing_ids():
    documents = members(manifest_zip(Request()))
    roots = {name: ElementTree.fromstring(data) for name, data in documents.items()}
    backup = roots.pop("backup.xml")
    assert local(backup) == "BACKUP_COMPONENTS"
    assert {local(root) for root in roots.values()} == {"WRITER_METADATA"}
    told = {
        (root[0].attrib["writerId"].lower(), root[0].attrib["instanceId"].lower()) for root in roots.values()
    }
    listed = {(writer.attrib["writerId"], writer.attrib["instanceId"]) for writer in backup}
    assert (len(told), len(listed)) == (11, 8)
    assert listed < told
    for root in roots.values():
        known = WELL_KNOWN_WRITERS[root[0].attrib["writerId"].lower()]
        assert known.name == root[0].attrib["friendlyName"]


@pytest.mark.parametrize(
    ("number", "spelled"), [(1, "full"), (2, "incremental"), (3, "differential"), (4, "log"), (5, "copy")]
)
def test_the_request_shows_in_the_backup_document(number, spelled):
    request = Request(backup_type=number, bootable_system_state=False, partial_file_support=True)
    root = ElementTree.fromstring(members(manifest_zip(request))["backup.xml"])
    told = {
        name: root.attrib[name] for name in ("backupType", "bootableSystemStateBackup", "partialFileSupport")
    }
    assert told == {"backupType": spelled, "bootableSystemStateBackup": "no", "partialFileSupport": "yes"}


def test_the_same_request_and_recipe_give_the_same_bytes():
    recipe = ManifestRecipe(seed=3, failing_writers=frozenset({"WMI Writer"}))
    assert manifest_zip(Request(), recipe) == manifest_zip(Request(), replace(recipe))
    assert manifest_zip(Request(), recipe) != manifest_zip(Request(), replace(recipe, seed=4))
    assert manifest_zip(Request(), recipe) != manifest_zip(Request(vm_name="web02"), recipe)


def test_the_documents_have_the_quirks_of_real_ones():
    documents = members(manifest_zip(Request()))
    text = b"".join(documents.values()).decode()
    assert 'writerId="D61D61C8-D73A-4EEE-8CDD-F6F9786B7124"' in text
    assert "harddisk0.\r\nIt holds" in text
    assert 'BACKUP_METADATA xmlns="" metadata="' in text
    backup = ElementTree.fromstring(documents["backup.xml"])
    assert max(len(one.attrib["metadata"]) for one in backup.iter("BACKUP_METADATA")) > 10_900


def test_an_unknown_writer_in_a_recipe_is_named():
    with pytest.raises(ValueError, match=r"no such writer: Registry\. Known: .*Registry Writer"):
        ManifestRecipe(drop_writers=frozenset({"Registry"}))


@pytest.mark.parametrize(
    "recipe",
    [
        ManifestRecipe(),
        ManifestRecipe(declaration="UTF-8", bom=True, databases=('q"<&>', "Grüße")),
        ManifestRecipe(encoding="utf-16-le", bom=True),
        ManifestRecipe(encoding="utf-16-be", bom=True, declaration="UTF-16"),
        ManifestRecipe(failing_writers=frozenset({"SqlServerWriter"}), huge=2000),
    ],
)
@pytest.mark.parametrize("context", ["application", "file-system"])
def test_xmllint_accepts_every_document(recipe, context, tmp_path):
    xmllint = shutil.which("xmllint")
    if xmllint is None:
        pytest.skip("xmllint is not installed")
    for name, data in members(manifest_zip(Request(context=context), recipe)).items():
        (tmp_path / name).write_bytes(data)
    files = sorted(str(path) for path in tmp_path.iterdir())
    result = subprocess.run(
        [xmllint, "--noout", "--nonet", *files], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_encodings_that_standard_parsers_refuse_change_nothing_but_the_encoding(encoding):
    plain = members(manifest_zip(Request()))
    odd = members(manifest_zip(Request(), ManifestRecipe(encoding=encoding, trailing_nul=True)))
    assert {name: data.decode(encoding).removesuffix("\0").encode() for name, data in odd.items()} == plain
