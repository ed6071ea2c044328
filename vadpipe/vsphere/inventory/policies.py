"""The names of the storage policies of a VM and of its disks, from the policy service (PBM) of a vCenter.

Source: VMware Storage Policy SDK programming guide, `QueryAssociatedProfiles`; the session is that of the vSphere
API, named in a header of each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pyVmomi import VmomiSupport
from pyVmomi.SoapAdapter import SoapStubAdapter

from ..api.session import VcenterSession
from ..api.soap import SoapStub, session_id

_PATH: Final = "/pbm/sdk"
_VERSION: Final = "pbm.version.version2"  # since vSphere 6.0


async def storage_policies(session: VcenterSession, vm: str, disks: Mapping[str, int]) -> dict[str, object]:
    """The policy of the VM's own files as 'vm', and those of the disks by key as 'disks'; without those of none.

    Args:
        session: The session.
        vm: The moref of the VM.
        disks: The device key of each disk by its key in a point.

    Raises:
        VsphereError: The service refuses; ConnectionLost also where there is no such service.
    """
    return await session.call(
        "PbmQueryAssociatedProfiles", lambda: _policies(session, vm, disks), repeat=False, patience_s=0
    )


def _policies(session: VcenterSession, vm: str, disks: Mapping[str, int]) -> dict[str, object]:
    from pyVmomi import pbm  # it loads thousands of types

    stub: SoapStubAdapter = SoapStub(session.endpoint, _VERSION, path=_PATH)
    kinds = {**{f"{vm}:{key}": name for name, key in disks.items()}, vm: ""}
    with _named_session(session_id(session.cookie)):
        try:
            service: Any = pbm.ServiceInstance("ServiceInstance", stub)
            profiles = service.RetrieveContent().profileManager
            entities = [
                pbm.ServerObjectRef(
                    objectType="virtualDiskId" if name else "virtualMachine",
                    key=one,
                    serverUuid=session.content.about.instanceUuid,
                )
                for one, name in kinds.items()
            ]
            results = profiles.PbmQueryAssociatedProfiles(entities)
            wanted = {one.uniqueId: one for result in results for one in result.profileId or ()}
            known = profiles.PbmRetrieveContent(list(wanted.values())) if wanted else []
        finally:
            stub.DropConnections()
    names = {one.profileId.uniqueId: str(one.name) for one in known}
    found: dict[str, str] = {}
    of_vm = ""
    for result in results:
        name = next((names[one.uniqueId] for one in result.profileId or () if one.uniqueId in names), "")
        place = kinds.get(str(result.object.key), "")
        if place and name:
            found[place] = name
        elif name:
            of_vm = name
    return {"vm": of_vm, "disks": found}


@contextmanager
def _named_session(value: str) -> Iterator[None]:
    """Name the session in the header of each call of this thread."""
    context = VmomiSupport.GetRequestContext()
    context["vcSessionCookie"] = value
    try:
        yield
    finally:
        del context["vcSessionCookie"]
