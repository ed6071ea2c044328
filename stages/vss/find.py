"""Which manifest file belongs to a snapshot, from plain facts of the server.

The snapshot's own `backupManifest` is believed first. Without it only a file that was not there before the snapshot
can be the one: manifests of removed snapshots may stay behind, and their numbers say nothing. A name
that was known before, in whatever directory notation (vVols show object ids), is never taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from stages.vss.datastore_path import DatastorePath

# `<vm>-vss_manifests<N>.zip` is what hosts write, `vss-manifest.zip` what the programming guide names.
_VSS_ZIP = re.compile(r"(.*vss_manifests.*|vss-manifest.*)\.zip", re.IGNORECASE | re.DOTALL)
_LINUX_XML = re.compile(r".*quiesce_manifest\d*\.xml", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(\d+)\.\w+$")


class ManifestKind(Enum):
    """VSS_ZIP comes from Windows guests, LINUX_XML from Linux guests: it names a provider, no writers."""

    VSS_ZIP = "vss zip"
    LINUX_XML = "linux quiesce manifest"


class FoundBy(Enum):
    """Where the file's name came from."""

    BACKUP_MANIFEST = "backupManifest"
    LAYOUT = "layoutEx"
    SEARCH = "datastore search"


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A snapshot's manifest file: `str(path)` is `[ds] dir/file.zip`."""

    path: DatastorePath
    kind: ManifestKind
    found_by: FoundBy


def find_manifest(
    backup_manifest: str | None,
    snapshot_directory: str,
    layout_before: Collection[str],
    layout_after: Collection[str],
    search: Collection[str],
) -> FoundManifest | None:
    """The file of the snapshot just taken, or None.

    `backup_manifest` is the snapshot tree's value, a full path or one relative to `snapshot_directory`
    (`[ds] dir`, with trailing slash or without). `layout_before` and `layout_after` are the names in
    `layoutEx.file` before and after the snapshot; add to the first what an earlier search showed. When the
    first is empty nothing can be called new, and only `backup_manifest` counts. `search` holds full paths, or
    names in the directory.
    """
    directory = _parsed(snapshot_directory)
    if backup_manifest and (path := _placed(backup_manifest, directory)):
        kind = ManifestKind.LINUX_XML if _LINUX_XML.fullmatch(path.name) else ManifestKind.VSS_ZIP
        return FoundManifest(path, kind, FoundBy.BACKUP_MANIFEST)
    if not layout_before:
        return None
    old = {name.rpartition("/")[2] for name in layout_before}
    for names, found_by in ((layout_after, FoundBy.LAYOUT), (search, FoundBy.SEARCH)):
        places = [place for name in names if (place := _placed(name, directory))]
        if found := _newest((place for place in places if place.name not in old), found_by):
            return found
    return None


def _newest(places: Iterable[DatastorePath], found_by: FoundBy) -> FoundManifest | None:
    """The VSS zip with the highest number, else the Linux manifest. A snapshot leaves one; order breaks ties."""
    ranked = sorted(places, key=lambda place: (_number(place.name), str(place)), reverse=True)
    for pattern, kind in ((_VSS_ZIP, ManifestKind.VSS_ZIP), (_LINUX_XML, ManifestKind.LINUX_XML)):
        for place in ranked:
            if pattern.fullmatch(place.name):
                return FoundManifest(place, kind, found_by)
    return None


def _number(name: str) -> int:
    found = _NUMBER.search(name)
    return int(found[1][:9]) if found else 0


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
