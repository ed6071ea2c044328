"""What lies beside a restored machine for its applications: VSS documents, and a sheet for each writer.

A restore from outside the guest brings disks back, and proves them. What remains is the work of a guest agent, with
the documents of VSS in its hands; these files are for it and for the person who directs it. They go into a
directory or onto a small CD image (`vadpipe.iso`), so their names suit ISO 9660 with Joliet, and Windows.

Everything in the documents was written inside a guest: it is read within the bounds of the verdict's readers, no
name in it becomes a path, and its control characters are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vadpipe.plaintext import heading, item, paragraph, paragraphs, section, steps, windows_text
from vadpipe.words import counted, printable

from . import advice
from .classify import classify_manifest
from .documents import BackupComponent, WriterComponent
from .evidence import WriterEvidence
from .material import FileEntry, Locations, Material, read_locations, read_material
from .requested import distinguishes_types, effect_on_logs
from .verdict import Coverage, Level, Verdict, WriterVerdict, read_verdict

README = "README.txt"
MAX_SHEETS = 99  # their numbers have two digits; real guests have a dozen or two writers
_MAX_NAMED = 500  # components on a sheet
_MAX_FINDINGS = 50  # of a writer
_MAX_NAME = 48  # characters of a writer's name in the name of its file


@dataclass(frozen=True, slots=True)
class PointFacts:
    """What a sheet says of its restore point.

    Args:
        machine: The name of the VM.
        point: The point's id.
        created: When, as the point has it.
        asked: The consistency that was asked for.
        reached: The one that was reached; None: nobody looked.
        reasons: Why, as the point has it.
    """

    machine: str
    point: str
    created: str
    asked: str
    reached: str | None
    reasons: Sequence[str] = ()


def restore_sheet(
    facts: PointFacts, manifest: bytes | None, verdict: Mapping[str, object]
) -> dict[str, bytes]:
    """The files that go beside a restored machine: `README.txt`, `NN-<writer>.txt`, `documents/...`.

    Args:
        facts: The restore point.
        manifest: The VSS manifest as the point holds it, or the document of a Linux guest; None: it has none.
        verdict: The stored verdict. Without one the manifest is judged now, and the sheet says so.

    Returns:
        Contents by relative path, with `/` below `documents`. Never raises on bad input.
    """
    material = read_material(manifest)
    stored, origin = _verdict(facts, manifest, verdict)
    sheets = list(_sheets(facts, stored, material)) if stored else []
    texts = {sheet.name: windows_text(sheet.lines) for sheet in sheets[:MAX_SHEETS]}
    readme = _Readme(facts, stored, origin, material, sheets)
    return {README: windows_text(readme.lines()), **texts, **material.files}


def _verdict(
    facts: PointFacts, manifest: bytes | None, stored: Mapping[str, object]
) -> tuple[Verdict | None, str]:
    """The verdict, and a sentence where it is not the stored one. None: nobody looked."""
    if stored:
        return read_verdict(stored), ""
    if manifest is not None:
        said = "The point holds no verdict on its documents; they were judged when this sheet was written."
        return classify_manifest(manifest), said
    level = next((level for level in Level if level.value == facts.reached), None)
    return (None if level is None else Verdict(level, ())), ""


@dataclass(frozen=True)
class _Sheet:
    """One writer's file. `summary`: what is proven, for the README."""

    name: str
    title: str
    summary: str
    lines: Sequence[str]


def _sheets(facts: PointFacts, verdict: Verdict, material: Material) -> Iterator[_Sheet]:
    """Writers that took part first, of these the applications that have advice; else in the documents' order."""
    judged = {writer.ids: writer for writer in verdict.writers}
    found = {(one.writer_id, one.instance_id): one for one in material.evidence.writers}
    writers = [
        _WriterSheet(facts, verdict, ids, judged.get(ids), found.get(ids), material)
        for ids in dict.fromkeys([*judged, *found])
    ]
    writers.sort(key=lambda one: (not one.took_part, one.application not in advice.APPLICATIONS))
    for number, one in enumerate(writers, 1):
        # A number comes first, so no name is a device's and none is there twice.
        name = re.sub(r"[^A-Za-z0-9-]+", "_", one.name)[:_MAX_NAME].strip("_") or "writer"
        lines = list(one.lines()) if number <= MAX_SHEETS else ()
        yield _Sheet(f"{number:02}-{name}.txt", one.title, one.state, lines)


@dataclass(frozen=True)
class _WriterSheet:
    """One writer: the stored verdict on it, and what its documents say. One of the two may be missing."""

    facts: PointFacts
    verdict: Verdict
    ids: tuple[str, str]
    judged: WriterVerdict | None
    evidence: WriterEvidence | None
    material: Material

    @property
    def name(self) -> str:
        stated = self.judged.name if self.judged else ""
        return printable(stated or (self.evidence.name if self.evidence else "") or "unnamed writer")

    @property
    def took_part(self) -> bool:
        if self.evidence:
            return self.evidence.backup is not None
        return bool(self.judged and (self.judged.covered or self.judged.effective_backup_type))

    @property
    def application(self) -> str:
        stated = self.judged.application if self.judged else ""
        return stated or (self.evidence.application if self.evidence else "")

    @property
    def title(self) -> str:
        return f"{self.name} ({printable(self.application)})" if self.application else self.name

    @property
    def state(self) -> str:
        """In a few words what is proven of the writer."""
        if self.judged is None:
            return "not judged"
        if self.judged.excluded:
            return "excluded by the configuration"
        state = {
            Coverage.COVERED: "all its components are proven",
            Coverage.PARTLY: "some of its components are proven",
            Coverage.NOT_COVERED: "nothing of it is proven",
            Coverage.NOTHING_TO_COVER: "it has no components",
        }[self.judged.coverage]
        return state if self.judged.counts else f"{state}; a disk image is whole without it"

    def lines(self) -> Iterator[str]:
        yield from _head(self.title, self.facts)
        yield from section("What is proven", self._proven())
        yield from section("Backup type and logs", self._logs())
        yield from section("How the writer wants its files put back", self._method())
        yield from section("Components and their files", self._components())
        texts = advice.APPLICATIONS.get(self.application, advice.OTHER_APPLICATIONS)
        yield from section("What to do", paragraphs(texts))
        agent = "A guest agent works in the order that README.txt gives."
        place = self.material.places.get(self._document)
        yield from section("For a guest agent", [*paragraph(agent), *self._agent(place)])

    @property
    def _document(self) -> str:
        metadata = self.evidence.metadata if self.evidence else None
        return metadata.document if metadata else ""

    def _agent(self, place: str | None) -> Iterator[str]:
        yield f"  backup components document: {self.material.backup or 'there is none'}"
        yield f"  document of this writer:    {place or 'there is none'}"
        yield f"  class id of the writer:     {printable(self.ids[0]) or 'unknown'}"
        yield f"  id of the instance then:    {printable(self.ids[1]) or 'unknown'}"

    def _proven(self) -> Iterator[str]:
        yield from paragraph(f"{self.state[0].upper()}{self.state[1:]}.")
        application = self.verdict.application(self.application)
        if application:
            yield from paragraph(f"{printable(application.name)} as a whole: {application.level}.")
        if self.evidence and self.evidence.backup is None:
            yield from paragraph(
                "The writer has a document of its own, but the backup components document does not list it: it was "
                "not prepared for this snapshot."
            )
        findings = [
            one
            for one in self.verdict.findings
            if one.violation.writer == self.ids and one.violation.writer_id
        ]
        for finding in findings[:_MAX_FINDINGS]:
            yield from item(f"{finding.severity.value}: {printable(finding.found)}")
        if len(findings) > _MAX_FINDINGS:
            yield from item(f"and {len(findings) - _MAX_FINDINGS:,} findings more; `vadpipe show` lists all")

    def _logs(self) -> Iterator[str]:
        asked = self.material.evidence.backup_type
        performed = self.judged.effective_backup_type if self.judged else ""
        logs = self.judged.logs if self.judged else ""
        if self.evidence and not performed:
            performed = self.material.evidence.effective_type(self.evidence)
            keeps_logs = distinguishes_types(self.application, self.evidence.backup_schema)
            logs = effect_on_logs(self.application, performed) if keeps_logs else ""
        if not performed:
            yield from paragraph("The writer took no part in the backup, so its logs are as they were.")
            return
        if asked and asked != performed:
            yield from paragraph(
                f"A {asked} backup was asked for. This writer does not know that type; for it this was a "
                f"{printable(performed)} backup."
            )
        else:
            yield from paragraph(f"This was a {printable(performed)} backup.")
        yield from paragraph(
            f"Logs and history: {logs}."
            if logs
            else "The documents say nothing of logs that this writer keeps."
        )

    def _method(self) -> Iterator[str]:
        method = self._locations.method
        if method is None:
            yield from paragraph(
                "Its document states no restore method." if self._document else "It left no document."
            )
            return
        stated = printable(method.method) or "nothing"
        meaning = advice.RESTORE_METHODS.get(method.method, "")
        yield from item(f"restore method: {stated}{f' ({meaning})' if meaning else ''}")
        yield from item(
            f"the writer takes part in a restore: {printable(method.writer_restore) or 'not stated'}"
        )
        yield from item(
            f"a restart is required afterwards: {printable(method.reboot_required) or 'not stated'}"
        )

    @cached_property
    def _locations(self) -> Locations:
        return read_locations(self.material.contents.get(self._document, b""))

    def _components(self) -> Iterator[str]:
        locations = self._locations
        covered = frozenset(path.lower() for path in (self.judged.covered if self.judged else ()))
        named = 0
        known: set[str] = set()
        for path, listed, offered in _components_of(self.evidence):
            known.add(path.lower())
            named += 1
            if named > _MAX_NAMED:
                continue
            yield from self._component(path, listed, offered, locations, proven=path.lower() in covered)
        for path in (*self.judged.covered, *self.judged.uncovered) if self.judged else ():
            if path.lower() not in known:
                named += 1
                if named <= _MAX_NAMED:
                    yield f"  {printable(path)}: {'proven' if path.lower() in covered else 'not proven'}"
        if named > _MAX_NAMED:
            yield f"  and {counted(named - _MAX_NAMED, 'component')} more; the writer's document lists all"
        if not named:
            yield "  It has none."

    def _component(
        self,
        path: str,
        listed: BackupComponent | None,
        offered: WriterComponent | None,
        locations: Locations,
        *,
        proven: bool,
    ) -> Iterator[str]:
        caption = (
            printable(offered.caption) if offered and offered.caption.lower() != offered.name.lower() else ""
        )
        selected = "selected"
        if listed is None:
            comes_along = offered and self.evidence and self.evidence.carrier(offered)
            selected = "comes with the component above it" if comes_along else "not selected"
        yield (
            f"  {printable(path)}{f' ({caption})' if caption else ''}: {selected}, "
            f"{'proven' if proven else 'not proven'}"
        )
        for _, text in listed.failures if listed else ():
            yield f"    failure reported: {printable(text)}"
        if listed and listed.backup_succeeded is False:
            yield "    reported as failed"
        for needed in offered.dependencies if offered else ():
            yield f"    needs {printable(needed.path)} of writer {printable(needed.writer_id)}"
        if offered is None:
            yield "    its files are not known: the writer's own document does not have this component"
            return
        files = locations.files.get(offered.key, ())
        for entry in files:
            yield f"    {_file(entry)}"
        more = locations.counted.get(offered.key, 0) - len(files)
        if more > 0:
            yield f"    and {counted(more, 'file entry', 'file entries')} more; the writer's document lists all"
        elif not files:
            yield "    it names no files"


def _components_of(
    evidence: WriterEvidence | None,
) -> Iterator[tuple[str, BackupComponent | None, WriterComponent | None]]:
    """Listed components in their order, then offered ones that are not listed: path and both sides."""
    if evidence is None:
        return
    seen = set()
    for listed in evidence.included:
        if listed.key not in seen:
            seen.add(listed.key)
            yield listed.path, listed, evidence.offered.get(listed.key)
    for key, offered in evidence.offered.items():
        if key not in seen:
            yield offered.path, None, offered


def _file(entry: FileEntry) -> str:
    below = " (and in all directories below)" if entry.recursive else ""
    alternate = f" (alternate path: {entry.alternate})" if entry.alternate else ""
    return printable(f"{entry.path}{below}{alternate}")


@dataclass(frozen=True)
class _Readme:
    """What holds for the whole machine, and where everything is.

    `verdict`: None: nobody looked. `origin`: a sentence where it is not the point's.
    """

    facts: PointFacts
    verdict: Verdict | None
    origin: str
    material: Material
    sheets: Sequence[_Sheet]

    def lines(self) -> Iterator[str]:
        yield from _head(f"Applications of VM {printable(self.facts.machine)}", self.facts)
        yield from section("What a restore gives you", paragraphs(advice.WHAT_IT_MEANS))
        yield from section("How consistent the disks are", self._consistency())
        if self.sheets:
            yield from section("First steps", steps(advice.FIRST_STEPS))
        elif not self.material.linux:
            yield from section("If it is a domain controller", paragraphs(advice.DOMAIN_CONTROLLER))
        yield from section("Writers", self._writers())
        if self.material.backup:
            yield from section("Order of work for a guest agent", self._order())
            yield from section("Tools", [line for text in advice.TOOLS for line in item(text)])
        yield from section("Signing in", paragraphs(advice.SIGN_IN))
        yield from section("Documents", self._documents())

    def _consistency(self) -> Iterator[str]:
        reached = printable(self.facts.reached or "not verified")
        yield from paragraph(f"Asked for: {printable(self.facts.asked)}. Reached: {reached}.")
        if self.verdict is None:
            yield from paragraph(advice.NOT_VERIFIED)
        else:
            yield from paragraph(advice.LEVELS[self.verdict.level])
        if self.origin:
            yield from paragraph(self.origin)
        reasons = dict.fromkeys([*self.facts.reasons, self.verdict.reason if self.verdict else ""])
        for reason in reasons:
            if reason:
                yield from item(printable(reason))

    def _writers(self) -> Iterator[str]:
        for sheet in self.sheets[:MAX_SHEETS]:
            yield f"  {sheet.name}"
            yield from item(f"{sheet.title}: {sheet.summary}", indent=6)
        more = len(self.sheets) - MAX_SHEETS
        if more > 0:
            yield from paragraph(f"There are {counted(more, 'more writer')} without a sheet of their own.")
        if not self.sheets:
            yield from paragraph("No writer left a document, so there are no sheets.")

    def _order(self) -> Iterator[str]:
        yield f"  backup components document: {self.material.backup}"
        yield "  documents of the writers:   named on their sheets"
        yield ""
        yield from steps(advice.ORDER_OF_WORK)
        yield ""
        yield from paragraphs(advice.ABOUT_THE_ORDER)

    def _documents(self) -> Iterator[str]:
        if self.material.problem:
            yield from paragraph(f"Not everything can be read: {self.material.problem}.")
        if not self.material.files:
            yield from paragraph("The restore point holds no VSS documents.")
            return
        yield from paragraph("Byte for byte as VMware Tools wrote them inside the guest:")
        for name, content in self.material.files.items():
            yield f"  {name} ({len(content):,} bytes)"


def _head(title: str, facts: PointFacts) -> Iterator[str]:
    yield from heading(title)
    point, created = printable(facts.point), printable(facts.created)
    yield f"VM {printable(facts.machine)}, restore point {point}, made {created}"
