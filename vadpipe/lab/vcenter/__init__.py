"""The lab's stand-in vCenter: SOAP over TLS on loopback, for an unmodified pyVmomi client.

server      LabVcenter, the context manager; `python -m vadpipe.lab.vcenter ROOT` serves it as a process
service     finds the object that a call is for and runs the method
web         HTTPS: `/sdk`, `/folder`, the REST API
objects     the managed objects: inventory, VMs and snapshots, datastores, managers
api         SOAP, what a managed object is, sessions, tasks, the property collector
state       what is remembered, what acts on it and renders it; guests, tags, quiescing
faults      failures on demand

Imports go down this list only.
"""

from .faults.injection import Delay, Drop, Event, Refusal
from .faults.on_demand import FolderTraits, LeaseTraits, ManifestTraits, refusing
from .server import LabVcenter
from .state.boot import BootTraits
from .state.networks import NetworkTraits
from .state.quiescing import Manifest, QuiesceRequest, Quiescing
from .state.snapshots import OnSnapshot

__all__ = [
    "BootTraits",
    "Delay",
    "Drop",
    "Event",
    "FolderTraits",
    "LabVcenter",
    "LeaseTraits",
    "Manifest",
    "ManifestTraits",
    "NetworkTraits",
    "OnSnapshot",
    "QuiesceRequest",
    "Quiescing",
    "Refusal",
    "refusing",
]
