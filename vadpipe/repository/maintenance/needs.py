"""Which frames restore points need: what `prune` keeps, and what is locked in a bucket."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import DIGEST_SIZE, NO_FRAME, IntegrityError

from ..format.restore_point import RestorePoint, StoredDisk
from ..index.segments import heads
from ..reader import RepositoryReader

Heads = NDArray[np.uint64]


def frames_needed(reader: RepositoryReader, points: Sequence[RestorePoint], known: set[bytes]) -> Heads:
    """The frames of some points, as the first eight bytes of their ids, ascending.

    Args:
        known: Digests of the map pages, page lists and documents whose frames were told before: they are left out,
            and those of these points are added.

    Raises:
        IntegrityError: A map or the index cannot be read, so it is not known what the points need.
        SinkError
    """
    fresh: dict[bytes, None] = {}
    for point in points:
        for document in point.documents.values():
            fresh.update((bytes.fromhex(part), None) for part in document.parts)
    disks = [(point, disk) for point in points for disk in point.disks]
    reader.read_ahead([bytes.fromhex(disk.pages) for _, disk in disks])
    pages: dict[bytes, tuple[RestorePoint, StoredDisk, int]] = {}
    for point, disk in disks:
        listed = bytes.fromhex(disk.pages)
        if listed in known or listed in fresh:
            continue
        fresh[listed] = None
        digests = reader.page_digests(point, disk)
        for number in np.flatnonzero(digests.any(axis=1)).tolist():
            key = digests[number].tobytes()
            if key not in known and key not in fresh:
                fresh[key] = None
                pages[key] = point, disk, number
    reader.read_ahead(list(pages))
    found = [
        heads(reader.page(point, disk, number, key).frame_ids) for key, (point, disk, number) in pages.items()
    ]
    found.append(_frames_of_objects(reader, [key for key in fresh if key not in known]))
    known.update(fresh)
    return np.unique(np.concatenate(found))


def _frames_of_objects(reader: RepositoryReader, digests: Sequence[bytes]) -> Heads:
    """The frames of map pages, page lists and documents: every frame that holds one."""
    if not digests:
        return np.zeros(0, np.uint64)
    wanted = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)
    number, _ = reader.index.lookup(wanted)
    if (number == NO_FRAME).any():
        raise IntegrityError(
            "A map page or a document of a point is not in the index, so it is not known what that point needs.",
            remedy="Run `vadpipe verify`; it says which point is hit.",
        )
    return heads(reader.index.frame_ids(number))
