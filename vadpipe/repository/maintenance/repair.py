"""Repair: what is damaged goes out of use, what is sound of it stays, and the index is whole again.

Frames that are sound in a damaged pack are copied into a new one. Packs that no index segment names any more,
because their segment is lost, are indexed again from their own tables. Damaged packs and segments are named by a
removal, like all that goes (removal.py). Damaged points are put aside. What was lost with a frame stays lost: the
report says of which points, disks and ranges.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from vadpipe.words import counted

from ..backends.contract import ObjectExists
from ..format import frames
from ..format.config import Config, Origin
from ..format.objects import INDEX, LARGEST_POINT, PACKS, Damage, Objects, run_of, stem
from ..format.packs import PackWriter, addresses, read_chunks, read_table, sound_frames
from ..format.restore_point import point_names
from ..index.lookup import AnySegment, Removed, RunIndex
from ..reader import RepositoryReader
from ..removal import read_removed, replace_segments
from ..runs import Run, maintenance, unended_runs
from .reading_packs import PackToRead, check_pack

log = logging.getLogger(__name__)

ASIDE = "aside/"


@dataclass
class RepairReport:
    """What was repaired: names of objects, and frames.

    packs: Damaged packs, which go. saved: Frames that were sound in them. lost: Ids of frames that were not.
    segments: Damaged segments, which go. indexed: Packs that were indexed again, as no segment had all their
    frames. points: Damaged points, which were put aside.
    """

    packs: list[str] = field(default_factory=list)
    saved: int = 0
    lost: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    indexed: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    dry_run: bool = False

    def lines(self) -> list[str]:
        """For people."""
        if not (self.packs or self.segments or self.indexed or self.points):
            return ["Nothing is damaged."]
        would = "Would be" if self.dry_run else "Were"
        lines = []
        if self.packs:
            lines.append(
                f"{would} taken out of use: {counted(len(self.packs), 'damaged pack')}; of their frames "
                f"{self.saved} are sound and kept, {len(self.lost)} are lost."
            )
        if self.segments:
            lines.append(f"{would} taken out of use: {counted(len(self.segments), 'damaged index segment')}.")
        if self.indexed:
            lines.append(f"{would} indexed again: {counted(len(self.indexed), 'pack')}.")
        if self.points:
            lines.append(f"{would} put aside: {counted(len(self.points), 'damaged point')}, below {ASIDE}.")
        if not self.dry_run:
            lines.append("`vadpipe verify` names the points, disks and ranges that lost something.")
        return lines


def repair(objects: Objects, config: Config, origin: Origin, *, dry_run: bool = False) -> RepairReport:
    """Read everything, and take out of use what is damaged. For a worker thread.

    Args:
        dry_run: Nothing is changed.

    Raises:
        SinkError
    """
    if dry_run:
        return _Repair(objects, config, origin, None).do()
    with maintenance(objects, config, origin) as run:
        return _Repair(objects, config, origin, run).do()


class _Repair:
    def __init__(self, objects: Objects, config: Config, origin: Origin, run: Run | None) -> None:
        self._objects = objects
        self._config = config
        self._origin = origin
        self._run = run
        self._report = RepairReport(dry_run=run is None)

    def do(self) -> RepairReport:
        objects, config = self._objects, self._config
        packs = [stem(found.name) for found in objects.backend.list(PACKS)]
        running = set(unended_runs(objects))
        reader = RepositoryReader(objects, config)
        reader.index.drop_damaged()
        removed = read_removed(objects, config)
        segments = {objects.place(found.name): stem(found.name) for found in objects.backend.list(INDEX)}
        damaged = [str(error.facts.get("segment")) for error in reader.index.damaged]
        self._report.segments = [segments[place] for place in damaged if place in segments]
        listed: dict[str, PackToRead] = {}
        for segment in reader.index.segments:
            for name, rows in segment.frames_by_pack().items():
                listed.setdefault(name, PackToRead(name)).listed.append((segment, rows))
        wrong: set[AnySegment] = set()  # their checksums are right, and they say what the packs do not
        for name in packs:
            if name in removed.packs or run_of(f"{name}.pack") in running:
                continue
            found = check_pack(objects, config, listed.get(name, PackToRead(name)))
            if found.problem or found.damaged:
                self._report.packs.append(name)
                self._report.lost += [address.id.hex() for address, _ in found.damaged]
            elif found.unlisted:
                self._report.indexed.append(name)
            wrong.update(segment for segment, _ in found.misplaced)
        self._report.packs += [name for name in listed if name not in packs and name not in removed.packs]
        sound = [segment for segment in reader.index.segments if segment not in wrong]
        self._report.segments += [stem(segment.name) for segment in reader.index.segments if segment in wrong]
        naming = [segment.name for segment in sound if set(self._report.packs).intersection(segment.packs())]
        reader.index.close()
        self._save()
        if self._run is not None and (self._report.packs or self._report.segments):
            replace_segments(
                objects,
                config,
                self._run,
                self._origin,
                naming,
                self._report.packs,
                packs=self._report.packs,
                more_segments=self._report.segments,
            )
        self._put_points_aside(reader)
        return self._report

    def _save(self) -> None:
        """Copy sound frames of damaged packs, and index what no segment names."""
        if self._run is None:
            self._report.saved = sum(
                1 for name in self._report.packs for _ in sound_frames(self._objects, name)
            )
            return
        objects, config, run = self._objects, self._config, self._run
        writer = PackWriter(objects, config, run.id)
        everything = frozenset(stem(found.name) for found in objects.backend.list(INDEX))
        index = RunIndex(
            objects,
            config.id,
            run.id,
            config.keys,
            config.sealing,
            Removed(segments=everything),  # it writes only
            first=run.segments,
        )
        try:
            for name in self._report.packs:
                for address, content in sound_frames(objects, name):
                    try:
                        chunk = frames.parse_chunks(bytes(content), address.id, config)
                    except Damage as damage:
                        log.info("a frame of pack %s is lost: %s", name, damage)
                        continue
                    record = frames.Record(address.id, address.length, len(chunk), bytes(content), b"")
                    serial, (offset,) = writer.append([record])
                    number = index.add_frame(chunk["length"].astype("i8"), chunk["digest"], address.id)
                    index.stored(number, serial, offset, address.size)
                    self._report.saved += 1
            for name in self._report.indexed:
                self._index(index, name)
            writer.finish()
            run.segments += len(index.publish(run.segments))
        finally:
            writer.close()
            index.close()

    def _index(self, index: RunIndex, name: str) -> None:
        for address in addresses(read_table(self._objects, self._config.id, name), name):
            chunk = read_chunks(self._objects, self._config, address)
            number = index.add_frame(chunk["length"].astype("i8"), chunk["digest"], address.id)
            index.found(number, address)

    def _put_points_aside(self, reader: RepositoryReader) -> None:
        names = {self._objects.place(name): name for name in point_names(self._objects)}
        for error in reader.damaged:
            name = names.get(str(error.facts.get("point")))
            if name is None:
                continue
            self._report.points.append(name)
            if self._run is None:
                continue
            try:
                content = self._objects.read_whole(name, LARGEST_POINT)
                self._objects.backend.put(f"{ASIDE}{name}", [content])
            except (Damage, ObjectExists) as exc:
                log.info("%s is not kept aside: %s", self._objects.place(name), exc)
            self._objects.backend.delete([name])
