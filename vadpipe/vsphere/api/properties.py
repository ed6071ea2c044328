"""Reading properties: narrow paths, one PropertyCollector pass, page by page.

These functions block: they run inside `VcenterSession.call`. A property that is unset is absent from a row. One
that may not be read raises its fault where one object is asked for, so that an ended session or a missing privilege
never looks like "unset".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import ManagedObject

_PAGE = 500  # objects per answer; a vCenter caps a page on its own as well

Collector = vmodl.query.PropertyCollector


@dataclass(frozen=True)
class Row:
    """Properties of one object. `kind` is the API's type name without its module, e.g. 'VirtualMachine'.

    Values are pyVmomi's, hence `Any`; the function that asked knows their type from the path.
    """

    kind: str
    moref: str
    values: Mapping[str, Any]

    def get(self, path: str) -> Any:  # noqa: ANN401
        return self.values.get(path)


def read(content: vim.ServiceInstanceContent, subject: ManagedObject, paths: Sequence[str]) -> Row:
    """The properties of one object."""
    (row,) = read_each(content, [subject], paths, strict=True)
    return row


def read_each(
    content: vim.ServiceInstanceContent,
    subjects: Sequence[ManagedObject],
    paths: Sequence[str],
    *,
    strict: bool = False,
) -> list[Row]:
    """The properties of some objects of one type, in any order.

    What may not be read of one is absent from its row; with `strict` it raises its fault.
    """
    if not subjects:
        return []
    spec = Collector.FilterSpec(
        objectSet=[Collector.ObjectSpec(obj=subject) for subject in subjects],
        propSet=[Collector.PropertySpec(type=type(subjects[0]), pathSet=list(paths))],
    )
    return [_row(found, strict=strict) for found in _pages(content, spec)]


def read_all(
    content: vim.ServiceInstanceContent, wanted: Mapping[type[ManagedObject], Sequence[str]]
) -> list[Row]:
    """The properties of every object of these types below the root folder that the account may see."""
    manager = content.viewManager
    assert manager is not None  # only provisioning services lack one
    view = manager.CreateContainerView(content.rootFolder, list(wanted), True)
    try:
        step = Collector.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
        spec = Collector.FilterSpec(
            objectSet=[Collector.ObjectSpec(obj=view, skip=True, selectSet=[step])],
            propSet=[
                Collector.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in wanted.items()
            ],
        )
        return collect(content, spec)
    finally:
        view.Destroy()


def collect(content: vim.ServiceInstanceContent, spec: Collector.FilterSpec) -> list[Row]:
    """The properties that a filter of one's own selects; what may not be read is absent from its row."""
    return [_row(found, strict=False) for found in _pages(content, spec)]


def _pages(
    content: vim.ServiceInstanceContent, spec: Collector.FilterSpec
) -> Iterable[Collector.ObjectContent]:
    collector = content.propertyCollector
    page = collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions(maxObjects=_PAGE))
    while page is not None:
        yield from page.objects
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None


def _row(found: Collector.ObjectContent, *, strict: bool) -> Row:
    if strict:
        for missing in found.missingSet:
            raise missing.fault
    kind = type(found.obj).__name__.rpartition(".")[2]
    return Row(kind, str(found.obj._moId), {item.name: item.val for item in found.propSet})
