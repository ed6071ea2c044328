"""What must not matter does not, and less evidence never proves more.

The reshaping here goes through the standard library's parser and a writer of its own, so it shares no code with
the generator and the classifier.
"""

import io
import random
import re
import zipfile
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.vss import ManifestRecipe, manifest_zip
from stages.vss.classify import classify_manifest
from stages.vss.verdict import Level

GUID = re.compile(r"\{?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?")
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
)
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-16"])
patient = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)


class Request:
    context = "application"
    backup_type = 5
    bootable_system_state = True
    partial_file_support = False
    timeout_min = 15
    vm_name = "web01"


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
@given(recipes, encodings, st.randoms(use_true_random=False))
def test_the_outfit_never_changes_the_verdict(recipe, encoding, rng):
    original = manifest_zip(Request(), recipe)
    documents = [(name, rewritten(root, rng, encoding)) for name, root in unzipped(original).items()]
    reshaped = classify_manifest(zipped(dict(documents)))
    assert reshaped == classify_manifest(original)
    rng.shuffle(documents)
    renamed = classify_manifest(zipped({f"x{n}.bin": data for n, (_, data) in enumerate(documents)}))
    assert renamed.level is reshaped.level
    assert {writer.covered for writer in renamed.writers} == {writer.covered for writer in reshaped.writers}


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
