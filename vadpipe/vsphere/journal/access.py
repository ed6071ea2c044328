"""Readers that do more at a server than read: locks and hot-added disks. And who we are for them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.secrets import Secret
from vadpipe.vddk.access import VmAccess
from vadpipe.vddk.disk import CleanedUp

from ..api.session import VcenterSession


@runtime_checkable
class AccessReader(Protocol):
    """A reader with VDDK's calls about a whole VM: `vadpipe.vddk.Vddk`. See there."""

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
    """An open disk that may have come to be attached to this machine: `vadpipe.vddk.VddkDisk`."""

    @property
    def may_be_attached(self) -> bool: ...


def library_of(reader: AccessReader, access: VmAccess) -> dict[str, str]:
    """What an intent has to say of the library, so that any later process can undo what this one did with it."""
    places = {"libdir": Path(reader.libdir), "tmp_directory": reader.tmp_directory(access)}
    return {name: str(place.absolute()) for name, place in places.items()}


def vm_access(session: VcenterSession, vm_moref: str) -> VmAccess:
    """How VDDK gets at a VM: with the login and the certificate of the session."""
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
