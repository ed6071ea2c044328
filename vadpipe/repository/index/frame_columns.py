"""The columns that segments of both formats have: frames, and the packs that they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import Digests, KiB

from ..format.objects import PACK_ID_SIZE
from ..format.packs import FrameAddress
from .cells import Columns, Rows

PIECE: Final = 64 * KiB  # rows looked at together where a whole segment is read


class FrameColumns(Columns):
    """A segment's frames. Numbers of frames are rows of its frame table.

    `frame_section`: the number of the column of frames, with rows as FRAME_ROW; `pack_section`: of pack ids.
    """

    frame_section: ClassVar[int]
    pack_section: ClassVar[int]

    @property
    def frames(self) -> int:
        return self.count(self.frame_section)

    def packs(self) -> list[str]:
        """The ids of the packs that hold its frames."""
        return pack_ids(self.column(self.pack_section, 0, self.count(self.pack_section)))

    def ids(self, frame: Rows) -> Digests:
        """The ids of frames."""
        ids: Digests = self.take(self.frame_section, frame)["id"]
        return ids

    def lengths(self, frame: Rows) -> NDArray[np.uint32]:
        """How long frames are, decoded."""
        lengths: NDArray[np.uint32] = self.take(self.frame_section, frame)["length"]
        return lengths

    def chunks_of(self, frame: Rows) -> int:
        """How many chunks these frames have together."""
        return int(self.take(self.frame_section, frame)["chunks"].sum(dtype=np.int64))

    def addresses(self, frame: Rows) -> Iterator[FrameAddress]:
        """Where frames are stored."""
        rows = self.take(self.frame_section, frame)
        packs = pack_ids(self.take(self.pack_section, rows["pack"].astype(np.int64)))
        for row, pack in zip(rows, packs, strict=True):
            yield FrameAddress(
                pack, int(row["offset"]), int(row["size"]), int(row["length"]), row["id"].tobytes()
            )

    def frame_rows(self) -> Iterator[NDArray[np.void]]:
        """The rows of all frames, some thousands at a time; each is in a pack that the segment names."""
        for low in range(0, self.frames, PIECE):
            rows = self.column(self.frame_section, low, low + PIECE)
            if int(rows["pack"].max()) >= self.count(self.pack_section):
                raise self.damaged("a frame of it is in a pack that it does not name")
            yield rows

    def frames_by_pack(self) -> dict[str, Rows]:
        """For each pack the frames in it, in the order in which they lie there."""
        pieces = list(self.frame_rows())
        pack = np.concatenate([np.zeros(0, "<u4"), *(piece["pack"] for piece in pieces)])
        offset = np.concatenate([np.zeros(0, "<u8"), *(piece["offset"] for piece in pieces)])
        names = self.packs()
        order = np.lexsort((offset, pack))
        borders = np.searchsorted(pack[order], np.arange(len(names) + 1))
        return {
            name: order[low:high]
            for name, low, high in zip(names, borders[:-1].tolist(), borders[1:].tolist(), strict=True)
        }


def pack_ids(packs: NDArray[np.void]) -> list[str]:
    text, size = packs.tobytes().hex(), 2 * PACK_ID_SIZE
    return [text[low : low + size] for low in range(0, len(text), size)]
