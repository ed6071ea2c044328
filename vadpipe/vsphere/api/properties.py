"""Properties of managed objects, read by narrow paths in one PropertyCollector pass, page by page.

These functions block; call them inside `VcenterSession.call`. An unset property is absent from its row. `read`
raises the fault of a property that cannot be read, so that an ended session or a missing privilege never looks like
an unset property.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import ManagedObject

_PAGE = 500  # objects per answer; a vCenter caps a page on its own as well

Collector = vmodl.query.PropertyCollector


@dataclass(frozen=True)
class Row:
    """Properties of one object.

    Args:
        kind: The API's type name without its module, e.g. 'VirtualMachine'.
        moref: The id of the object.
        values: By path; values are pyVmomi's, and the path determines their type.
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
    """The properties of several objects of one type, in any order. `strict`: see `read_from`."""
    if not subjects:
        return []
    starts = [Collector.ObjectSpec(obj=subject) for subject in subjects]
    return list(read_from(content, starts, {type(subjects[0]): paths}, strict=strict))


def read_all(
    content: vim.ServiceInstanceContent, wanted: Mapping[type[ManagedObject], Sequence[str]]
) -> list[Row]:
    """The properties of every object of these types below the root folder that the account can see."""
    with below_root(content, list(wanted)) as start:
        return list(read_from(content, [start], wanted))


@contextmanager
def below_root(
    content: vim.ServiceInstanceContent, kinds: Sequence[type[ManagedObject]]
) -> Iterator[Collector.ObjectSpec]:
    """A start for `read_from`: every object of these types below the root folder, through a view that exists
    inside the block."""
    manager = content.viewManager
    assert manager is not None  # only provisioning services lack one
    view = manager.CreateContainerView(content.rootFolder, list(kinds), True)
    try:
        step = Collector.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
        yield Collector.ObjectSpec(obj=view, skip=True, selectSet=[step])
    finally:
        view.Destroy()


def read_from(
    content: vim.ServiceInstanceContent,
    starts: Sequence[Collector.ObjectSpec],
    wanted: Mapping[type[ManagedObject], Sequence[str]],
    *,
    strict: bool = False,
) -> Iterator[Row]:
    """One pass of the PropertyCollector from these starting points, page by page.

    Args:
        content: The service content of the session.
        starts: Where the pass begins, with the traversals from there.
        wanted: The paths to read, by type of object.
        strict: Raise the fault of a property that cannot be read. Otherwise it is absent from its row.
    """
    spec = Collector.FilterSpec(
        objectSet=list(starts),
        propSet=[Collector.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in wanted.items()],
    )
    collector = content.propertyCollector
    page = collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions(maxObjects=_PAGE))
    while page is not None:
        for found in page.objects:
            if strict and found.missingSet:
                raise found.missingSet[0].fault
            kind = type(found.obj).__name__.rpartition(".")[2]
            yield Row(kind, str(found.obj._moId), {item.name: item.val for item in found.propSet})
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
