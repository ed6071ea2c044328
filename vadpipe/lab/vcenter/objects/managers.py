"""The service's own objects: ServiceInstance; managers of sessions, views, events, privileges and licenses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pyVmomi import VmomiSupport, vim, vmodl

from ..api.about import about
from ..api.managed import Call, Entity, Managed, moref_of, vim_property
from ..api.sessions import Session
from .encryption import MANAGER as CRYPTO
from .guest_operations import MANAGER as GUEST_OPERATIONS

if TYPE_CHECKING:
    from ..service import Service, SessionScope

CHECKER = "CompatibilityChecker"


class ServiceInstance(Managed):
    vim_type = vim.ServiceInstance

    @vim_property
    def content(self) -> vim.ServiceInstanceContent:
        return self._content()

    def RetrieveServiceContent(self, call: Call) -> vim.ServiceInstanceContent:
        return self._content()

    def _content(self) -> vim.ServiceInstanceContent:
        checked = self.service.settings.api_type == "VirtualCenter" and self.service.checks != "missing"
        return vim.ServiceInstanceContent(
            rootFolder=self.service.root_folder.ref,
            propertyCollector=vmodl.query.PropertyCollector("propertyCollector"),
            viewManager=vim.view.ViewManager("ViewManager"),
            about=about(
                self.service.settings.api_type,
                self.service.inventory.instance_uuid,
                self.service.settings.api_version,
            ),
            sessionManager=vim.SessionManager("SessionManager"),
            eventManager=vim.event.EventManager("EventManager"),
            searchIndex=vim.SearchIndex("SearchIndex"),
            fileManager=vim.FileManager("FileManager"),
            guestOperationsManager=vim.vm.guest.GuestOperationsManager(GUEST_OPERATIONS),
            authorizationManager=vim.AuthorizationManager("AuthorizationManager"),
            licenseManager=vim.LicenseManager("LicenseManager"),
            cryptoManager=vim.encryption.CryptoManagerKmip(CRYPTO),
            customFieldsManager=vim.CustomFieldsManager("CustomFieldsManager"),
            vmCompatibilityChecker=vim.vm.check.CompatibilityChecker(CHECKER) if checked else None,
            vmProvisioningChecker=(
                vim.vm.check.ProvisioningChecker("ProvisioningChecker") if checked else None
            ),
        )

    @vim_property
    def serverClock(self) -> datetime:
        return datetime.now(UTC)

    def CurrentTime(self, call: Call) -> datetime:
        return datetime.now(UTC)


class SessionManager(Managed):
    """Seen from one session, or from none."""

    vim_type = vim.SessionManager

    def __init__(self, service: Service, session: Session | None) -> None:
        super().__init__(service, "SessionManager")
        self._session = session

    @vim_property
    def currentSession(self) -> vim.UserSession | None:
        return self._session.to_vim() if self._session else None

    @vim_property
    def sessionList(self) -> list[vim.UserSession]:
        return [session.to_vim() for session in self.service.sessions.live()]

    @vim_property
    def defaultLocale(self) -> str:
        return "en"

    def Login(self, call: Call, user_name: str, password: str, locale: str | None) -> vim.UserSession:
        if call.session is not None or not self.service.password_matches(user_name, password):
            raise vim.fault.InvalidLogin(
                msg="Cannot complete login due to an incorrect user name or password."
            )
        call.session = self.service.open_session(Session(user_name, call.address, call.user_agent))
        return call.session.to_vim()

    def Logout(self, call: Call) -> None:
        if call.session is not None:
            self.service.end_sessions(call.session)

    def SessionIsActive(self, call: Call, session_id: str, user_name: str) -> bool:
        live = self.service.sessions.live()
        return any((session.key, session.user) == (session_id, user_name) for session in live)

    def AcquireGenericServiceTicket(
        self, call: Call, spec: vim.SessionManager.ServiceRequestSpec
    ) -> vim.SessionManager.GenericServiceTicket:
        if not isinstance(spec, vim.SessionManager.HttpServiceRequestSpec):
            raise vmodl.fault.InvalidArgument(invalidProperty="spec", msg="Only HTTP requests have tickets.")
        http_method = (spec.method or "httpGet").removeprefix("http").upper()
        ticket = self.service.sessions.issue_ticket(http_method, urlsplit(spec.url).path)
        return vim.SessionManager.GenericServiceTicket(
            id=ticket, sslThumbprint=self.service.certificate.thumbprint_sha1
        )


class ContainerView(Managed):
    """The entities below a container, of the wanted types, as they are at each look."""

    vim_type = vim.view.ContainerView

    def __init__(
        self, scope: SessionScope, container: Entity, types: list[type] | None, recursive: bool
    ) -> None:
        super().__init__(scope.service, scope.session.new_moref())
        self._scope = scope
        self._container = container
        self._types = tuple(types or (vim.ManagedEntity,))
        self._recursive = recursive

    @vim_property
    def view(self) -> list[VmomiSupport.ManagedObject]:
        below = descendants(self._container) if self._recursive else iter(self._container.children)
        return [entity.ref for entity in below if issubclass(entity.vim_type, self._types)]

    @vim_property
    def container(self) -> VmomiSupport.ManagedObject:
        return self._container.ref

    @vim_property
    def type(self) -> list[type]:
        return list(self._types)

    @vim_property
    def recursive(self) -> bool:
        return self._recursive

    def DestroyView(self, call: Call) -> None:
        self._scope.session.objects.pop(self.moref, None)


def descendants(entity: Entity) -> Iterator[Entity]:
    """Everything below `entity`, each parent before its children."""
    for child in entity.children:
        yield child
        yield from descendants(child)


class ViewManager(Managed):
    vim_type = vim.view.ViewManager

    def __init__(self, scope: SessionScope) -> None:
        super().__init__(scope.service, "ViewManager")
        self._scope = scope

    def CreateContainerView(
        self, call: Call, container: vim.ManagedEntity, types: list[type] | None, recursive: bool
    ) -> vim.view.ContainerView:
        entity = self._scope.find(container)
        if not isinstance(entity, Entity):
            raise vmodl.fault.InvalidArgument(invalidProperty="container", msg="Not a managed entity.")
        view = ContainerView(self._scope, entity, types, recursive)
        self._scope.session.objects[view.moref] = view
        return vim.view.ContainerView(view.moref)


class SearchIndex(Managed):
    vim_type = vim.SearchIndex

    def FindByUuid(
        self,
        call: Call,
        datacenter: vim.Datacenter | None,
        uuid: str,
        vm_search: bool,
        instance_uuid: bool | None,
    ) -> vim.ManagedEntity | None:
        found = self.FindAllByUuid(call, datacenter, uuid, vm_search, instance_uuid)
        return found[0] if found else None

    def FindAllByUuid(
        self,
        call: Call,
        datacenter: vim.Datacenter | None,
        uuid: str,
        vm_search: bool,
        instance_uuid: bool | None,
    ) -> list[vim.ManagedEntity]:
        return [
            vim.VirtualMachine(vm.moref)
            for vm in (self.service.inventory.vms.values() if vm_search else ())
            if uuid.lower() == (vm.instance_uuid if instance_uuid else vm.uuid)
        ]

    def FindByDnsName(
        self, call: Call, datacenter: vim.Datacenter | None, dns_name: str, vm_search: bool
    ) -> vim.ManagedEntity | None:
        for vm in self.service.inventory.vms.values() if vm_search else ():
            if vm.tools_running and dns_name.lower() == vm.name.lower():
                return vim.VirtualMachine(vm.moref)
        return None

    def FindByInventoryPath(self, call: Call, inventory_path: str) -> VmomiSupport.ManagedObject | None:
        entity: Entity | None = self.service.root_folder
        for name in inventory_path.strip("/").split("/"):
            entity = (
                next((child for child in entity.children if child.name == name), None) if entity else None
            )
        return entity.ref if entity else None


class EventManager(Managed):
    """The events of this server's life, oldest first."""

    vim_type = vim.event.EventManager

    def __init__(self, service: Service) -> None:
        super().__init__(service, "EventManager")
        self._events: list[vim.event.Event] = []

    @vim_property
    def latestEvent(self) -> vim.event.Event | None:
        return self._events[-1] if self._events else None

    def QueryEvents(
        self,
        call: Call,
        filter_spec: vim.event.EventFilterSpec,
        view_spec: vim.event.EventManager.EventViewSpec | None,
    ) -> list[vim.event.Event]:
        wanted = moref_of(filter_spec.entity.entity) if filter_spec.entity else None
        types = tuple(filter_spec.type) or (vim.event.Event,)
        return [
            event
            for event in self._events
            if isinstance(event, types) and (wanted is None or (event.vm and moref_of(event.vm.vm) == wanted))
        ]

    def warn(self, vm: vim.VirtualMachine, name: str, message: str) -> None:
        """Record what a host writes when a VM has something to say."""
        number = len(self._events) + 1
        self._events.append(
            vim.event.VmMessageWarningEvent(
                key=number,
                chainId=number,
                createdTime=datetime.now(UTC),
                userName="User",
                vm=vim.event.VmEventArgument(name=name, vm=vm),
                template=False,
                message=message,
                fullFormattedMessage=f"Warning message on {name}: {message}",
            )
        )


class AuthorizationManager(Managed):
    """The account may do everything but what the service denies it."""

    vim_type = vim.AuthorizationManager

    def HasPrivilegeOnEntities(
        self, call: Call, entities: list[vim.ManagedEntity], session_id: str, privileges: list[str]
    ) -> list[vim.AuthorizationManager.EntityPrivilege]:
        availability = [
            vim.AuthorizationManager.PrivilegeAvailability(
                privId=name, isGranted=name not in self.service.denied_privileges
            )
            for name in privileges
        ]
        return [
            vim.AuthorizationManager.EntityPrivilege(
                entity=type(entity)(moref_of(entity)), privAvailability=availability
            )
            for entity in entities
        ]


class LicenseManager(Managed):
    vim_type = vim.LicenseManager

    @vim_property
    def licenses(self) -> list[vim.LicenseManager.LicenseInfo]:
        edition = self.service.edition
        return [
            vim.LicenseManager.LicenseInfo(
                licenseKey="00000", editionKey=edition, name=edition, total=0, costUnit="cpuPackage"
            )
        ]
