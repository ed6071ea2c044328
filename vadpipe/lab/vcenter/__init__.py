"""The lab's stand-in vCenter: SOAP over TLS on loopback, for an unmodified pyVmomi client.

server      LabVcenter, the context manager; `python -m vadpipe.lab.vcenter ROOT` serves it as a process
https       connections; `folder` answers /folder, `soap` is the wire format of /sdk; `rest` answers /api and /rest
service     finds objects and runs methods; `sessions`, `tasks`, `changes`, `injection` serve it
on_demand   how `/folder` and manifests misbehave when they are told to
objects     what a managed object is; `managers`, `collector`, `entities`, `vm`, `vm_folders`, `datastore` are
tagging     categories, tags, and what carries them
state       what is remembered; `vm_properties` and `vmx` render it, `snapshots` and `quiescing` act on it
"""

from .injection import (
    Delay,
    Drop,
    Event,
    Refusal,
)
from .on_demand import FolderTraits, ManifestTraits, refusing
from .quiescing import Manifest, QuiesceRequest, Quiescing
from .server import LabVcenter
from .snapshots import OnSnapshot

__all__ = [
    "Delay",
    "Drop",
    "Event",
    "FolderTraits",
    "LabVcenter",
    "Manifest",
    "ManifestTraits",
    "OnSnapshot",
    "QuiesceRequest",
    "Quiescing",
    "Refusal",
    "refusing",
]
