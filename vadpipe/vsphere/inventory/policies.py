"""The storage policies of a VM, of its disks and of a whole vCenter, from the policy service (PBM).

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


async def known_policies(session: VcenterSession) -> dict[str, str]:
    """The ids of the server's storage policies by name. Raises as `storage_policies`."""
    return await session.call("PbmQueryProfile", lambda: _known(session), repeat=False, patience_s=0)


def _known(session: VcenterSession) -> dict[str, str]:
    from pyVmomi import pbm

    with _profiles(session) as profiles:
        ids = profiles.PbmQueryProfile(pbm.profile.ResourceType(resourceType="STORAGE"), "REQUIREMENT")
        known = profiles.PbmRetrieveContent(list(ids)) if ids else []
    return {str(one.name): str(one.profileId.uniqueId) for one in known}


def _policies(session: VcenterSession, vm: str, disks: Mapping[str, int]) -> dict[str, object]:
    from pyVmomi import pbm

    kinds = {**{f"{vm}:{key}": name for name, key in disks.items()}, vm: ""}
    entities = [
        pbm.ServerObjectRef(
            objectType="virtualDiskId" if name else "virtualMachine",
            key=one,
            serverUuid=session.content.about.instanceUuid,
        )
        for one, name in kinds.items()
    ]
    with _profiles(session) as profiles:
        results = profiles.PbmQueryAssociatedProfiles(entities)
        wanted = {one.uniqueId: one for result in results for one in result.profileId or ()}
        known = profiles.PbmRetrieveContent(list(wanted.values())) if wanted else []
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
def _profiles(session: VcenterSession) -> Iterator[Any]:
    """The service's manager of profiles, for calls of this thread."""
    from pyVmomi import pbm  # it loads thousands of types

    stub: SoapStubAdapter = SoapStub(session.endpoint, _VERSION, path=_PATH)
    with _named_session(session_id(session.cookie)):
        try:
            service: Any = pbm.ServiceInstance("ServiceInstance", stub)
            yield service.RetrieveContent().profileManager
        finally:
            stub.DropConnections()


@contextmanager
def _named_session(value: str) -> Iterator[None]:
    """Name the session in the header of each call of this thread."""
    context = VmomiSupport.GetRequestContext()
    context["vcSessionCookie"] = value
    try:
        yield
    finally:
        del context["vcSessionCookie"]
