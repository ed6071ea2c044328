"""LabVcenter: the lab's vCenter as a context manager."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from ..certificate import load_or_create
from ..disks import LabDisk
from ..vss.recipe import manifest_zip
from .api.about import ApiType
from .api.sessions import Clock
from .api.soap import API_VERSION
from .faults.injection import Failure
from .faults.on_demand import Checks, FolderTraits, LeaseTraits, ManifestTraits
from .objects import relocation
from .service import Service, Settings
from .state import snapshots
from .state.boot import BootTraits
from .state.guests import Guests
from .state.inventory import (
    DatastoreTraits,
    DiskState,
    HostTraits,
    Inventory,
    VmState,
    VmTraits,
    disk_keys,
    replace_file,
)
from .state.networks import NetworkTraits
from .state.quiescing import Manifest, Quiescing
from .state.snapshots import OnSnapshot
from .state.tagging import Tagging
from .web.https import HttpsServer


class LabVcenter:
    """A vCenter over the lab directory `root`, served from threads of this process while the context is open.

    A second one over the same directory goes on where the first was: same certificate, same morefs, same
    disks and snapshots; only sessions and tasks are gone.

    user, password: the one account; port: 0 for a free one; datacenter: its inventory path, folders before it;
    for the others see `Settings`. Raises OSError when the port is taken.
    """

    def __init__(
        self,
        root: Path,
        *,
        user: str = "backup",
        password: str = "lab",
        host: str = "127.0.0.1",
        port: int = 0,
        datacenter: str = "Datacenter",
        session_idle_s: float = 1800,  # vCenter's own default: 30 minutes
        task_s: float = 0.2,
        page_size: int = 100,
        changed_areas_page: int = 2000,  # about what vCenter answers at a time
        manifest: Manifest = manifest_zip,
        api_type: ApiType = "VirtualCenter",
        api_version: str = API_VERSION,
        clock: Clock = time.monotonic,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._address = (host, port)
        self._certificate = load_or_create(root, host)
        settings = Settings(
            user,
            password,
            session_idle_s,
            task_s,
            page_size,
            changed_areas_page,
            manifest,
            api_type,
            api_version,
            clock,
        )
        self._inventory = Inventory.load_or_create(root, datacenter)
        self._service = Service(self._inventory, self._certificate, settings)
        self._server: HttpsServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LabVcenter:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, and say where in `server.json`."""
        self._server = HttpsServer(self._address, self._certificate.server_context(), self._service)
        self._thread = threading.Thread(target=self._server.serve_forever, name="lab-vcenter", args=(0.05,))
        self._thread.start()
        replace_file(self.root / "server.json", json.dumps(self.description()))

    def restart(self, away_s: float = 0.0) -> None:
        """Restart the vCenter: for `away_s` nobody listens, and all sessions and tasks are forgotten.

        The hosts go on with what they are doing. The port stays the same. Not from a thread that answers a call.
        """
        assert self._server is not None, "start() comes before restart()"
        assert self._thread is not None
        self._address = (self.address, self.port)
        self._server.stop(self._service.forget)
        self._thread.join()
        time.sleep(away_s)
        self.start()

    def stop(self) -> None:
        """End every wait, connection and task, and stop listening."""
        assert self._server is not None, "start() comes before stop()"
        assert self._thread is not None
        self._service.stop()
        self._server.stop(self._service.injections.let_go)
        self._thread.join()

    # Where it is

    @property
    def address(self) -> str:
        return self._address[0]

    @property
    def port(self) -> int:
        return self._address[1] if self._server is None else int(self._server.server_address[1])

    @property
    def thumbprint(self) -> str:
        """SHA-1 of the certificate, upper-case bytes joined by colons."""
        return self._certificate.thumbprint_sha1

    @property
    def thumbprint_sha256(self) -> str:
        return self._certificate.thumbprint_sha256

    @property
    def certificate(self) -> Path:
        """The certificate as PEM; it verifies itself."""
        return self._certificate.path

    def description(self) -> dict[str, str | int]:
        """What `server.json` holds."""
        return {
            "host": self.address,
            "port": self.port,
            "thumbprint_sha1": self.thumbprint,
            "thumbprint_sha256": self.thumbprint_sha256,
            "certificate": str(self.certificate.resolve()),
            "user": self._service.settings.user,
        }

    # What it holds

    def datastore(self, name: str) -> Path:
        """The directory of datastore `name`, made when it is not there."""
        self._service.add_datastore(name)
        return self._inventory.datastore_root(name)

    def add_host(self, traits: HostTraits) -> str:
        """One more host, which mounts the datastores that all hosts mount; its moref."""
        moref = f"host-{self._inventory.number()}"
        with self._service.changes.lock:
            self._service.add_host(moref, traits)
            self._inventory.save()
        return moref

    def add_network(self, traits: NetworkTraits) -> str:
        """One more network; its moref, which is also the key of a distributed portgroup."""
        prefix = {"standard": "network", "distributed": "dvportgroup", "opaque": "network-o"}[traits.kind]
        moref = f"{prefix}-{self._inventory.number()}"
        with self._service.changes.lock:
            self._service.add_network(moref, traits)
            self._inventory.save()
        return moref

    def set_datastore(self, name: str, traits: DatastoreTraits) -> Path:
        """The directory of datastore `name`, which is as `traits` say from now on."""
        root = self.datastore(name)
        with self._service.changes.lock:
            self._inventory.datastore_traits[name] = traits
            self._inventory.save()
        return root

    def register_vm(
        self,
        directory: Path,
        name: str,
        disks: Sequence[LabDisk],
        *,
        guest_id: str = "windows2019srv_64Guest",
        datastore: str = "datastore1",
        tools_version: int = 12448,  # 12.5.0
        power: str = "poweredOn",
        enable_uuid: bool = True,
        change_tracking: bool = False,
        quiescing: Quiescing | None = None,
        traits: VmTraits | None = None,
        folder: str = "",
    ) -> str:
        """Add a VM whose files are in `directory` of `datastore`; its moref.

        disks: in the order of their SCSI units; the server owns them from now on. tools_version: 0 without
        VMware Tools. quiescing: what its guest does, None to derive it from the guest id, Tools and disks.
        traits: what else it is made of, None for a healthy VM of today. folder: its path below the folder of all
        VMs, as in "Web/Test"; made when it is not there.
        Raises ValueError for a directory outside the datastore.
        """
        root = self.datastore(datastore).resolve()
        if not directory.resolve().is_relative_to(root):
            raise ValueError(
                f"VM {name!r}: {directory} is not below datastore {datastore!r}; put it in {root}."
            )
        directory.mkdir(parents=True, exist_ok=True)
        keyed = dict(zip(disk_keys(len(disks)), disks, strict=True))
        vm = VmState(
            moref=f"vm-{self._inventory.number()}",
            name=name,
            files_name=name.replace("/", "_"),
            datastore=datastore,
            directory=directory.resolve().relative_to(root).as_posix(),
            uuid=str(uuid.uuid4()),
            instance_uuid=str(uuid.uuid4()),
            guest_id=guest_id,
            power=power,
            tools_version=tools_version,
            quiescing=quiescing,
            change_tracking=change_tracking,
            extra_config={"disk.EnableUUID": "TRUE"} if enable_uuid else {},
            disks=[
                DiskState(key, disk.name, self._elsewhere(disk, directory)) for key, disk in keyed.items()
            ],
            traits=traits or VmTraits(),
            folder=folder,
        )
        with self._service.changes.lock:
            self._inventory.vms[vm.moref] = vm
            self._inventory.disks[vm.moref] = keyed
            self._service.add_vm(vm)
        return vm.moref

    def _elsewhere(self, disk: LabDisk, home: Path) -> str:
        if disk.directory.resolve() == home.resolve():
            return ""
        return disk.directory.resolve().relative_to((self.root / "datastores").resolve()).as_posix()

    def unregister_vm(self, moref: str) -> None:
        """Take a VM from the inventory; its files stay."""
        self._service.remove_vm(self._inventory.vms[moref])

    def delete_vm(self, moref: str) -> None:
        """Take a VM from the inventory with all its files, as somebody else may at any moment."""
        with self._service.changes.lock:
            if vm := self._inventory.vms.get(moref):
                self._service.remove_vm(vm)
                shutil.rmtree(self._inventory.directory_of(vm))

    @property
    def tags(self) -> Tagging:
        """Categories, tags, and what carries them."""
        return self._service.tagging

    def disks(self, moref: str) -> list[LabDisk]:
        """The disks of a VM in device order: the server's own objects, for "the guest" to write to."""
        return list(self._inventory.disks[moref].values())

    @property
    def hosts(self) -> dict[str, HostTraits]:
        """The hosts by moref."""
        return dict(self._inventory.hosts)

    @property
    def vms(self) -> list[VmState]:
        """The state of every VM, to be looked at."""
        return list(self._inventory.vms.values())

    def change(self, moref: str, *, name: str | None = None, power: str | None = None) -> None:
        """What somebody does to a VM by hand: rename it, or switch it on or off."""
        vm = self._inventory.vms[moref]
        with self._service.changes.lock:
            vm.name, vm.power = name or vm.name, power or vm.power
            self._service.vm_changed(vm)

    def moref(self, name: str) -> str:
        """The moref of the VM called `name`. Raises KeyError."""
        for vm in self._inventory.vms.values():
            if vm.name == name:
                return vm.moref
        raise KeyError(name)

    # What it does on demand

    @property
    def on_snapshot(self) -> list[OnSnapshot]:
        """Called in this order, before the task ends, when a quiesced snapshot was made."""
        return self._service.on_snapshot

    @property
    def guests(self) -> Guests:
        """What is inside the VMs: files, scripts that ran, the account."""
        return self._service.guests

    @property
    def boot(self) -> BootTraits:
        """How the guests of created VMs boot, to be changed at will."""
        return self._service.boots.traits

    @property
    def key_providers(self) -> list[str]:
        """The names of the key providers, to be changed at will; the first is the default."""
        return self._service.key_providers

    def check_specs(self, how: Checks) -> None:
        """Whether the server has the checkers of specs and of power-on, and whether they answer."""
        self._service.checks = how

    def set_guest_ids(self, *guest_ids: str) -> None:
        """The guests that hosts know: all of the schema by default, whose description is a long answer."""
        self._service.guest_ids = guest_ids

    @property
    def leases(self) -> LeaseTraits:
        """How the leases of imports behave, to be changed at will."""
        return self._service.leases.traits

    @property
    def calls(self) -> dict[str, int]:
        """How often each method was called until now, by WSDL name; `/folder` for its requests."""
        return dict(self._service.injections.calls)

    @property
    def folder(self) -> FolderTraits:
        """How `/folder` behaves, to be changed at will."""
        return self._service.folder

    @property
    def manifests(self) -> ManifestTraits:
        """How the manifests of snapshots come, to be changed at will."""
        return self._service.manifests

    def inject(
        self,
        method: str,
        failure: Failure,
        nth: int = 1,
        *,
        in_task: bool = False,
        after: bool = False,
        chance: float | None = None,
    ) -> None:
        """Let the `nth` call of `method` from now on fail: with a fault, a broken connection, HTTP 503, a delay.

        in_task: the call itself succeeds and its task ends with the fault, or hangs. after: the work is done all
        the same. chance: every call may fail, with this probability (`seed`). `/folder` is a method too, "*" is
        every method, and "consolidation", in a task, is the work on the disks after a removal.
        """
        self._service.injections.add(method, failure, nth, in_task=in_task, after=after, chance=chance)

    def meet(self, moment: str) -> None:
        """A moment of the test's own counts as a call of that name: what was injected for it happens now."""
        self._service.injections.happen(self._service.injections.before_call(moment))

    def seed(self, seed: int) -> None:
        """Begin the row of chances of `inject` anew."""
        self._service.injections.seed(seed)

    def calm(self) -> None:
        """Forget the failures that were to come and end every delay."""
        self._service.injections.clear()

    @property
    def idle(self) -> bool:
        """Whether no task is at work on any host."""
        return self._service.tasks.idle

    def take_snapshot(self, moref: str, name: str, description: str = "") -> str:
        """A snapshot that somebody else takes of a VM, without quiescing; its moref."""
        vm = self._inventory.vms[moref]
        return snapshots.create(self._service, vm, name, description, None, False).moref

    def move(self, moref: str, *, host: str | None = None, datastore: str | None = None) -> None:
        """What DRS or an administrator does to a VM: vMotion to `host`, storage vMotion to `datastore`.

        Raises a fault of the API where it is refused: a task is at work on the VM, its move is disabled, or the
        host does not mount the datastore.
        """
        method = relocation.RELOCATE if datastore else relocation.MIGRATE
        relocation.move(
            self._service, self._inventory.vms[moref], host=host, datastore=datastore, method=method
        )

    def snapshots(self, moref: str) -> dict[str, str]:
        """The descriptions of a VM's snapshots by their morefs, oldest first."""
        return {one.moref: one.description for one in self._inventory.vms[moref].snapshots}

    def needs_consolidation(self, moref: str) -> bool:
        """Whether a VM has redo logs that no snapshot names."""
        return self._inventory.consolidation_needed(self._inventory.vms[moref])

    def expire_sessions(self) -> None:
        """End every session, as idleness or a restart would: the next call gets NotAuthenticated."""
        self._service.end_sessions(*self._service.sessions.live())

    def drop_connections(self) -> None:
        """Cut every connection; sessions stay."""
        assert self._server is not None, "nothing is connected before start()"
        self._server.close_connections()

    @property
    def denied_privileges(self) -> set[str]:
        """Privileges that AuthorizationManager says the account lacks."""
        return self._service.denied_privileges

    def license(self, edition: str) -> None:
        """The edition key of the only licence, e.g. "esxBasic", the free one."""
        self._service.edition = edition

    def forbid_datastore(self, name: str) -> None:
        """Take the account's privileges on datastore `name`: NoPermission, and 403 from `/folder`."""
        self._service.forbidden_datastores.add(name)

    @property
    def asked(self) -> set[tuple[type, str]]:
        """The property paths that were asked for until now, with the type of the object."""
        return set(self._service.asked)

    def leave_unset(self, *paths: str) -> None:
        """Give no value for these property paths from now on, and for all others again."""
        self._service.unset = frozenset(paths)
