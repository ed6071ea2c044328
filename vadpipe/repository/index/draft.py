"""The chunks and frames of a run that are not in a segment yet. Kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline import Digests
from vadpipe.kernels.digest_table import DigestTable

from ..format.packs import FRAME_ROW
from .cells import Rows


class Draft:
    """Chunks and frames in memory, in the order in which they were planned. Rows of frames as in FRAME_ROW."""

    def __init__(self, serial: int, rows: int) -> None:
        self.serial = serial
        self.missing = 0  # frames that were promised and are not stored yet
        self._table = DigestTable(rows)
        self._chunk = np.empty((rows, 2), dtype=np.uint32)  # frame, place
        self._waiting: list[tuple[Digests, NDArray[np.uint32]]] = []  # inserted together: cheaper by far
        self._waiting_rows = 0
        self._frame = np.zeros(1024, dtype=FRAME_ROW)
        self._frames = 0

    def __len__(self) -> int:
        return len(self._table) + self._waiting_rows

    def has_room(self, chunks: int) -> bool:
        return len(self) + chunks <= self._table.capacity

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def frame_rows(self) -> NDArray[np.void]:
        return self._frame[: self._frames]

    def ids(self, frame: Rows) -> Digests:
        ids: Digests = self.frame_rows["id"][frame]
        return ids

    def add_frame(self, length: Rows, digest: Digests, identity: bytes) -> int:
        row = self._frames
        if row == len(self._frame):
            self._frame = np.concatenate((self._frame, np.zeros_like(self._frame)))
        self._frame[row]["id"] = np.frombuffer(identity, np.uint8)
        self._frame[row]["length"] = length.sum()
        self._frame[row]["chunks"] = len(length)
        self._frames += 1
        self.missing += 1
        chunk = np.empty((len(length), 2), dtype=np.uint32)
        chunk[:, 0], chunk[:, 1] = row, np.cumsum(length) - length
        self._waiting.append((digest.copy(), chunk))
        self._waiting_rows += len(length)
        return row

    def lookup(self, digest: Digests) -> tuple[Rows, Rows]:
        self._insert()
        row = self._table.lookup(digest)
        found = self._chunk[row].astype(np.int64)
        return np.where(row >= 0, found[:, 0], -1), found[:, 1]

    def chunks(self) -> tuple[Digests, NDArray[np.uint32]]:
        """The columns digest and place, frame after frame."""
        self._insert()
        return self._table.digest, self._chunk[: len(self._table), 1]

    def _insert(self) -> None:
        if self._waiting:
            rows = self._table.insert(np.concatenate([digest for digest, _ in self._waiting]))
            self._chunk[rows] = np.concatenate([chunk for _, chunk in self._waiting])
            self._waiting, self._waiting_rows = [], 0
