"""A repository for reading: its points, their maps and their frames."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import numpy as np
import trio

from pipeline import (
    DIGEST_SIZE,
    NO_FRAME,
    ConfigError,
    Digests,
    IntegrityError,
    MiB,
)

from .config import Config, read_config
from .disk_map import (
    PAGE,
    PageMap,
    page_count,
    parse_page,
    root_of,
)
from .index import Index
from .layout import Layout
from .packs import FrameAddress, FrameCache, read_object
from .restore_point import RestorePoint, StoredDisk, read_points

# Frames are used in the order of the disk; only deduplicated chunks jump. A span (4 MiB) has about four frames.
DECODED: Final = 32 * MiB


@asynccontextmanager
async def open_repository(path: str | Path) -> AsyncIterator[RepositoryReader]:
    """Read what is published now. Takes no lock: nothing that is published is ever changed.

    Raises SinkError for what is no repository, IntegrityError for an altered config.
    """
    yield await trio.to_thread.run_sync(RepositoryReader, Layout(Path(path)))


class RepositoryReader:
    """The published points, oldest first, and `damaged`: what is wrong with other point files and index segments.

    The methods that are not async read files and are for worker threads, several at once.
    """

    def __init__(self, layout: Layout, config: Config | None = None) -> None:
        self.layout = layout
        self.config = config or read_config(layout)
        points, damaged = read_points(layout.points.glob("*/*.json"), self.config.keys)
        self.points: tuple[RestorePoint, ...] = tuple(points)
        # After the points: what a point names was published before it.
        self.index = Index(layout, self.config.id)
        self.damaged: tuple[IntegrityError, ...] = (*damaged, *self.index.damaged)
        self.frames = FrameCache(layout, self.config.keys, DECODED)

    def __repr__(self) -> str:
        return f"RepositoryReader({str(self.layout.root)!r})"

    def resolve(self, name: str, *, machine: str | None = None) -> RestorePoint:
        """The point called `name`: an id, a unique prefix of one, or 'latest'; among all or of one VM.

        Raises ConfigError; an ambiguous name lists the candidates.
        """
        points = [point for point in self.points if machine in (None, point.machine.uuid, point.machine.name)]
        of = f" of VM {machine!r}" if machine is not None else ""
        if not points:
            raise ConfigError(
                f"The repository {self.layout.root} has no restore points{of}.",
                remedy="Run a job into it first, or name another repository.",
            )
        if name == "latest":
            return points[-1]
        found = [point for point in points if name and point.id.startswith(name)]
        if not found:
            raise ConfigError(
                f"No restore point{of} begins with {name!r}.",
                remedy=f"`vadpipe points {self.layout.root}` lists all; the newest is {points[-1].id}.",
            )
        if len(found) > 1:
            shown = ", ".join(f"{point.id} ({point.machine.name}, {point.created})" for point in found[:8])
            raise ConfigError(
                f"{len(found)} restore points{of} begin with {name!r}: {shown}{', ...' * (len(found) > 8)}.",
                remedy="Give more digits of the id.",
            )
        return found[0]

    async def document(self, point: RestorePoint, name: str) -> bytes:
        """The content of a document of a point, proved. Raises ConfigError when it has none of that name."""
        if name not in point.documents:
            raise ConfigError(
                f"Point {point.id} has no document {name!r}.",
                remedy=f"It has: {', '.join(sorted(point.documents)) or 'none'}.",
            )
        return await trio.to_thread.run_sync(self.read_document, point, name)

    def read_document(self, point: RestorePoint, name: str) -> bytes:
        purpose = f"Document {name!r} of point {point.id}"
        parts = [self._object(bytes.fromhex(part), purpose) for part in point.documents[name].parts]
        return b"".join(parts)

    def page_digests(self, point: RestorePoint, disk: StoredDisk) -> Digests:
        """The page list of a disk, proved by its root. All zeros is an empty page."""
        purpose = f"Disk {disk.key} of point {point.id}"
        listed = self._object(bytes.fromhex(disk.pages), purpose)
        root = root_of(disk.capacity, listed, self.config.keys)
        if root.hex() != disk.receipt.root or len(listed) != page_count(disk.capacity) * DIGEST_SIZE:
            raise IntegrityError(
                f"{purpose}: its page list does not have its root.",
                remedy="Use another point.",
                disk=disk.key,
            )
        return np.frombuffer(listed, np.uint8).reshape(-1, DIGEST_SIZE)

    def page(self, point: RestorePoint, disk: StoredDisk, number: int, digest: bytes) -> PageMap:
        """A map page, proved by its digest."""
        low, high = number * PAGE, min((number + 1) * PAGE, disk.capacity)
        purpose = f"Disk {disk.key} of point {point.id}, bytes {low} to {high}, map page"
        facts = {"disk": disk.key, "offset": low, "length": high - low}
        return parse_page(self._object(digest, purpose, **facts), purpose)

    def addresses(self, page: PageMap) -> list[FrameAddress | None]:
        """Where the frames of a page lie; None for one that the index does not know."""
        number = self.index.find_frames(page.frame_ids)
        known = iter(self.index.addresses(number[number != NO_FRAME]))
        return [next(known) if at != NO_FRAME else None for at in number]

    def _object(self, digest: bytes, purpose: str, **facts: object) -> memoryview:
        number, _ = self.index.lookup(np.frombuffer(digest, np.uint8).reshape(1, DIGEST_SIZE))
        if number[0] == NO_FRAME:
            raise IntegrityError(
                f"{purpose}: {digest.hex()[:16]} is not in the index.",
                remedy="Put the missing files of index/ back from a copy of the repository.",
                **facts,
            )
        (address,) = self.index.addresses(number)
        return read_object(self.layout, address, digest, self.config.keys, purpose, **facts)
