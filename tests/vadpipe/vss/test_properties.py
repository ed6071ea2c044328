"""What must not matter does not, and less evidence never proves more.

The reshaping here goes through the standard library's parser and a writer of its own, so it shares no code with
the generator and the classifier.
"""

import io
import random
import re
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vadpipe.lab.vss.recipe import ManifestRecipe, manifest_zip
from vadpipe.vss.classify import classify_documents, classify_manifest
from vadpipe.vss.documents import (
    BackupComponent,
    BackupComponents,
    BackupWriter,
    Dependency,
    WriterComponent,
    WriterMetadata,
)
from vadpipe.vss.evidence import WriterEvidence
from vadpipe.vss.requested import BACKUP_TYPES, RequestedQuiescing
from vadpipe.vss.require import Require, RequireApplication
from vadpipe.vss.verdict import Level, Verdict

GUID = re.compile(r"\{?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?")
REGISTRY = "afbab4a2-367d-4d15-a586-71dbb18f8485"
NAMES = ["SqlServerWriter", "Registry Writer", "System Writer", "Task Scheduler Writer", "ASR Writer"]
NOTHING_LOST = frozenset({"BITS Writer", "Shadow Copy Optimization Writer", "ASR Writer"})
some_names = st.frozensets(st.sampled_from(NAMES), max_size=3)
recipes = st.builds(
    ManifestRecipe,
    seed=st.integers(0, 1000),
    databases=st.lists(st.sampled_from(["master", "hr", "sales", 'q"<&>', "Grüße"]), unique=True),
    drop_writers=some_names,
    failing_writers=some_names,
    huge=st.just(4),
    excluded_databases=st.lists(st.sampled_from(["archive", "tempdb", "hr"]), max_size=2),
)
knowledge = st.fixed_dictionaries(
    {
        "requested": st.none()
        | st.builds(
            RequestedQuiescing,
            st.sampled_from(["application", "file-system"]),
            st.sampled_from(sorted(BACKUP_TYPES)),
            st.booleans(),
            st.booleans(),
        ),
        "excluded": st.lists(
            st.sampled_from(["SQL Server", "registry writer", "no such writer"]), max_size=2
        ),
    }
)
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-16"])
patient = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)


class Request:
    context = "application"
    bootable_system_state = True
    partial_file_support = False
    timeout_min = 15
    vm_name = "web01"

    def __init__(self, backup_type=5):
        self.backup_type = backup_type


def unzipped(data: bytes) -> dict[str, ElementTree.Element]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: ElementTree.fromstring(archive.read(name)) for name in archive.namelist()}


def zipped(documents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in documents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def rewritten(root: ElementTree.Element, rng: random.Random, encoding: str) -> bytes:
    """The same document in another outfit."""
    prefix = rng.choice(["", "v:", "anything-else:"])
    declaration = rng.choice(["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-16"?>'])
    text = declaration + _outfit(root, prefix, rng, top=True) + rng.choice(["", "\0", "\n"])
    return text.encode(encoding)


def _outfit(element: ElementTree.Element, prefix: str, rng: random.Random, *, top: bool = False) -> str:
    namespace, _, name = element.tag.rpartition("}")
    prefix = prefix if namespace else ""
    attributes = [(key, _guid_outfit(value, rng)) for key, value in element.attrib.items()]
    if top:
        attributes.append((f"xmlns:{prefix[:-1]}" if prefix else "xmlns", namespace.lstrip("{")))
        attributes.append(("unknownAttribute", "x"))
    rng.shuffle(attributes)
    told = "".join(
        f"{rng.choice([' ', '  ', chr(10)])}{key}={_quoted(value, rng)}" for key, value in attributes
    )
    inside = "".join(_outfit(child, prefix, rng) for child in element)
    return f"<{prefix}{name}{told}>{rng.choice(['', '<!-- -->', ' '])}{inside}</{prefix}{name}>"


def _quoted(value: str, rng: random.Random) -> str:
    safe = value.replace("&", "&amp;").replace("<", "&lt;")
    return f"'{safe}'" if rng.random() < 0.5 and "'" not in safe else '"' + safe.replace('"', "&#34;") + '"'


def _guid_outfit(value: str, rng: random.Random) -> str:
    if not GUID.fullmatch(value):
        return value
    bare = value.strip("{}")
    return rng.choice([bare.upper(), bare.lower(), bare.title(), "{" + bare.upper() + "}"])


@pytest.mark.slow
@patient
@given(recipes, encodings, st.integers(1, 5), knowledge, st.integers(0, 1 << 32).map(random.Random))
def test_the_form_of_a_document_never_changes_the_verdict(recipe, encoding, backup_type, known, rng):
    roots = unzipped(manifest_zip(Request(backup_type), recipe))
    add_dependencies(roots, rng)
    original = zipped({name: ElementTree.tostring(root) for name, root in roots.items()})
    documents = [(name, rewritten(root, rng, encoding)) for name, root in roots.items()]
    reshaped = classify_manifest(zipped(dict(documents)), **known)
    assert reshaped == classify_manifest(original, **known)
    rng.shuffle(documents)
    renamed = classify_manifest(zipped({f"x{n}.bin": data for n, (_, data) in enumerate(documents)}), **known)
    assert renamed.level is reshaped.level
    assert {writer.covered for writer in renamed.writers} == {writer.covered for writer in reshaped.writers}


def add_dependencies(roots: dict[str, ElementTree.Element], rng: random.Random) -> None:
    """Some components need one of the Registry Writer, which may have been dropped."""
    for root in roots.values():
        for component in root.iter("{x-schema:#VssWriterMetadataInfo}FILE_GROUP"):
            if rng.random() < 0.3:
                named = {"writerId": REGISTRY, "logicalPath": "", "componentName": "Registry"}
                ElementTree.SubElement(component, "{x-schema:#VssWriterMetadataInfo}DEPENDENCY", named)


def removals(backup: ElementTree.Element) -> list[tuple[ElementTree.Element, ElementTree.Element]]:
    """(parent, child) of every writer and every component."""
    return [(backup, writer) for writer in backup] + [
        (writer, component) for writer in backup for component in writer
    ]


@pytest.mark.slow
@patient
@given(recipes, st.data())
def test_taking_things_out_of_the_backup_document_never_raises_the_level(recipe, data):
    original = manifest_zip(Request(), recipe)
    documents = unzipped(original)
    level = classify_manifest(original).level
    while choices := removals(documents["backup.xml"]):
        parent, child = data.draw(st.sampled_from(choices))
        parent.remove(child)
        fewer = classify_manifest(
            zipped({name: ElementTree.tostring(root) for name, root in documents.items()})
        )
        assert fewer.level <= level
        level = fewer.level
    assert level is Level.FILE_SYSTEM


@pytest.mark.parametrize("index", range(8 + 12))
def test_every_single_writer_and_component_matters(index):
    documents = unzipped(manifest_zip(Request()))
    choices = removals(documents["backup.xml"])
    assert len(choices) == 8 + 12
    parent, child = choices[index]
    parent.remove(child)
    verdict = classify_manifest(
        zipped({name: ElementTree.tostring(root) for name, root in documents.items()})
    )
    assert verdict.level is Level.APPLICATION_PARTIAL
    assert [writer for writer in verdict.writers if writer.counts and writer.uncovered]


@pytest.mark.parametrize("number", range(1, 12))
def test_a_missing_writer_document_never_leaves_the_level_when_it_was_listed(number):
    documents = unzipped(manifest_zip(Request()))
    lost = documents.pop(f"writer{number}.xml")
    name = lost[0].attrib["friendlyName"]
    verdict = classify_manifest(
        zipped({name: ElementTree.tostring(root) for name, root in documents.items()})
    )
    expected = Level.APPLICATION if name in NOTHING_LOST else Level.APPLICATION_PARTIAL
    assert verdict.level is expected


# -- any tree of components, as values ----------------------------------------------------------

CLASSES = ["a65faa63-5ea8-4ebc-9dbd-a0c4db26912a", "b2014c9e-8711-4c5c-a5a9-3cf384484757", "0" * 8]
places = st.tuples(st.sampled_from(["", "a", "a\\b", "c"]), st.sampled_from(["a", "b", "c", "sales"]))
components = st.builds(
    lambda place, selectable, dependencies, files: WriterComponent(  # type: ignore[call-arg]
        "filegroup",
        *place,
        selectable,
        1,
        dependencies=tuple(dependencies),
        database_files=tuple(files),
    ),
    places,
    st.booleans(),
    st.lists(
        st.builds(lambda of, place: Dependency(of, *place), st.sampled_from(CLASSES), places), max_size=1
    ),
    st.lists(st.sampled_from(["d:\\1.mdf", "d:\\2.mdf"]), max_size=1),
)
offers = st.lists(
    components, min_size=1, max_size=6, unique_by=lambda one: (one.logical_path.lower(), one.name.lower())
)


@st.composite
def manifests(draw: st.DrawFn) -> tuple[BackupComponents, tuple[WriterMetadata, ...]]:
    """Writers with any tree of components, of which any are listed; only those that have to be listed may fail."""
    told, listed = [], []
    for number in range(draw(st.integers(1, 4))):
        metadata = WriterMetadata(
            f"w{number}.xml",
            draw(st.sampled_from(CLASSES)),
            f"instance-{number}",
            "",
            f"Writer {number}",
            draw(st.sampled_from(["USER_DATA", "SYSTEM_SERVICE"])),
            "TRANSACTION_DB",
            draw(st.sampled_from([0, 0x10, 0x371])),
            tuple(draw(offers)),
            tuple(draw(st.lists(st.sampled_from(["d:\\1.mdf", "d:\\3.mdf"]), max_size=1))),
        )
        explicit = {one.key for one in WriterEvidence("", "", None, metadata).explicit}
        included = [one for one in metadata.components if draw(st.integers(0, 3))]
        told.append(metadata)
        listed.append(
            BackupWriter(
                metadata.writer_id,
                metadata.instance_id,
                "",
                metadata.backup_schema,
                tuple(
                    BackupComponent(
                        one.logical_path,
                        one.name,
                        "filegroup",
                        False if one.key in explicit and draw(st.integers(0, 5)) == 0 else None,
                        True,
                        True,
                        (),
                    )
                    for one in included
                ),
                (("aFailureMsg", "x"),) if draw(st.integers(0, 7)) == 0 else (),
            )
        )
    mode = draw(st.sampled_from([True, True, True, None]))
    backup_type = draw(st.sampled_from([*sorted(BACKUP_TYPES), "?"]))
    return BackupComponents("backup.xml", mode, True, False, backup_type, tuple(listed)), tuple(told)


def fewer(backup: BackupComponents) -> list[BackupComponents]:
    """The document without one writer or one component, each in turn."""
    without = []
    for number, writer in enumerate(backup.writers):
        others = backup.writers[:number], backup.writers[number + 1 :]
        without.append(replace(backup, writers=(*others[0], *others[1])))
        for gone in writer.components:
            kept = replace(writer, components=tuple(one for one in writer.components if one is not gone))
            without.append(replace(backup, writers=(*others[0], kept, *others[1])))
    return without


def covered(verdict: Verdict) -> set[tuple[tuple[str, str], str]]:
    return {(writer.ids, path) for writer in verdict.writers for path in writer.covered}


REQUIREMENTS = [
    Require("application"),
    Require("application-partial"),
    Require(applications=(RequireApplication("SQL Server"),)),
    Require(applications=(RequireApplication("SQL Server", ("sales",)),)),
]


@pytest.mark.slow
@settings(parent=patient, max_examples=150)
@given(manifests(), knowledge)
def test_less_in_the_backup_document_never_proves_more(manifest, known):
    backup, told = manifest
    before = classify_documents([backup, *told], **known)
    for less in fewer(backup):
        after = classify_documents([less, *told], **known)
        assert after.level <= before.level
        assert covered(after) <= covered(before)
        assert {one.name for one in after.applications} == {one.name for one in before.applications}
        for one in after.applications:
            assert one.level <= before.application(one.name).level
        for require in REQUIREMENTS:
            if require.shortfalls(before, "application", "fail"):
                assert require.shortfalls(after, "application", "fail")
