"""What follows of a draft when all has happened, for each rule that reads several things at once.

Told from what the draft knows of its writers, never from its documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vadpipe.vss.requested import RequestedQuiescing

from .backup_types import AS_FULL, TYPE_RULES
from .draft import Draft, Standing

COMBINED = TYPE_RULES | {
    "context-differs",
    "database-excluded",
    "dependency-not-covered",
    "options-differ",
    "system-state-incomplete",
    "writer-excluded",
}
"""Rules about which this file speaks, beside those of the tables' rows."""

# Without component mode the lists of components mean nothing, so nothing follows from what they leave out.
_OF_ABSENCE = ("writer-not-included", "component-not-included", "mandatory-component-missing")
_SYSTEM_STATE = ("BOOTABLE_SYSTEM_STATE", "SYSTEM_SERVICE")
_NOT_SYSTEM_STATE = 4  # of a component's flags


@dataclass
class Application:
    """An application over all its writers that count; components by full path in lower case."""

    covered: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    level: str = ""


def conclude(draft: Draft) -> None:
    """Adds to the draft what has to be told; nothing may happen to it afterwards."""
    if draft.refused:
        return
    for standing in draft.standings:
        _exclude(draft, standing)
        if draft.selects_nothing:
            for rule, path in [one for one in standing.told if one[0] in _OF_ABSENCE]:
                del standing.told[rule, path]
        if standing.described:
            _lose_databases(standing)
            _bring_along(standing)
            _miss_system_state(draft, standing)
    if not any(standing.described for standing in draft.standings):
        for standing in draft.standings:  # one decision says it for all
            del standing.told["writer-without-metadata", ""]
    _depend(draft)
    _tell_types(draft)
    _compare_options(draft)
    _compare_context(draft)


def applications(draft: Draft) -> dict[str, Application]:
    """By name. What is not shown consistent is as consistent as its files, if anything is known of these."""
    found: dict[str, Application] = {}
    for standing in () if draft.refused else draft.standings:
        if standing.counts and (standing.covered or standing.uncovered):
            one = found.setdefault(standing.application, Application())
            one.covered += standing.covered
            one.uncovered += standing.uncovered
    for one in found.values():
        if one.covered:
            one.level = "application-partial" if one.uncovered or draft.doubted else "application"
        else:
            one.level = "unknown" if draft.verdict()[0] == "unknown" else "file-system"
    return found


def effective_type(draft: Draft, standing: Standing) -> tuple[str, bool]:
    """(what the type comes to for this writer, whether anything is to be said of its logs)."""
    asked = _asked_type(draft)
    if not asked or not any(part.standing is standing and part.listed is not None for part in draft.parts):
        return "", False
    effective, rule = standing.writer.types.of(asked)
    return effective, rule not in ("", AS_FULL)


def _exclude(draft: Draft, standing: Standing) -> None:
    """A name that only its lost document tells is no name to exclude it by."""
    has_name = standing.described or bool(standing.writer.application)
    for one in draft.circumstances.exclusions:
        if one.writer_id == standing.writer_id and (has_name or one.by != "name"):
            standing.excluded = True
    if standing.excluded:
        standing.tell("writer-excluded")
        del standing.told["writer-not-included", ""]


def _lose_databases(standing: Standing) -> None:
    """Files of databases that the writer leaves out: nothing offers these."""
    for file in standing.writer.lost:
        standing.tell("database-excluded", file)
        standing.doubt("database-excluded", file)


def _bring_along(standing: Standing) -> None:
    """Components that nobody lists share the fate of the one that brings them along."""
    for component in standing.writer.components:
        path, carrier = component.full_path.lower(), component.under.lower()
        if carrier and path not in standing.covered | standing.uncovered:
            (standing.covered if carrier in standing.covered else standing.uncovered).add(path)


def _miss_system_state(draft: Draft, standing: Standing) -> None:
    """With the flag set, these writers take part together; what failed is as good as missing."""
    if not draft.backups or draft.selects_nothing:
        return
    if not draft.circumstances.system_state or not standing.counts:
        return
    expected = {
        one.full_path.lower()
        for one in standing.writer.components
        if one.listed and not one.either and not one.flags & _NOT_SYSTEM_STATE
    }
    if standing.writer.usage in _SYSTEM_STATE and expected & standing.missed:
        standing.tell("system-state-incomplete")


def _depend(draft: Draft) -> None:
    """What is covered may need what is not, or what is on another machine and cannot be covered here."""
    for need in draft.needs:
        met = any(need.on in one.covered for one in draft.standings if one.writer_id == need.writer_id)
        if need.standing.described and need.path in need.standing.covered and (need.remote or not met):
            need.standing.tell("dependency-not-covered", need.path)


def _asked_type(draft: Draft) -> str:
    """What the document says in a known spelling, else what was sent."""
    sent = draft.circumstances.sent
    if not draft.backups:
        return sent.backup_type if sent else ""
    return draft.circumstances.backup_type or (sent.backup_type if sent else "")


def _tell_types(draft: Draft) -> None:
    """Only its own document tells that a writer has a database."""
    asked = _asked_type(draft)
    for part in draft.parts:
        if asked and part.listed is not None:
            rule = part.writer.types.of(asked)[1]
            if rule and (part.standing.described or rule != AS_FULL):
                part.standing.tell(rule)


def _compare_options(draft: Draft) -> None:
    """Against what was sent, or VMware's defaults; without any writer they concern nobody."""
    told, sent = draft.circumstances, draft.circumstances.sent or RequestedQuiescing("application")
    differences = [
        told.backup_type not in ("", sent.backup_type),
        told.system_state not in (None, sent.bootable_system_state),
        told.partial_files not in (None, sent.partial_files),
    ]
    if any(one.described for one in draft.standings) or any(part.listed is not None for part in draft.parts):
        for _ in draft.backups:
            draft.told.update(["options-differ"] * sum(differences))


def _compare_context(draft: Draft) -> None:
    """By VMware's reading writers took part when their documents came along; damaged ones tell nothing."""
    sent = draft.circumstances.sent
    if sent is None or sent.kind == "auto" or not draft.backups:
        return
    took_part = any(standing.described for standing in draft.standings)
    if took_part is not (sent.kind == "application") and (took_part or not draft.told["document-unreadable"]):
        draft.told["context-differs"] += 1
