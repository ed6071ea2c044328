"""What the previous point holds of a disk, read back while the next one is written: what Refine compares with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import CLUSTER, DIGEST_SIZE, NO_FRAME, Digests, Extents, IntegrityError, MiB

from .format.config import Config
from .format.disk_map import PAGE, PageMap, clusters, parse_page, root_of
from .format.frame_cache import FrameCache
from .format.objects import Damage, Objects
from .format.packs import FrameAddress, damaged_frame
from .format.restore_point import StoredDisk
from .index.lookup import RunIndex

log = logging.getLogger(__name__)

# As much as a span. Frames are used in the order of the disk, so more is of no use: of an image with 1.2 GiB of
# files 1461 frames were decoded with 4 MiB, 1459 with 32 MiB (bench/growth.py, the step `writes`).
DECODED: Final = 4 * MiB

# Loads a map page or a page list by its digest; the text says what it is wanted for. Raises IntegrityError.
LoadObject = Callable[[bytes, str], memoryview]


class PreviousContent:
    """See vadpipe.kernels.refine. One per disk and run, for one thread at a time.

    What is damaged cannot be compared with: it counts as not filled, one warning names the first damage, and what
    changed there is stored whole. All bytes are proved, since the new map will refer to them.

    Memory: 4 MiB of decoded frames (one frame at least), a map page (at most 5 MiB), 32 bytes per 256 MiB of disk.
    """

    def __init__(
        self,
        objects: Objects,
        config: Config,
        index: RunIndex,
        load_object: LoadObject,
        disk: StoredDisk,
        remark: Callable[[str], None],
    ) -> None:
        self._objects = objects
        self._config = config
        self._index = index
        self._load_object = load_object
        self._disk = disk
        self._remark = remark
        self._purpose = f"Disk {disk.key} of the previous point"
        self._frames = FrameCache(objects, config, DECODED)
        self._listed: Digests | None = None
        self._page: tuple[int, PageMap, NDArray[np.uint64]] | None = None
        self._warned = False

    def stored(self, digest: Digests) -> NDArray[np.bool_]:
        """Which chunks the index knows. Raises IntegrityError for a damaged index."""
        number, _ = self._index.lookup(digest)
        known: NDArray[np.bool_] = number != NO_FRAME
        return known

    def read(self, into: NDArray[np.uint8], offset: int, wanted: Extents) -> NDArray[np.bool_]:
        """See vadpipe.kernels.refine.PreviousContent."""
        filled = np.zeros(len(into) // CLUSTER, dtype=np.bool_)
        try:
            _, page, numbers = self._page_at(offset // PAGE)
        except IntegrityError as error:
            self._damaged(error)
            return filled
        base = offset % PAGE // CLUSTER
        first, last = clusters(wanted, offset // PAGE)
        for low, high in zip((first - base).tolist(), (last - base).tolist(), strict=True):
            into[low * CLUSTER : high * CLUSTER] = 0  # where no row follows, the previous point has zeros
            filled[low:high] = True
        rows = page.within(first, last)
        addresses = self._addresses(np.unique(rows.frame), numbers)
        columns = (rows.offset - base, rows.count, rows.place, rows.frame)
        for low, count, place, number in zip(*(column.tolist() for column in columns), strict=True):
            filled[low : low + count] = self._copy(
                into[low * CLUSTER : (low + count) * CLUSTER],
                offset + low * CLUSTER,
                addresses[number],
                place * CLUSTER,
                rows.frame_ids[number],
            )
        return filled

    def _copy(
        self,
        into: NDArray[np.uint8],
        offset: int,
        address: FrameAddress | None,
        place: int,
        identity: NDArray[np.uint8],
    ) -> bool:
        """Copy from a frame; whether that was possible. Bytes behind the tail of a disk are left as they are."""
        length = min(len(into), self._disk.capacity - offset)
        purpose = f"{self._purpose}, bytes {offset} to {offset + length}"
        if address is None:
            problem = f"{purpose}: frame {identity.tobytes().hex()[:16]} is not in the index."
            self._damaged(IntegrityError(problem, remedy="Run `vadpipe verify`."))
            return False
        try:
            frame = self._frames.read(address)
            if place + length > len(frame):
                raise Damage("the map reads beyond it")
        except Damage as damage:
            self._damaged(damaged_frame(self._objects, address, damage, purpose))
            return False
        into[:length] = np.frombuffer(frame[place : place + length], np.uint8)
        return True

    def _addresses(
        self, frame: NDArray[np.int64], numbers: NDArray[np.uint64]
    ) -> dict[int, FrameAddress | None]:
        """Where these frames of the page lie; None for one that the index does not know."""
        known = frame[numbers[frame] != NO_FRAME]
        with self._index.lock:
            found = self._index.addresses(numbers[known])
        return dict.fromkeys(frame.tolist()) | dict(zip(known.tolist(), found, strict=True))

    def _page_at(self, number: int) -> tuple[int, PageMap, NDArray[np.uint64]]:
        """A page of the map, and the number of each of its frames in the index. Raises IntegrityError."""
        if self._page is None or self._page[0] != number:
            digest = self._pages()[number]
            page = PageMap.empty()
            if digest.any():
                purpose = f"{self._purpose}, page at {number * PAGE}"
                page = parse_page(self._load_object(digest.tobytes(), purpose), purpose)
            with self._index.lock:
                self._page = number, page, self._index.find_frames(page.frame_ids)
        return self._page

    def _pages(self) -> Digests:
        """The page list, proved by the disk's root. Raises IntegrityError."""
        if self._listed is None:
            listed = self._load_object(bytes.fromhex(self._disk.pages), self._purpose)
            if root_of(self._disk.capacity, listed, self._config.keys).hex() != self._disk.receipt.root:
                raise IntegrityError(f"{self._purpose}: its page list does not have its root.")
            self._listed = np.frombuffer(listed, np.uint8).reshape(-1, DIGEST_SIZE)
        return self._listed

    def _damaged(self, error: IntegrityError) -> None:
        if self._warned:
            return
        self._warned = True
        problem = f"{error} What changed there is stored in whole chunks."
        log.warning("%s", problem)
        self._remark(problem)
