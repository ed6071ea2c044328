"""A chain of VMDK files, leaf first, opened as one disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pipeline.extents import Extents
from pipeline.units import CLUSTER

from .sparse_vmdk import GRAIN, MAGIC, SparseExtent, create_sparse
from .vmdk_descriptor import Parent, descriptor_text, field, with_field
from .vmdk_files import data_extents, joined, pieces_of, units_where
from .vmdk_flat import FlatExtent, create_flat, flat_path

Provisioning = Literal["thin", "flat"]
Link = SparseExtent | FlatExtent


def open_link(path: Path, *, writable: bool = False) -> Link:
    """Open one VMDK of the lab, whichever of its two kinds it is."""
    with path.open("rb") as file:
        kind = SparseExtent if file.read(len(MAGIC)) == MAGIC else FlatExtent
    return kind(path, writable=writable)


class Chain:
    """Open links of one disk, leaf first; an empty chain reads as zero."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = links

    def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        if length:
            for link in reversed(self.links):
                link.read_into(offset, memoryview(data))
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write into the leaf."""
        if data:
            self.links[0].write(offset, memoryview(data), Chain(self.links[1:]).read)

    def allocated(self, offset: int, length: int) -> Extents:
        """What any of the links holds; the rest reads as zero."""
        return joined([link.allocated(offset, length) for link in self.links])


@contextmanager
def opened_chain(paths: Sequence[Path], *, writable: bool = False) -> Iterator[Chain]:
    """Open a chain, leaf first, for the `with` block; `writable` concerns the leaf only."""
    links: list[Link] = []
    with ExitStack() as stack:
        for path in paths:
            link = open_link(path, writable=writable and not links)
            stack.callback(link.close)
            links.append(link)
        yield Chain(links)


def create_base(path: Path, capacity: int, uuid: UUID, provisioning: Provisioning) -> None:
    """Create the empty base of a disk. Raises FileExistsError."""
    if provisioning == "thin":
        kind, extent, create = "monolithicSparse", f'SPARSE "{path.name}"', create_sparse
    else:
        kind, extent, create = "monolithicFlat", f'FLAT "{flat_path(path).name}" 0', create_flat
    create(path, capacity, descriptor_text(create_type=kind, extent=extent, capacity=capacity, uuid=uuid))


def create_redo(path: Path, parent: Path, capacity: int, uuid: UUID) -> None:
    """Create an empty redo log on `parent`. Raises FileExistsError."""
    with closing(open_link(parent)) as link:
        hangs_on = Parent(os.path.relpath(parent, path.parent), field(link.descriptor, "CID"))
    text = descriptor_text(
        create_type="monolithicSparse",
        extent=f'SPARSE "{path.name}"',
        capacity=capacity,
        uuid=uuid,
        parent=hangs_on,
    )
    create_sparse(path, capacity, text)


def merge_down(child: Path, below: Sequence[Path], hanging: Sequence[Path]) -> None:
    """Write what a redo log holds into its parent, and hang the redo logs that hung on it on the parent.

    `below`: the chain from the parent to the base. The parent shows then what the redo log showed, so it
    takes over its CID, and the `parentCID` of those that hung on it stays right. May be repeated after a kill.
    """
    with opened_chain(below, writable=True) as chain, closing(open_link(child)) as link:
        for offset, length in pieces_of(link.allocated(0, link.capacity)):
            data = bytearray(length)
            link.read_into(offset, memoryview(data))
            chain.write(offset, data)
        parent = chain.links[0]
        parent.descriptor = with_field(parent.descriptor, "CID", field(link.descriptor, "CID"))
    for path in hanging:
        with closing(open_link(path, writable=True)) as redo:
            redo.descriptor = with_field(redo.descriptor, "parentFileNameHint", below[0].name)


def differing_clusters(chain: Chain, raw: int, capacity: int) -> Extents:
    """The clusters in which a raw image (an open file) differs from the chain.

    Only what one of the two holds data for is read and compared.
    """
    candidates = data_extents(raw, 0, capacity) | chain.allocated(0, capacity)
    found = []
    for offset, length in pieces_of(candidates.aligned(CLUSTER, capacity)):
        ours = np.frombuffer(chain.read(offset, length), dtype=np.uint64)
        theirs = np.frombuffer(os.pread(raw, length, offset), dtype=np.uint64)
        found.append(units_where(_any_bit(ours ^ theirs, CLUSTER), CLUSTER, offset, capacity))
    return joined(found)


def occupied_grains(raw: int, capacity: int) -> Extents:
    """The grains of a raw image (an open file) that are not all zero."""
    found = []
    for offset, length in pieces_of(data_extents(raw, 0, capacity).aligned(GRAIN, capacity)):
        data = np.frombuffer(os.pread(raw, length, offset), dtype=np.uint64)
        found.append(units_where(_any_bit(data, GRAIN), GRAIN, offset, capacity))
    return joined(found)


def _any_bit(words: NDArray[np.uint64], unit: int) -> NDArray[np.bool_]:
    """For each `unit` bytes of `words` (the last may be shorter): is any bit set?"""
    bits = np.bitwise_or.reduceat(words, np.arange(0, len(words), unit // words.itemsize))
    return np.asarray(bits != 0)
