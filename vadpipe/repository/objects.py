"""Reading single frames back, on worker threads, and saying where damage lies."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pipeline import IntegrityError

from .damage import Damage
from .disk_map import PageMap
from .frames import decode
from .keys import Keys
from .layout import Layout
from .packs import FrameAddress, read_frame


def read_object(
    layout: Layout, address: FrameAddress, digest: bytes, keys: Keys, purpose: str, **facts: object
) -> memoryview:
    """A map page or a document, proved by its digest. Raises IntegrityError that begins with `purpose`."""
    try:
        frame = read_frame(layout, address, keys)
        if len(frame.chunk) != 1 or frame.chunk["digest"].tobytes() != digest:
            raise Damage("it holds something else")
        return decode(frame, keys)
    except Damage as damage:
        raise damaged_frame(layout, address, damage, purpose, **facts) from damage


def parse_page(content: memoryview, purpose: str) -> PageMap:
    """A map page. Raises IntegrityError that begins with `purpose`."""
    try:
        return PageMap.parse(content)
    except Damage as damage:
        raise IntegrityError(
            f"{purpose}: {damage}.", remedy="What wrote this point is at fault; use another point."
        ) from damage


def damaged_frame(
    layout: Layout, address: FrameAddress, damage: Damage, purpose: str, **facts: object
) -> IntegrityError:
    """What is wrong with a frame, and what it was wanted for."""
    path = layout.pack(address.pack)
    return IntegrityError(
        f"{purpose}: the frame at bytes {address.offset} to {address.offset + address.size} of pack {path}"
        f" is damaged: {damage}.",
        remedy="Put this pack back from a copy of the repository; `vadpipe verify` lists all that is hit.",
        pack=str(path),
        position=address.offset,
        **facts,
    )


class FrameCache:
    """The last decoded frames, up to `size` bytes. For several threads at once."""

    def __init__(self, layout: Layout, keys: Keys, size: int) -> None:
        self._layout = layout
        self._keys = keys
        self._size = size
        self._held = 0
        self._frame: OrderedDict[bytes, memoryview] = OrderedDict()
        self._turn = threading.Lock()

    def read(self, address: FrameAddress) -> memoryview:
        """The bytes of a frame, all its chunks proved. Raises Damage."""
        with self._turn:
            if address.id in self._frame:
                self._frame.move_to_end(address.id)
                return self._frame[address.id]
        data = decode(read_frame(self._layout, address, self._keys), self._keys)
        with self._turn:
            if address.id not in self._frame:
                self._frame[address.id] = data
                self._held += len(data)
            while self._held > self._size and len(self._frame) > 1:
                self._held -= len(self._frame.popitem(last=False)[1])
        return data
