"""Which objects a property filter selects, and the values of its property paths.

A filter starts at objects and walks: a TraversalSpec names a property of a type, whose objects are visited next
with the specs in its own selectSet; a bare SelectionSpec refers to a TraversalSpec by name, also to one that
contains it, which is how clients descend folders of any depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vmodl

from .managed import Managed, typed

if TYPE_CHECKING:
    from ..service import SessionScope

_STEP = re.compile(r"""\.?(?P<name>\w+)(?:\[(?:"(?P<text>[^"]*)"|(?P<number>-?\d+))\])?""")


@dataclass(frozen=True)
class Selected:
    """One object and the property paths wanted from it."""

    managed: Managed
    paths: tuple[str, ...]


def select(scope: SessionScope, spec: vmodl.query.PropertyCollector.FilterSpec) -> Iterator[Selected]:
    """The objects that `spec` selects, each once, in walking order. Raises ManagedObjectNotFound."""
    seen: set[str] = set()
    for start in spec.objectSet:
        for managed in _Walk(scope, start).objects():
            wanted = _wanted(managed, spec.propSet)
            if managed.moref not in seen and wanted is not None:
                seen.add(managed.moref)
                yield Selected(managed, wanted)


def _wanted(
    managed: Managed, specs: list[vmodl.query.PropertyCollector.PropertySpec]
) -> tuple[str, ...] | None:
    """The paths for this object by the most derived type that matches, None when none does."""
    matching = [spec for spec in specs if issubclass(managed.vim_type, spec.type)]
    if not matching:
        return None
    best = max(matching, key=lambda spec: len(spec.type.__mro__))
    return tuple(sorted(managed.properties)) if best.all else tuple(best.pathSet)


class _Walk:
    """One walk from one starting object."""

    def __init__(self, scope: SessionScope, start: vmodl.query.PropertyCollector.ObjectSpec) -> None:
        self._scope = scope
        self._start = start
        self._named: dict[str | None, vmodl.query.PropertyCollector.TraversalSpec] = {}
        self._visited: set[tuple[str, int]] = set()
        self._collect_names(start.selectSet)

    def objects(self) -> Iterator[Managed]:
        managed = self._scope.find(self._start.obj)
        if not self._start.skip:
            yield managed
        yield from self._from(managed, self._start.selectSet)

    def _collect_names(self, specs: list[vmodl.query.PropertyCollector.SelectionSpec]) -> None:
        for spec in specs:
            if isinstance(spec, vmodl.query.PropertyCollector.TraversalSpec):
                if spec.name:
                    self._named[spec.name] = spec
                self._collect_names(spec.selectSet)

    def _from(
        self, managed: Managed, specs: list[vmodl.query.PropertyCollector.SelectionSpec]
    ) -> Iterator[Managed]:
        for spec in specs:
            if not isinstance(spec, vmodl.query.PropertyCollector.TraversalSpec):
                spec = self._resolved(spec.name)
            if not issubclass(managed.vim_type, spec.type) or (managed.moref, id(spec)) in self._visited:
                continue
            self._visited.add((managed.moref, id(spec)))
            for reference in _references(read_path(managed, spec.path)):
                below = self._scope.find(reference)
                if not spec.skip:
                    yield below
                yield from self._from(below, spec.selectSet)

    def _resolved(self, name: str | None) -> vmodl.query.PropertyCollector.TraversalSpec:
        try:
            return self._named[name]
        except KeyError:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="specSet", msg=f"No TraversalSpec is named {name!r}."
            ) from None


def _references(value: object) -> list[VmomiSupport.ManagedObject]:
    """What a traversed property points to: many objects, one, or none."""
    if isinstance(value, VmomiSupport.ManagedObject):
        return [value]
    return list(value) if isinstance(value, list) else []


def read_path(managed: Managed, path: str) -> object:
    """The value at a path such as `config.hardware.device[2000].backing`, None when unset.

    Raises InvalidProperty when the API has no such path.
    """
    value: object = None
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise vmodl.query.InvalidProperty(name=path)
        value = _read_step(managed if position == 0 else value, step["name"], path)
        if step["text"] is not None or step["number"] is not None:
            value = _element(value, step["text"] if step["number"] is None else int(step["number"]), path)
        if value is None:
            return None
        position = step.end()
    return value


def _read_step(holder: object, name: str, path: str) -> object:
    if isinstance(holder, Managed):
        return holder.read(name)
    try:
        declared = holder._GetPropertyInfo(name)  # type: ignore[attr-defined]
    except AttributeError:
        raise vmodl.query.InvalidProperty(name=path) from None
    return typed(getattr(holder, name), declared.type)


def _element(value: object, key: str | int, path: str) -> object:
    """The element of a list whose `key` is that; a list element without one cannot be addressed."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise vmodl.query.InvalidProperty(name=path)
    return next((element for element in value if getattr(element, "key", None) == key), None)
