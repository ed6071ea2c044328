"""The service behind the SOAP endpoint: finds the object that a call is for and runs the method."""

from __future__ import annotations

import hmac
import logging
import uuid
from dataclasses import dataclass

from pyVmomi import VmomiSupport, vim, vmodl

from ..certificate import Certificate
from .api import soap
from .api.about import ApiType
from .api.collector import PropertyCollector
from .api.managed import Call, Managed, moref_of, typed
from .api.sessions import Clock, Session, Sessions
from .api.tasks import Tasks, system_error
from .faults.injection import ConnectionDroppedError, Injections, ServiceUnavailableError
from .faults.on_demand import Checks, FolderTraits, ManifestTraits
from .objects.compatibility import CompatibilityChecker, EnvironmentBrowser, ProvisioningChecker
from .objects.custom_fields import CustomFieldsManager
from .objects.datastore import DatastoreBrowser, FileManager
from .objects.encryption import MANAGER, CryptoManager
from .objects.entities import ComputeResource, Datastore, VmFolders, build
from .objects.guest_operations import guest_managers
from .objects.leases import Leases
from .objects.managers import (
    CHECKER,
    AuthorizationManager,
    EventManager,
    LicenseManager,
    SearchIndex,
    ServiceInstance,
    SessionManager,
    ViewManager,
    descendants,
)
from .objects.networks import KINDS, Switch
from .objects.vm import VirtualMachine, VirtualMachineSnapshot
from .state import configuration, vm_devices
from .state.backings import networks_of
from .state.boot import Boots
from .state.changes import Changes
from .state.guests import Guests
from .state.inventory import FIRST_HOST, HostTraits, Inventory, VmState, replace_file
from .state.networks import NETWORK, NetworkTraits
from .state.quiescing import Manifest
from .state.snapshots import OnSnapshot
from .state.tagging import Tagging
from .state.vmx import vmx_text
from .vddk_conf import vddk_conf

_log = logging.getLogger(__name__)

_WITHOUT_SESSION = {
    ("ServiceInstance", "RetrieveServiceContent"),
    ("ServiceInstance", "CurrentTime"),
    ("ServiceInstance", soap.FETCH),
    ("SessionManager", "Login"),
    ("SessionManager", soap.FETCH),
}


@dataclass(frozen=True)
class Settings:
    """How the server behaves.

    session_idle_s: idle seconds after which a session ends; task_s: seconds that a task takes besides its work;
    page_size: objects per answer of RetrievePropertiesEx; changed_areas_page: extents per answer of
    QueryChangedDiskAreas; manifest: makes the VSS manifest of a quiesced snapshot; api_type: "VirtualCenter", or
    "HostAgent" for an ESXi host; api_version: the newest that it speaks; clock: of sessions, monotonic seconds.
    """

    user: str
    password: str
    session_idle_s: float
    task_s: float
    page_size: int
    changed_areas_page: int
    manifest: Manifest
    api_type: ApiType
    api_version: str
    clock: Clock


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: `session` is the one that the call was made in, or that it opened."""

    status: int
    body: bytes
    session: Session | None


@dataclass(frozen=True)
class SessionScope:
    """The objects that one session can name."""

    service: Service
    session: Session

    def find(self, reference: VmomiSupport.ManagedObject) -> Managed:
        """Raises ManagedObjectNotFound."""
        return self.service.find(reference, self.session)


class Service:
    """All managed objects over one inventory. Its methods may be called from any thread."""

    def __init__(self, inventory: Inventory, certificate: Certificate, settings: Settings) -> None:
        self.inventory = inventory
        self.certificate = certificate
        self.settings = settings
        self.changes = Changes()
        self.injections = Injections()
        self.sessions = Sessions(settings.session_idle_s, self._write_vddk_conf, settings.clock)
        self.tasks = Tasks(self, settings.task_s)
        self.tagging = Tagging(inventory.root, settings.session_idle_s, settings.clock)
        self.events = EventManager(self)
        self.guests = Guests(self)
        self.boots = Boots(self)
        self.leases = Leases(self)
        self.on_snapshot: list[OnSnapshot] = []
        self.forbidden_datastores: set[str] = set()
        self.asked: set[tuple[type, str]] = set()
        self.unset: frozenset[str] = frozenset()
        self.denied_privileges: set[str] = set()
        self.key_providers: list[str] = []
        self.checks: Checks = "judging"
        self.guest_ids: tuple[str, ...] = configuration.GUEST_IDS
        self.edition = "esx.enterprisePlus.cpuPackage"
        self.folder = FolderTraits()
        self.manifests = ManifestTraits()
        self.stopping = False
        self.host_browser = DatastoreBrowser(self, f"datastoreBrowser-{FIRST_HOST}")
        self.root_folder, vm_folder, self._host_folder, self._datastore_folder, networks = build(self)
        self._network_folder = networks
        self._switches: dict[str, Switch] = {}
        self._vm_folders = VmFolders(vm_folder, self._register)
        self._compute_resources: dict[str, ComputeResource] = {}
        self._datastores: dict[str, Datastore] = {}
        self._objects: dict[str, Managed] = {}
        self._register(
            ServiceInstance(self, "ServiceInstance"),
            SearchIndex(self, "SearchIndex"),
            FileManager(self, "FileManager"),
            AuthorizationManager(self, "AuthorizationManager"),
            LicenseManager(self, "LicenseManager"),
            CustomFieldsManager(self, "CustomFieldsManager"),
            CompatibilityChecker(self, CHECKER),
            CryptoManager(self, MANAGER),
            ProvisioningChecker(self, "ProvisioningChecker"),
            self.events,
            *guest_managers(self),
            self.host_browser,
            self.root_folder,
            *descendants(self.root_folder),
        )
        for moref, network in inventory.networks.items():
            self.add_network(moref, network)
        for host, traits in inventory.hosts.items():
            self.add_host(host, traits)
        for name in inventory.datastores:
            self.add_datastore(name)
        for vm in inventory.vms.values():
            self.add_vm(vm)
            if vm.created and vm.power == "poweredOn" and vm.heartbeat != "green":
                self.boots.start(vm)

    def stop(self) -> None:
        """Release every wait and let the running tasks finish at once."""
        self.stopping = True
        self.changes.touch()
        self.tasks.stop()
        self.boots.stop()
        self.leases.stop()

    # The inventory

    def add_datastore(self, name: str) -> None:
        """Make datastore `name` unless there is one."""
        if name not in self._datastores:
            datastore = Datastore(self, self.inventory.add_datastore(name), name)
            self._datastores[name] = datastore
            self._datastore_folder.adopt(datastore)
            self._register(datastore, datastore.own_browser)

    def add_host(self, moref: str, traits: HostTraits) -> None:
        self.inventory.hosts[moref] = traits
        compute_resource = self._compute_resources[moref] = ComputeResource(self, moref)
        self._host_folder.adopt(compute_resource)
        self._register(compute_resource, compute_resource.browser, *descendants(compute_resource))

    def add_network(self, moref: str, traits: NetworkTraits) -> None:
        self.inventory.networks[moref] = traits
        network = KINDS[traits.kind](self, moref, traits)
        self._network_folder.adopt(network)
        self._register(network)
        if traits.kind == "distributed":
            self.switch(traits)

    def switch(self, traits: NetworkTraits) -> Switch:
        """The distributed switch of a portgroup."""
        if traits.switch_uuid not in self._switches:
            made = Switch(self, f"dvs-{len(self._switches) + 30}", traits)
            self._switches[traits.switch_uuid] = made
            self._network_folder.adopt(made)
            self._register(made)
        return self._switches[traits.switch_uuid]

    def networks_of(self, vm: VmState) -> list[str]:
        """The morefs of the networks that a VM is on; a registered one is said to be on the first."""
        if vm.devices is None:
            return [NETWORK]
        return networks_of(self.inventory, vm_devices.kept(self.inventory, vm))

    def host_of_pool(self, pool: VmomiSupport.ManagedObject) -> str:
        """The moref of the host whose resources these are. Raises ManagedObjectNotFound."""
        for host, resource in self._compute_resources.items():
            if resource.pool.moref == moref_of(pool):
                return host
        raise vmodl.fault.ManagedObjectNotFound(obj=pool, msg=f"The object '{pool}' does not exist.")

    def browser_of(self, host: str) -> EnvironmentBrowser:
        return self._compute_resources[host].browser

    def pool_of(self, host: str) -> vim.ResourcePool:
        return vim.ResourcePool(self._compute_resources[host].pool.moref)

    def mounted_by(self, host: str) -> list[vim.Datastore]:
        inventory = self.inventory
        names = [name for name in inventory.datastores if host in inventory.hosts_of(name)]
        return [vim.Datastore(inventory.datastores[name]) for name in names]

    def vms_on(self, host: str) -> list[VmState]:
        return [vm for vm in self.inventory.vms.values() if vm.host == host]

    def vm_folder_path(self, folder: Managed) -> str | None:
        """The path of a folder of VMs; None for another object."""
        return self._vm_folders.path_of(folder)

    def make_folder(self, path: str) -> str:
        """A folder of VMs; its moref."""
        made = self._vm_folders.at(path).moref
        self.inventory.save()
        return made

    def need_free_name(self, name: str, folder: str) -> None:
        """Raises DuplicateName when something in a folder of VMs is called so."""
        for entity in self._vm_folders.at(folder).children:
            if entity.display_name == name:
                raise vim.fault.DuplicateName(
                    name=name, object=entity.ref, msg=f"The name '{name}' already exists."
                )

    def free_instance_uuid(self, wanted: str, vm: VmState) -> str:
        """The one that is wanted, another one where that is empty or taken, as a vCenter resolves a conflict."""
        taken = {one.instance_uuid for one in self.inventory.vms.values() if one is not vm}
        return str(uuid.uuid4()) if not wanted or wanted.lower() in taken else wanted.lower()

    def need(self, privilege: str, entity: VmomiSupport.ManagedObject) -> None:
        """Raises NoPermission when the account lacks the privilege."""
        if privilege in self.denied_privileges:
            raise vim.fault.NoPermission(
                object=type(entity)(moref_of(entity)),
                privilegeId=privilege,
                msg="Permission to perform this operation was denied.",
            )

    def need_datastore_privilege(self, privilege: str, name: str) -> None:
        """As `need`, for a datastore that the account may have been forbidden."""
        self.need(privilege, self._datastores[name].ref)
        if name in self.forbidden_datastores:
            raise vim.fault.NoPermission(
                object=self._datastores[name].ref,
                privilegeId=privilege,
                msg="Permission to perform this operation was denied.",
            )

    def add_vm(self, vm: VmState) -> None:
        managed = VirtualMachine(self, vm)
        folder = self._vm_folders.of(vm)
        folder.adopt(managed)
        self._register(managed)
        self.vm_changed(vm, folder.moref)

    def remove_vm(self, vm: VmState) -> None:
        """Take a VM from the inventory, as unregistering does; its files stay."""
        with self.changes.lock:
            self._vm_folders.of(vm).drop(self._objects.pop(vm.moref))
            del self.inventory.vms[vm.moref], self.inventory.disks[vm.moref]
            self.inventory.save()
            self._write_vddk_conf()

    def vm_changed(self, vm: VmState, *morefs: str) -> None:
        """Save the state and tell who waits that this VM, its snapshots and `morefs` changed."""
        with self.changes.lock:
            self.inventory.save()
            vmx = self.inventory.directory_of(vm) / f"{vm.files_name}.vmx"
            replace_file(vmx, vmx_text(self.inventory, vm))
            self._write_vddk_conf()
            self.changes.touch(vm.moref, *(snapshot.moref for snapshot in vm.snapshots), *morefs)

    def datastore(self, name: str) -> Datastore:
        return self._datastores[name]

    @property
    def datastore_refs(self) -> list[vim.Datastore]:
        return [vim.Datastore(datastore.moref) for datastore in self._datastores.values()]

    def _register(self, *managed: Managed) -> None:
        self._objects.update((one.moref, one) for one in managed)

    def _write_vddk_conf(self) -> None:
        with self.changes.lock:
            replace_file(self.inventory.root / "vddk.conf", vddk_conf(self))

    # Sessions

    def password_matches(self, user: str, password: str) -> bool:
        return hmac.compare_digest(
            f"{user}\0{password}".encode(), f"{self.settings.user}\0{self.settings.password}".encode()
        )

    def open_session(self, session: Session) -> Session:
        scope = SessionScope(self, session)
        for managed in (
            SessionManager(self, session),
            PropertyCollector(scope, "propertyCollector"),
            ViewManager(scope),
        ):
            session.objects[managed.moref] = managed
        self.sessions.open(session)
        return session

    def end_sessions(self, *sessions: Session) -> None:
        """End sessions; their waits return with NotAuthenticated."""
        self.sessions.end(*sessions)
        self.changes.touch()

    def forget(self) -> None:
        """What a restart does to the service: sessions and tasks are forgotten, the work of hosts goes on."""
        self.tasks.forget()
        self.leases.forget()
        self.tagging.end_sessions()
        self.end_sessions(*self.sessions.live())
        self.injections.let_go()

    # Calls

    def find(self, reference: VmomiSupport.ManagedObject, session: Session | None) -> Managed:
        """The object of this reference as `session` sees it. Raises ManagedObjectNotFound."""
        moref = moref_of(reference)
        found = session.objects.get(moref) if session else None
        found = found or self._objects.get(moref) or self.tasks.find(moref) or self.leases.find(moref)
        found = found or self._find_snapshot(moref)
        if found is None and moref == "SessionManager":
            found = SessionManager(self, None)
        if found is None or not issubclass(found.vim_type, type(reference)):
            raise vmodl.fault.ManagedObjectNotFound(
                obj=reference, msg=f"The object '{reference}' has already been deleted or was never created."
            )
        return found

    def need_vm(self, vm: VmState) -> None:
        """Raises ManagedObjectNotFound when the VM is gone, which a task may learn only when it gets to work."""
        self.find(vim.VirtualMachine(vm.moref), None)

    def _find_snapshot(self, moref: str) -> Managed | None:
        for vm in self.inventory.vms.values():
            for snapshot in vm.snapshots:
                if snapshot.moref == moref:
                    owner = self._objects[vm.moref]
                    assert isinstance(owner, VirtualMachine)
                    return VirtualMachineSnapshot(owner, snapshot)
        return None

    def answer(
        self, body: bytes, *, soap_action: str | None, cookie: str | None, address: str, user_agent: str
    ) -> Answer:
        """Run one SOAP call. Raises ConnectionDroppedError where a fault injection wants no answer."""
        version = soap.version_of(soap_action, self.settings.api_version)
        session = self.sessions.find(cookie)
        try:
            request = soap.decode(body, version)
        except soap.MalformedRequestError as error:
            fault = vmodl.fault.InvalidRequest(msg=str(error))
            return Answer(500, soap.encode_fault(fault, version), session)
        call = Call(request.method, session, address, user_agent)
        with self.sessions.in_call(session):
            try:
                later = self.injections.before_call(request.method.name)
                value, result_type = self._run(request, call)
                answer = Answer(200, soap.encode(request, value, result_type), call.session)
                self.injections.happen(later)
            except vmodl.MethodFault as fault:
                answer = Answer(500, soap.encode_fault(fault, version), call.session)
            except (ConnectionDroppedError, ServiceUnavailableError):
                raise
            except Exception as error:
                _log.exception("%s failed", request.method.name)
                answer = Answer(500, soap.encode_fault(system_error(error), version), call.session)
        return answer

    def _run(self, request: soap.Request, call: Call) -> tuple[object, type]:
        """The value that the call returns and the type that the schema declares for it."""
        reference = request.target_type(request.target)
        if call.session is None and (request.target, request.method.name) not in _WITHOUT_SESSION:
            raise vim.fault.NotAuthenticated(
                object=reference, privilegeId="System.View", msg="The session is not authenticated."
            )
        managed = self.find(reference, call.session)
        if request.method.name == soap.FETCH:
            name = str(request.arguments[0])
            with self.changes.lock:
                return managed.read(name), managed.declared(name)[0]
        if isinstance(managed, VirtualMachine) and request.method.name in managed.disabledMethod:
            raise vim.fault.MethodDisabled(
                source="a backup", msg=f"{request.method.name} is disabled by 'a backup'."
            )
        method = getattr(managed, request.method.name, None)
        if method is None:
            raise vmodl.fault.NotSupported(msg=f"The lab does not have {request.method.description_id}.")
        return typed(method(call, *request.arguments), request.method.result), request.method.result
