"""Manifests that hypothesis draws from the grammar of the documents: right names, ids that meet by chance."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .elements import Element, Outfit
from .recipe import zipped

_IDS = (
    "a65faa63-5ea8-4ebc-9dbd-a0c4db26912a",
    "{BE000CBE-11FE-4426-9C58-531AA6355FC4}",
    "aaaaaaaa-0000-4000-8000-000000000001",
    "AAAAAAAA-0000-4000-8000-000000000001",
    "",
    "no id",
)
_PLACES = ("", "a", "A", "a\\b", "a\\b\\c", "\\", "\\\\host\\a", "\u0130", "\U0001f600")
_WORDS = ("yes", "no", "Yes", "", "maybe", "copy", "full", "filegroup", "database", "0", "16", "x")
_NAMES = {
    _IDS: ("writerId", "instanceId", "snapshotSetId"),
    _PLACES: ("logicalPath", "componentName", "path", "filespec"),
    _WORDS: (
        "selectComponents", "backupType", "bootableSystemStateBackup", "partialFileSupport", "backupSchema",
        "selectable", "componentType", "backupSucceeded", "componentFlags", "usage", "metadata", "backupStamp",
        "anyFailureMsg", "friendlyName", "instanceName",
    ),
}  # fmt: skip
# Drawn as pairs: a dictionary strategy of 22 optional keys takes a hundred times as long.
_PAIRS = [(name, value) for values, names in _NAMES.items() for name in names for value in values]
_ATTRIBUTES = st.lists(st.sampled_from(_PAIRS), max_size=6).map(dict)
_IDENTITIES = st.sampled_from([{"writerId": one, "instanceId": other} for one in _IDS for other in _IDS])
# Where an element belongs: how deep below the root.
_DEPTHS = {
    "WRITER_COMPONENTS": 1, "COMPONENT": 2, "BACKUP_METADATA": 3, "IDENTIFICATION": 1, "BACKUP_LOCATIONS": 1,
    "FILE_GROUP": 2, "DATABASE": 2, "EXCLUDE_FILES": 2, "FILE_LIST": 3, "DATABASE_FILES": 3,
    "DATABASE_LOGFILES": 3, "DEPENDENCY": 3, "productVersion": 1, "SNAPSHOT_SET_DESCRIPTION": 1,
}  # fmt: skip
_BELOW = {
    "BACKUP_COMPONENTS": ("WRITER_COMPONENTS", "COMPONENT", "COMPONENT", "BACKUP_METADATA"),
    "WRITER_METADATA": (
        "IDENTIFICATION",
        "BACKUP_LOCATIONS",
        "FILE_GROUP",
        "DATABASE",
        "FILE_LIST",
        "DEPENDENCY",
    ),
}


def _inside(*tags: str) -> st.SearchStrategy[list[tuple[str, int, dict[str, str], dict[str, str]]]]:
    """Elements in their order: tag, depth, attributes, ids if it carries some. Most stand where they belong."""
    depths = {tag: st.sampled_from((_DEPTHS[tag],) * 8 + (1, 2, 3, 4)) for tag in _DEPTHS}
    drawn = [st.tuples(st.just(tag), depths[tag], _ATTRIBUTES, _IDENTITIES) for tag in (*tags * 4, *_DEPTHS)]
    return st.lists(st.one_of(drawn), max_size=12)


_INSIDE = {root: _inside(*_BELOW.get(root, ())) for root in (*_BELOW, "quiesceManifest", "Set")}


@st.composite
def _documents(draw: st.DrawFn, root: str) -> Element:
    top = Element(root, draw(_ATTRIBUTES))
    if root == "WRITER_METADATA":
        top.children.append(Element("IDENTIFICATION", draw(_IDENTITIES)))
    above = [top]
    for tag, depth, attributes, ids in draw(_INSIDE[root]):
        carries = tag in ("WRITER_COMPONENTS", "IDENTIFICATION")
        element = Element(tag, attributes | (ids if carries else {}))
        del above[depth:]
        above[-1].children.append(element)
        above.append(element)
    return top


_ANY_DOCUMENT = {root: _documents(root) for root in _INSIDE}
_ROOTS = st.sampled_from(
    ("BACKUP_COMPONENTS", "WRITER_METADATA", "WRITER_METADATA", "quiesceManifest", "Set")
)
_MORE = st.lists(_ROOTS, max_size=3)
_OUTFITS = st.builds(
    Outfit,
    encoding=st.sampled_from(("utf-8", "utf-16-le", "utf-16-be")),
    bom=st.booleans(),
    declaration=st.sampled_from(("", "UTF-8", "UTF-16", "windows-1252")),
    trailing_nul=st.booleans(),
)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """A zip with some documents."""
    outfit = draw(_OUTFITS)
    roots = ["BACKUP_COMPONENTS", "WRITER_METADATA", *draw(_MORE)]
    return zipped({f"{n}.xml": outfit.bytes(draw(_ANY_DOCUMENT[root])) for n, root in enumerate(roots)})


def examples(of: int, count: int) -> list[bytes]:
    """The manifests that hypothesis draws from a seed: the same for the same version of it."""
    drawn: list[bytes] = []

    @seed(of)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(manifests())
    def collect(manifest: bytes) -> None:
        drawn.append(manifest)

    collect()
    return drawn
