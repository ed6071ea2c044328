"""Which vSphere a VDDK works with: its own generation, the two before it, and the next one."""

from __future__ import annotations

from .facts import Version

# Generations of vSphere in their order. The rule is the vendor's: N-2 to N+1, without the next one's new features.
_GENERATIONS: tuple[Version, ...] = ((5, 0), (5, 1), (5, 5), (6, 0), (6, 5), (6, 7), (7, 0), (8, 0), (9, 0))
_BEFORE, _AFTER = 2, 1


def compare(vddk: Version, vsphere: Version) -> int | None:
    """-1: this vSphere is too old for the VDDK, 1: too new, 0: supported, None: not known."""
    ours, theirs = _place(vddk), _place(vsphere)
    if ours is None or theirs is None:
        return None
    if theirs < ours - _BEFORE:
        return -1
    return 1 if theirs > ours + _AFTER else 0


def _place(version: Version) -> int | None:
    """The newest generation that is not newer, -1 before the first; None where a bare major leaves it open."""
    majors = [generation for generation in _GENERATIONS if generation[0] == version[0]]
    if len(version) == 1 and len(majors) > 1:
        return None
    places = [place for place, generation in enumerate(_GENERATIONS) if generation <= (*version, 0)]
    return places[-1] if places else -1
