"""Which manifest file belongs to a snapshot, from plain facts of the server.

The snapshot's own `backupManifest` is believed first. Without it only a file that was not there before the snapshot
can be the one: manifests of removed snapshots may stay behind, and their numbers may come again. A name that was
known before, in whatever directory notation (vVols show object ids), is taken only when two searches of the same
directory show that the file was written anew. A file that both searches show unchanged is never taken, whoever
names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from vadpipe.vss.fetched import ManifestKind

from ..inventory.datastore_path import DatastorePath

# `<vm>-vss_manifests<N>.zip` is what hosts write, `vss-manifest.zip` what the programming guide names.
_VSS_ZIP = re.compile(r"(.*vss_manifests.*|vss-manifest.*)\.zip", re.IGNORECASE | re.DOTALL)
_LINUX_XML = re.compile(r".*quiesce_manifest\d*\.xml", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(\d+)\.\w+$")


class FoundBy(Enum):
    """Where the file's name came from."""

    BACKUP_MANIFEST = "backupManifest"
    LAYOUT = "layoutEx"
    SEARCH = "datastore search"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as a search of a datastore lists it: full path, or name in the directory that was searched.

    `size`: bytes; `modified`: the last write, as the datastore's clock has it. None: not told.
    """

    path: str
    size: int | None = None
    modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A snapshot's manifest file: `str(path)` is `[ds] dir/file.zip`. `size`: bytes, None when not told."""

    path: DatastorePath
    kind: ManifestKind
    found_by: FoundBy
    size: int | None = None


def find_manifest(
    backup_manifest: str | None,
    snapshot_directory: str,
    layout_before: Collection[str],
    layout_after: Collection[str],
    search_before: Collection[ListedFile],
    search_after: Collection[ListedFile],
) -> FoundManifest | None:
    """The file of the snapshot just taken, or None.

    `backup_manifest` is the snapshot tree's value, a full path or one relative to `snapshot_directory`
    (`[ds] dir`, with trailing slash or without). `layout_before` and `layout_after` are the names in
    `layoutEx.file` before and after the snapshot, the others what a search of the directory for manifests listed.
    When nothing is known of before, nothing can be called new, and only `backup_manifest` counts.
    """
    directory = _parsed(snapshot_directory)
    before, after = _placed_files(search_before, directory), _placed_files(search_after, directory)
    sizes = {place.name: file.size for place, file in after.items()}
    if backup_manifest and (named := _placed(backup_manifest, directory)):
        kind = ManifestKind.LINUX_XML if _LINUX_XML.fullmatch(named.name) else ManifestKind.VSS_ZIP
        if not _is_unchanged(before.get(named), after.get(named)):
            return FoundManifest(named, kind, FoundBy.BACKUP_MANIFEST, sizes.get(named.name))
    old = {name.rpartition("/")[2] for name in layout_before} | {place.name for place in before}
    if not old:
        return None
    rewritten = {place.name for place, file in after.items() if _is_rewritten(before.get(place), file)}
    layout = [place for name in layout_after if (place := _placed(name, directory))]
    for places, found_by in ((layout, FoundBy.LAYOUT), (list(after), FoundBy.SEARCH)):
        new = [place for place in places if place.name not in old or place.name in rewritten]
        if found := _newest(new, found_by, sizes):
            return found
    return None


def _newest(
    places: Iterable[DatastorePath], found_by: FoundBy, sizes: dict[str, int | None]
) -> FoundManifest | None:
    """The VSS zip with the highest number, else the Linux manifest. A snapshot leaves one; order breaks ties."""
    ranked = sorted(places, key=lambda place: (_number(place.name), str(place)), reverse=True)
    for pattern, kind in ((_VSS_ZIP, ManifestKind.VSS_ZIP), (_LINUX_XML, ManifestKind.LINUX_XML)):
        for place in ranked:
            if pattern.fullmatch(place.name):
                return FoundManifest(place, kind, found_by, sizes.get(place.name))
    return None


def _number(name: str) -> int:
    found = _NUMBER.search(name)
    return int(found[1][:9]) if found else 0


def _is_unchanged(before: ListedFile | None, after: ListedFile | None) -> bool:
    """Whether both searches saw the file, with the same size and time of its last write."""
    if before is None or after is None or before.modified is None:
        return False
    return (before.size, before.modified) == (after.size, after.modified)


def _is_rewritten(before: ListedFile | None, after: ListedFile) -> bool:
    """Whether the file is there as before, and was written since; unknown times prove nothing."""
    if before is None or before.modified is None or after.modified is None:
        return False
    return after.modified > before.modified


def _parsed(text: str) -> DatastorePath | None:
    try:
        return DatastorePath.parse(text.strip())
    except ValueError:
        return None


def _placed(name: str, directory: DatastorePath | None) -> DatastorePath | None:
    """A full path as it is, a relative one below the directory; None when neither can be understood."""
    if full := _parsed(name):
        return full
    try:
        return directory.join(name) if directory else None
    except ValueError:
        return None


def _placed_files(
    files: Iterable[ListedFile], directory: DatastorePath | None
) -> dict[DatastorePath, ListedFile]:
    return {place: file for file in files if (place := _placed(file.path, directory))}
