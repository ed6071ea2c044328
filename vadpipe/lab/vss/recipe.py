"""The manifest zip that a Windows guest leaves at a quiesced snapshot, and every outcome of it on demand.

Shaped after what a Windows Server 2012 with SQL Server leaves: eleven writer documents, eight of these writers
in the backup components document, the same writer and instance ids in both. Quirks are kept on purpose,
because parsers have to live with them: upper-case ids, line breaks inside captions, `xmlns=""` children,
attributes of 11,000 characters, writers without components. Everything is derived from the request and
the recipe, so the same two give the same bytes.
"""

from __future__ import annotations

import io
import random
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .documents import QuiesceRequest, backup_document, listed_writer, quiesce_manifest, writer_document
from .elements import Element, Outfit
from .guest import APPLICATIONS, SQL_SERVER, SYSTEM_WRITERS, Writer, sql_server, system_writers

_ZIP_DATE = (2024, 5, 1, 12, 0, 0)


@dataclass(frozen=True)
class ManifestRecipe:
    """What the guest is like, how its requester writes, and what went wrong.

    `declaration` is the encoding that the XML declaration names (it may lie); empty for no declaration.
    `applications` run in the guest beside SQL Server, which does as soon as it has `databases`; of
    `excluded_databases` its writer leaves the files out and offers no component.

    Writers are named by friendly name: `drop_writers` are left out of the backup components document, the first
    component of `failing_writers` carries a failure message, `lose_documents` leave no document of their own, and
    the document of `foreign_instances` is that of another run. `component_mode` False: the requester selected no
    components. `huge` is the number of the System Writer's file entries. `truncated`: the zip ends half-way.
    `linux`: what a Linux guest leaves instead.
    """

    seed: int = 0
    encoding: Literal["utf-8", "utf-16-le", "utf-16-be"] = "utf-8"
    bom: bool = False
    declaration: str = ""
    trailing_nul: bool = False
    databases: Sequence[str] = ("master", "model", "msdb", "sales")
    excluded_databases: Sequence[str] = ()
    applications: frozenset[str] = frozenset()
    drop_writers: frozenset[str] = frozenset()
    failing_writers: frozenset[str] = frozenset()
    lose_documents: frozenset[str] = frozenset()
    foreign_instances: frozenset[str] = frozenset()
    component_mode: bool = True
    huge: int = 40
    truncated: bool = False
    linux: bool = False

    def __post_init__(self) -> None:
        named = self.drop_writers | self.failing_writers | self.lose_documents | self.foreign_instances
        known = {writer.name for writer in SYSTEM_WRITERS} | {SQL_SERVER, *APPLICATIONS}
        for unknown in (sorted(named - known), sorted(self.applications - set(APPLICATIONS))):
            if unknown:
                raise ValueError(f"no such writer: {', '.join(unknown)}. Known: {', '.join(sorted(known))}")

    @property
    def outfit(self) -> Outfit:
        return Outfit(self.encoding, self.bom, self.declaration, self.trailing_nul)


_STANDARD = ManifestRecipe()
_SQL_ONLY = frozenset({SQL_SERVER})

OUTCOMES: Mapping[str, ManifestRecipe] = MappingProxyType(
    {
        "application": _STANDARD,
        "all-applications": ManifestRecipe(applications=frozenset(APPLICATIONS)),
        "writer-failed": ManifestRecipe(failing_writers=_SQL_ONLY),
        "writer-excluded": ManifestRecipe(drop_writers=_SQL_ONLY),
        "document-lost": ManifestRecipe(lose_documents=_SQL_ONLY),
        "foreign-document": ManifestRecipe(foreign_instances=_SQL_ONLY),
        "no-component-mode": ManifestRecipe(component_mode=False),
        "utf-16": ManifestRecipe(encoding="utf-16-le", trailing_nul=True),
        "utf-16-marked": ManifestRecipe(encoding="utf-16-be", bom=True, declaration="UTF-16"),
        "huge": ManifestRecipe(huge=20_000),
        "broken": ManifestRecipe(truncated=True),
        "linux": ManifestRecipe(linux=True),
    }
)
"""Outcomes by name. File-system quiescing is asked for in the request; no manifest at all is no recipe."""


def manifest_zip(request: QuiesceRequest, recipe: ManifestRecipe = _STANDARD) -> bytes:
    """The manifest of one quiesced snapshot.

    For application quiescing `backup.xml` and a document per writer, for file-system quiescing `backup.xml` alone.
    """
    if recipe.linux:
        return recipe.outfit.bytes(quiesce_manifest())
    whole = zipped({name: recipe.outfit.bytes(root) for name, root in _documents(request, recipe).items()})
    return whole[: len(whole) // 2] if recipe.truncated else whole


def zipped(documents: Mapping[str, bytes]) -> bytes:
    """A zip with these members, the same for the same members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in documents.items():
            entry = zipfile.ZipInfo(name, _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _documents(request: QuiesceRequest, recipe: ManifestRecipe) -> dict[str, Element]:
    rng = random.Random(f"{recipe.seed}/{request.vm_name}")
    writers = tuple(_guest_writers(recipe)) if request.context == "application" else ()
    instances = [new_id(rng) for _ in writers]
    backup = backup_document(request, new_id(rng))
    if not recipe.component_mode:
        backup.attributes["selectComponents"] = "no"
    documents = {"backup.xml": backup}
    for number, (writer, instance_id) in enumerate(zip(writers, instances, strict=True), 1):
        if writer.included and writer.name not in recipe.drop_writers:
            listed = listed_writer(writer, instance_id, rng)
            if writer.name in recipe.failing_writers:
                # The API has this property; the attribute's spelling is not documented, its ending is.
                message = "0x800423F4: the writer met a non-transient error"
                listed.children[0].attributes["postSnapshotFailureMsg"] = message
            backup.children.append(listed)
        if writer.name not in recipe.lose_documents:
            foreign = writer.name in recipe.foreign_instances
            document = writer_document(writer, new_id(rng) if foreign else instance_id)
            documents[f"writer{number}.xml"] = document
    return documents


def _guest_writers(recipe: ManifestRecipe) -> Iterator[Writer]:
    yield from system_writers(recipe.huge)
    if recipe.databases:
        yield sql_server(recipe.databases, excluded=recipe.excluded_databases)
    for name in sorted(recipe.applications):
        yield APPLICATIONS[name]


def new_id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
