"""The state table, whole manifests: damage, loss and quirks of documents and of the zip, and what the facts say.

Nothing else but an outfit happens to a manifest with an `alone` row: the two could hide one another.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from .alterations import exchange_document
from .documents import quiesce_manifest
from .draft import Draft, Part
from .elements import PLAIN, Element
from .recipe import zipped

_UNREADABLE = ("document-unreadable",)


@dataclass(frozen=True)
class Calamity:
    """What happens to a whole manifest.

    `decided` is (level, decision) where nothing is left to weigh. `rules` are about the manifest; `doubts`: they
    keep it below application. Of rows `about` the same thing only one can happen.
    """

    name: str
    change: Callable[[Draft], None]
    decided: tuple[str, str] | None = None
    rules: tuple[str, ...] = ()
    doubts: bool = False
    alone: bool = True
    about: str = ""

    def apply(self, draft: Draft) -> None:
        self.change(draft)
        draft.decided = self.decided or draft.decided
        draft.told.update(self.rules)
        draft.doubted |= self.doubts


def damaged_text(draft: Draft, root: Element) -> bytes:
    """A document that no parser may take."""
    text = PLAIN.text(root)
    kinds: list[Callable[[], str]] = [
        lambda: text[: max(1, len(text) * 2 // 3)],
        lambda: text + "<again/>",
        lambda: "<!DOCTYPE x [<!ENTITY e 'x'>]>" + text,
        lambda: text[:-3] + "&undefined;" + text[-3:],
        lambda: text.replace(" ", " a='1' a='2' ", 1),
        lambda: "",
    ]
    broken = draft.rng.choice(kinds)()
    return draft.rng.choice((broken.encode("utf-8"), broken.encode("utf-16"), text.encode() + b"\xff"))


def _damage(draft: Draft, part: Part) -> None:
    assert part.document is not None
    if draft.rng.random() < 0.2 and not draft.scattered:
        draft.flipped.add(f"writer{draft.parts.index(part) + 1}.xml")
    else:
        part.damaged = damaged_text(draft, part.document)
    _has_no_document(part)


def _has_no_document(part: Part) -> None:
    part.standing.described = False
    part.standing.tell("writer-without-metadata")
    part.standing.doubt("writer-without-metadata")


def _only_listed(draft: Draft) -> None:
    """Writers that nobody listed take their documents with them."""
    draft.parts = [part for part in draft.parts if part.listed is not None]


def _damage_one(draft: Draft) -> None:
    _damage(draft, draft.rng.choice([part for part in draft.parts if part.listed is not None]))


def _damage_all(draft: Draft) -> None:
    _only_listed(draft)
    for part in draft.parts:
        _damage(draft, part)
        draft.told.update(_UNREADABLE)


def _anonymous(draft: Draft) -> None:
    part = draft.rng.choice([part for part in draft.parts if part.listed is not None])
    assert part.document is not None
    del next(part.document.every("IDENTIFICATION")).attributes[draft.rng.choice(("writerId", "instanceId"))]
    _has_no_document(part)


def _no_selection(draft: Draft) -> None:
    draft.backup.attributes["selectComponents"] = draft.rng.choice(("no", "No"))
    for standing in draft.standings:
        standing.doubt("no-component-mode")


def _unstated_selection(draft: Draft) -> None:
    del draft.backup.attributes["selectComponents"]
    if draft.rng.random() < 0.5:
        draft.backup.attributes["selectComponents"] = draft.rng.choice(("maybe", ""))


def _no_writers(draft: Draft) -> None:
    draft.parts.clear()
    draft.backup.children.clear()


def _lose_all_documents(draft: Draft) -> None:
    _only_listed(draft)
    for part in draft.parts:
        part.document = None
        _has_no_document(part)


def _list_nobody(draft: Draft) -> None:
    for part in draft.parts:
        if part.listed is not None:
            part.standing.tell("writer-not-included")
            draft.leave_out(part)


def _foreign(draft: Draft) -> None:
    for part in draft.parts:
        if part.listed is not None:
            exchange_document(draft, part)
            _has_no_document(part)


def _unlist_all(draft: Draft) -> None:
    for part in draft.parts:
        draft.leave_out(part)
        part.standing.told.clear()  # nobody says who was left out


def _lose_backup(draft: Draft) -> None:
    _unlist_all(draft)
    draft.backups.clear()


def _damage_backup(draft: Draft) -> None:
    broken = damaged_text(draft, draft.backup)
    _lose_backup(draft)
    draft.extras["backup.xml"] = broken


def _second_backup(draft: Draft) -> None:
    draft.backups["backup2.xml"] = draft.backup.copied()
    for standing in draft.standings:
        standing.doubt("backup-document-twice")


def _replace_whole(make: Callable[[Draft], bytes]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.whole = make(draft)
        draft.refused = True

    return change


def _flagged(draft: Draft, flags: int) -> bytes:
    data = bytearray(draft.archive())
    data[data.index(b"PK\x01\x02") + 8] |= flags  # general purpose flags of the first directory entry
    return bytes(data)


def _duplicated(draft: Draft) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name in ("backup.xml", draft.rng.choice(("backup.xml", "BACKUP.xml"))):
            archive.writestr(name, draft.outfit.bytes(draft.backup))
    return buffer.getvalue()


def _linux(draft: Draft) -> bytes:
    outside = draft.outfit.bytes(quiesce_manifest())
    return draft.rng.choice((outside, zipped({"quiesce.xml": outside})))


def _no_file(draft: Draft) -> None:
    draft.missing, draft.refused = "absent", True


def _no_access(draft: Draft) -> None:
    draft.missing, draft.refused = "unfetched", True


def _stranger(draft: Draft) -> None:
    draft.extras["Manifest.xml"] = '<Set version="1"/>'.encode("utf-16-le")


def _note(draft: Draft) -> None:
    draft.extras["readme.txt"] = b"no XML at all"


def _scatter(draft: Draft) -> None:
    draft.scattered = True


def _snapshot_descriptions(draft: Draft) -> None:
    described = Element("SNAPSHOT_DESCRIPTION", {"snapshotId": "{0}"})
    draft.backup.children.insert(0, Element("SNAPSHOT_SET_DESCRIPTION", {"context": "0"}, [described]))


_FILE_SYSTEM = ("file-system", "backup-document-alone")
_REFUSED = ("unknown", "archive-refused")
_NO_BACKUP = ("unknown", "backup-document-missing")

CALAMITIES = (
    Calamity("one writer document damaged", _damage_one, rules=_UNREADABLE, doubts=True),
    Calamity("every writer document damaged", _damage_all, ("unknown", "writer-documents-unreadable")),
    Calamity("writer document without ids", _anonymous, rules=_UNREADABLE, doubts=True),
    Calamity("component mode off", _no_selection, ("file-system", "no-component-mode"), ("options-differ",),
             alone=False, about="selection"),
    Calamity("component mode unstated", _unstated_selection, rules=("component-mode-unstated",), doubts=True,
             alone=False, about="selection"),
    Calamity("file-system quiescing", _no_writers, _FILE_SYSTEM),
    Calamity("every writer document lost", _lose_all_documents, _FILE_SYSTEM),
    Calamity("no writer listed", _list_nobody, ("file-system", "nothing-covered")),
    Calamity("documents of two runs", _foreign, ("unknown", "foreign-documents")),
    Calamity("backup document lost", _lose_backup, _NO_BACKUP),
    Calamity("backup document damaged", _damage_backup, _NO_BACKUP, _UNREADABLE),
    Calamity("two backup documents", _second_backup, ("unknown", "backup-document-twice")),
    Calamity("zip cut short", _replace_whole(lambda draft: draft.archive()[:-30]), _REFUSED),
    Calamity("no zip", _replace_whole(lambda draft: b"<html>503 Service Unavailable</html>"), _REFUSED),
    Calamity("empty file", _replace_whole(lambda draft: b""), _REFUSED),
    Calamity("encrypted", _replace_whole(lambda draft: _flagged(draft, 1)), _REFUSED),
    Calamity("name twice", _replace_whole(_duplicated), _REFUSED),
    Calamity("name outside", _replace_whole(lambda draft: zipped({"../backup.xml": b"<a/>"})), _REFUSED),
    Calamity("zip bomb", _replace_whole(lambda draft: zipped({"backup.xml": b" " * (4 << 20)})), _REFUSED),
    Calamity("too many members", _replace_whole(lambda draft: zipped({f"{n}": b"" for n in range(600)})),
             _REFUSED),
    Calamity("Linux guest", _replace_whole(_linux), ("crash", "linux-quiesce-manifest")),
    Calamity("no manifest", _no_file, ("crash", "manifest-absent")),
    Calamity("manifest out of reach", _no_access, ("unknown", "manifest-unfetched")),
    Calamity("stranger among the documents", _stranger, rules=("document-unrecognised",), alone=False),
    Calamity("note among the documents", _note, rules=_UNREADABLE, doubts=True, alone=False),
    Calamity("members in any order and place", _scatter, alone=False),
    Calamity("snapshot descriptions", _snapshot_descriptions, alone=False),
)  # fmt: skip
