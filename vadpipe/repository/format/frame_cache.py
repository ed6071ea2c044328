"""Frames that were just read, and reading those together that lie side by side."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Final

from pipeline import KiB, MiB

from . import frames
from .config import Config
from .objects import Damage, Objects
from .packs import FrameAddress, frame_of, read_stored

# A request to a store takes as long as 1 MiB or more, and a frame has about 1 MiB.
LONGEST: Final = 8 * MiB
GAP: Final = 64 * KiB  # less than what a request costs

_GROUPS: Final = 4  # read and not used up: two workers in the packs of two disks
_EXPECTED: Final = 16384  # frames; a page of a map has about 256


class FrameCache:
    """The last decoded frames, up to `size` bytes, and up to 32 MiB of stored ones. For several threads at once."""

    def __init__(self, objects: Objects, config: Config, size: int) -> None:
        self._objects = objects
        self._config = config
        self._size = size
        self._held = 0
        self._frame: OrderedDict[bytes, memoryview] = OrderedDict()
        self._expected: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self._fetched: OrderedDict[int, _Group] = OrderedDict()  # by the identity of the group
        self._turn = threading.Lock()

    def expect(self, addresses: Iterable[FrameAddress]) -> None:
        """These frames are going to be read soon: what lies side by side will be read with one request."""
        wanted = sorted({(each.pack, each.offset, each.size) for each in addresses})
        with self._turn:
            group: _Group | None = None
            for pack, offset, size in wanted:
                if (pack, offset) in self._expected:
                    group = None
                    continue
                if group is None or not group.takes(pack, offset, size):
                    group = _Group(pack, offset)
                group.end = offset + size
                group.left += 1
                self._expected[pack, offset] = group
            while len(self._expected) > _EXPECTED:
                self._expected.popitem(last=False)

    def read(self, address: FrameAddress) -> memoryview:
        """The bytes of a frame, all its chunks proved. Raises Damage, SinkError."""
        with self._turn:
            if address.id in self._frame:
                self._frame.move_to_end(address.id)
                return self._frame[address.id]
        # A copy: a frame that is not compressed stays in memory as it is, and would keep its whole group there.
        stored = frame_of(bytes(self._stored(address)), address, self._config)
        data = frames.decode(stored, self._config.keys)
        with self._turn:
            if address.id not in self._frame:
                self._frame[address.id] = data
                self._held += len(data)
            while self._held > self._size and len(self._frame) > 1:
                self._held -= len(self._frame.popitem(last=False)[1])
        return data

    def read_into(self, address: FrameAddress, target: memoryview) -> None:
        """The bytes of a frame, all proved, into memory of its length; it is not kept. Raises Damage, SinkError."""
        with self._turn:
            data = self._frame.get(address.id)
        if data is not None:
            target[:] = data
            return
        stored = frame_of(self._stored(address), address, self._config)
        frames.decode(stored, self._config.keys, target)

    def _stored(self, address: FrameAddress) -> bytes | memoryview:
        """The stored bytes of a frame, by the request for its group where it is expected."""
        with self._turn:
            group = self._expected.pop((address.pack, address.offset), None)
            content, fetch = None, False
            if group is not None and address.offset + address.size <= group.end:
                group.left -= 1
                content = group.content
                if content is None and group.left and not group.dropped:
                    content, fetch = Future[bytes](), True
                    group.content = content
                    self._fetched[id(group)] = group
                    while len(self._fetched) > _GROUPS:
                        self._fetched.popitem(last=False)[1].drop()
                if not group.left:
                    self._fetched.pop(id(group), None)
        if group is None or content is None:
            return read_stored(self._objects, address)
        if fetch:
            self._fetch(group, content)
        try:
            begin = address.offset - group.offset
            return memoryview(content.result())[begin : begin + address.size]
        except Damage:  # this frame may be whole
            return read_stored(self._objects, address)

    def _fetch(self, group: _Group, content: Future[bytes]) -> None:
        try:
            name = self._objects.pack(group.pack)
            content.set_result(self._objects.read(name, group.offset, group.end - group.offset))
        except BaseException as exc:
            content.set_exception(exc)  # for the threads that wait for it, too
            with self._turn:
                group.drop()
                self._fetched.pop(id(group), None)


class _Group:
    """Frames that lie side by side in a pack, from `offset` to `end`; `left` of them were not read yet."""

    def __init__(self, pack: str, offset: int) -> None:
        self.pack = pack
        self.offset = offset
        self.end = offset
        self.left = 0
        self.content: Future[bytes] | None = None
        self.dropped = False

    def drop(self) -> None:
        """Give the memory back. What was not used yet is read by the frame: the disk jumps between many groups."""
        self.content = None
        self.dropped = True

    def takes(self, pack: str, offset: int, size: int) -> bool:
        """Whether a frame behind it may become part of it."""
        return pack == self.pack and 0 <= offset - self.end <= GAP and offset + size - self.offset <= LONGEST
