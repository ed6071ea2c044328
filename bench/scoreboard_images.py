"""The images of a scoreboard, and the steps that they make a round of."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.growth import BLOCK, rewrite
from bench.scoreboard_tools import Step
from pipeline import CLUSTER, GiB, MiB, TiB
from vadpipe.bench.images import describe, ext4_image
from vadpipe.bench.kernels import first_data

CAPACITY = 4 * TiB
DISKS = 16


@dataclass(frozen=True)
class Images:
    """Images that all rounds share. Those that a step does not need are not made."""

    tiny: Path
    base: Path
    sibling: Path
    noise: Path
    contiguous: Path
    scattered: Path
    disks: Path


def images_of(directory: Path, scratch: Path, given: argparse.Namespace) -> Images:
    size, chance = int(given.size * GiB), np.random.default_rng(given.seed)
    names = ("tiny", "noise", "contiguous", "scattered", "disks")
    found = {name: scratch / name / "disk.raw" for name in names}
    base = ext4_image(directory, size, given.fill * MiB, given.seed)
    sibling = base
    if "sibling" in given.only:
        sibling = ext4_image(directory, size, given.fill * MiB, given.seed, layout=1)
    if "tiny" in given.only:
        write_flat(found["tiny"], 1 * MiB, [(0, first_data(base, 1 * MiB).tobytes())])
    if "incompressible" in given.only:
        length = max(size // 8 // MiB, 1) * MiB
        pieces = ((offset, chance.bytes(MiB)) for offset in range(0, length, MiB))
        write_flat(found["noise"], length, pieces)
    if {"contiguous", "scattered", "disks"} & set(given.only):
        data = first_data(base, max(size // 4 // MiB, 1) * MiB).tobytes()
        count = len(data) // MiB
        apart = CAPACITY // count
        for name, distance in (("contiguous", MiB), ("scattered", apart // CLUSTER * CLUSTER)):
            pieces = ((at * distance, data[at * MiB : (at + 1) * MiB]) for at in range(count))
            write_flat(found[name], CAPACITY, pieces)
        share = len(data) // DISKS // CLUSTER * CLUSTER
        for number in range(DISKS):
            part = (
                data[number * share : (number + 1) * share] if number < DISKS - 1 else data[number * share :]
            )
            write_flat(found["disks"].with_stem(f"disk{number:02}"), len(part), [(0, part)])
    found["disks"] = found["disks"].with_stem("disk00")
    return Images(base=base, sibling=sibling, **found)


def write_flat(image: Path, size: int, pieces: Iterator[tuple[int, bytes]] | list[tuple[int, bytes]]) -> None:
    """A sparse raw image with these bytes at these offsets, and its descriptor."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    describe(image, size)


def steps_of(images: Images, place: Path, given: argparse.Namespace) -> Iterator[Step]:
    """The steps of one round. An image is changed when the step that needs the change is asked for."""
    chance = np.random.default_rng(given.seed)
    image = place / "vm" / "disk.raw"
    image.parent.mkdir()
    describe(image, images.base.stat().st_size)
    subprocess.run(["cp", "--sparse=always", images.base, image], check=True)
    full = Step("full", "back up", image)
    if "tiny" in given.only:
        yield Step("tiny", "back up", images.tiny, vm="tiny")
    for action in ("discard", "verify"):
        if f"tiny-{action}" in given.only:
            yield Step(f"tiny-{action}", action, images.tiny, vm="tiny")
    if "full" in given.only:
        yield full
    for step in (Step(name, name, image) for name in ("discard", "restore", "verify")):
        if step.name in given.only:
            yield step
    if "nothing" in given.only:
        yield replace(full, name="nothing", known=image)
    if "blocks" in given.only:
        rewrite(image, BLOCK, given.blocks, chance)
        yield replace(full, name="blocks", known=images.base)
    if "writes" in given.only:
        offsets = np.array(rewrite(image, CLUSTER, given.writes, chance))
        blocks = np.unique(offsets // BLOCK) * BLOCK
        written, areas = place / "written.npy", place / "areas" / "disk.raw"
        np.save(written, blocks)
        with image.open("rb") as file:

            def area(offset: int) -> bytes:
                file.seek(offset)
                return file.read(BLOCK)

            write_flat(areas, image.stat().st_size, [(at, area(at)) for at in blocks.tolist()])
        yield replace(full, name="writes", known=images.base, written=written, areas=areas)
    if "sibling" in given.only:
        yield replace(full, name="sibling", image=images.sibling, known=image)
    if "incompressible" in given.only:
        yield Step("incompressible", "back up", images.noise, vm="noise")
    for name in ("contiguous", "scattered", "disks"):
        if name in given.only:
            yield Step(name, "back up", getattr(images, name), vm=name, huge=True)
