"""Managed objects: how the server writes down what the API calls one.

A class per API type. Its `vim_property` attributes carry the API's property names, its other methods the API's
WSDL names; each such method takes the `Call` and then the API's parameters in schema order. A property that a
class does not have is unset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyVmomi import VmomiSupport, vim, vmodl

from .soap import Method

if TYPE_CHECKING:
    from ..service import Service
    from .sessions import Session


class vim_property(property):  # noqa: N801 - used as a decorator, like its parent
    """A property of the API, computed at each read."""


@dataclass
class Call:
    """What a method may know of the call it answers. Login sets `session`, and the answer carries its cookie."""

    method: Method
    session: Session | None
    address: str
    user_agent: str

    @property
    def user(self) -> str:
        return self.session.user if self.session else ""


class Managed:
    """One managed object. vim_type: its class in pyVmomi; properties: the names of those it has."""

    vim_type: ClassVar[type[VmomiSupport.ManagedObject]]
    properties: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        own = {name for name, value in vars(cls).items() if isinstance(value, vim_property)}
        inherited = (base.properties for base in cls.__bases__ if issubclass(base, Managed))
        cls.properties = vars(cls).get("properties", frozenset().union(*inherited)) | own

    def __init__(self, service: Service, moref: str) -> None:
        self.service = service
        self.moref = moref

    @property
    def ref(self) -> VmomiSupport.ManagedObject:
        """The reference that travels to clients."""
        return self.vim_type(self.moref)

    def declared(self, name: str) -> tuple[type, bool]:
        """A property's type in the schema, and whether it may be unset. Raises InvalidProperty."""
        try:
            declared = self.vim_type._GetPropertyInfo(name)
        except AttributeError:
            raise vmodl.query.InvalidProperty(name=name) from None
        return declared.type, bool(declared.flags & VmomiSupport.F_OPTIONAL)

    def read(self, name: str) -> object:
        """A property as a typed vim value, None when unset. Raises InvalidProperty, and NotSupported for a
        required property that the lab does not have."""
        kind, may_be_unset = self.declared(name)
        if name in self.properties:
            return typed(getattr(self, name), kind)
        if may_be_unset:
            return None
        raise vmodl.fault.NotSupported(msg=f"The lab's {self.vim_type.__name__} has no property {name}.")


class Entity(Managed):
    """A managed entity: something with a name and a place in the inventory."""

    parent_entity: Entity | None = None

    @property
    def display_name(self) -> str:
        raise NotImplementedError

    @property
    def children(self) -> list[Entity]:
        return []

    @vim_property
    def name(self) -> str:
        return escaped(self.display_name)

    @vim_property
    def parent(self) -> VmomiSupport.ManagedObject | None:
        return self.parent_entity.ref if self.parent_entity else None

    @vim_property
    def overallStatus(self) -> str:
        return "green"

    @vim_property
    def configStatus(self) -> str:
        return "green"

    @vim_property
    def recentTask(self) -> list[vim.Task]:
        return [vim.Task(task.moref) for task in self.service.tasks.of(self)]


def escaped(name: str) -> str:
    """A name as the API tells it: the three characters that its inventory paths use are escaped."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def typed(value: object, kind: type) -> object:
    """`value` in the class that the schema declares: lists, enums and integers must carry it inside an `Any`."""
    if value is None or isinstance(value, kind):
        return value
    if issubclass(kind, list):
        item = kind.Item  # type: ignore[attr-defined]
        return kind(typed(element, item) for element in value)  # type: ignore[attr-defined]
    if issubclass(kind, (str, int, float)) and not issubclass(kind, bool):
        return kind(value)  # type: ignore[arg-type,call-overload]
    return value


def moref_of(reference: VmomiSupport.ManagedObject) -> str:
    return str(reference._moId)
