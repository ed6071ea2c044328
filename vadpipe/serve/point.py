"""The disks of a restore point, served over NBD."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from vadpipe.background import in_background
from vadpipe.nbd.export import Export
from vadpipe.nbd.server import Address, Limits, Server, serve
from vadpipe.repository.format.restore_point import RestorePoint
from vadpipe.repository.reader import RepositoryReader, disk_of

from .disk import PointDisk
from .frames import CACHE, decoded_frames
from .overlay import KeptOverlay, discarded_overlay, kept_overlay


@asynccontextmanager
async def serve_point(
    reader: RepositoryReader,
    point: RestorePoint,
    *,
    keys: Sequence[str] = (),
    listen: Address | Path | None = None,
    tls: ssl.SSLContext | None = None,
    writable: bool = False,
    keep: Mapping[str, Path] | None = None,
    cache: int = CACHE,
    limits: Limits | None = None,
    tell: Callable[[str], object] | None = None,
) -> AsyncIterator[Server]:
    """Serve the disks of a point, each as an export with its key as name, until the block ends.

    What is served stays as it was when the point is removed meanwhile, but not after a prune has removed its data.

    Args:
        reader: The repository.
        point: The point.
        keys: The disks; none: all of them.
        listen: A TCP port, or the path of a Unix socket; None: port 10809 of 127.0.0.1.
        tls: Settings of a TLS server, which make TLS required.
        writable: Clients may write. What they write goes to a local file that is thrown away at the end.
        keep: For disks by key, the qcow2 image that what is written becomes at the end instead; it has the URI of
            the export as its backing file.
        cache: Bytes of decoded frames that are kept for all disks and clients.
        limits: What clients may take.
        tell: Is called with what cannot be read, once for each; it is in the log anyway.

    Raises:
        ConfigError: The point has no such disk, or the address or a file cannot be used.
        IntegrityError: The list of a disk's map is damaged.
        SinkError: The repository cannot be read, or a file for changes cannot be made.
    """
    disks = [disk_of(point, key) for key in keys] or list(point.disks)
    async with AsyncExitStack() as stack:
        frames = await stack.enter_async_context(decoded_frames(reader, cache))
        nursery = await stack.enter_async_context(in_background())
        exports: list[Export] = []
        kept: list[KeptOverlay] = []
        for disk in disks:
            export: Export = await PointDisk.open(reader, point, disk, frames, nursery, tell)
            path = (keep or {}).get(disk.key)
            if path is not None:
                made = await stack.enter_async_context(kept_overlay(export, path))
                kept.append(made)
                export = made
            elif writable:
                export = await stack.enter_async_context(discarded_overlay(export))
            exports.append(export)
        server = await stack.enter_async_context(serve(exports, listen, tls=tls, limits=limits))
        for made in kept:
            made.backing = server.uri(made.name)
        yield server
