"""How a VM is reached through VDDK, and the readers that change something at a server besides reading."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.secrets import Secret
from vadpipe.vddk.access import VmAccess
from vadpipe.vddk.disk import CleanedUp

from ..api.session import VcenterSession


@runtime_checkable
class AccessReader(Protocol):
    """A reader with VDDK's calls about a whole VM; `vadpipe.vddk.Vddk` describes each."""

    @property
    def libdir(self) -> str | Path: ...

    @property
    def may_hot_add(self) -> bool: ...

    def tmp_directory(self, access: VmAccess) -> Path: ...

    async def prepare_for_access(self, access: VmAccess, identity: str) -> None: ...

    async def end_access(self, access: VmAccess, identity: str) -> None: ...

    async def clean_up(self, access: VmAccess) -> CleanedUp: ...


@runtime_checkable
class Attachable(Protocol):
    """An open disk that may be hot-added to this machine, such as `vadpipe.vddk.VddkDisk`."""

    @property
    def may_be_attached(self) -> bool: ...


def library_of(reader: AccessReader, access: VmAccess) -> dict[str, str]:
    """Where the library is and keeps its state, for an intent: any later process can then undo what it did."""
    places = {"libdir": Path(reader.libdir), "tmp_directory": reader.tmp_directory(access)}
    return {name: str(place.absolute()) for name, place in places.items()}


def vm_access(session: VcenterSession, vm_moref: str) -> VmAccess:
    """Access to a VM with the login and the certificate of the session."""
    settings = session.settings
    return VmAccess(
        server=settings.server,
        port=settings.port,
        user=session.user,
        password=settings.password,
        cookie=Secret.from_text(session.cookie) if settings.cookie else None,
        thumbprint=session.certificate_sha1,
        vm=vm_moref,
    )
