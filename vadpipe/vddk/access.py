"""Which VM, which disk, and the login: the input of VDDK's calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.secrets import Secret

# SHA-1 or SHA-256 of the certificate, hex pairs with colons between them.
_THUMBPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){19}((:[0-9A-Fa-f]{2}){12})?")


@dataclass(frozen=True, kw_only=True)
class VmAccess:
    """Which VM, and the login at its server.

    Args:
        server: The vCenter or ESXi host.
        port: Its HTTPS port.
        user: The user, also with a cookie.
        password: Either this or `cookie`.
        cookie: The cookie of a vSphere session.
        thumbprint: SHA-1 or SHA-256 of the server's certificate, hex pairs with colons.
        vm: A moref value such as "vm-16"; empty where a call is about all VMs.

    Raises:
        ConfigError: Something is missing or malformed.
    """

    server: str = ""
    port: int = 443
    user: str = ""
    password: Secret | None = None
    cookie: Secret | None = None
    thumbprint: str = ""
    vm: str = ""

    @property
    def subject(self) -> str:
        """The VM or server, for messages."""
        return f"the VM {self.vm}" if self.vm else self.server

    @property
    def is_remote(self) -> bool:
        """Whether there is a server to log in to."""
        return True

    def __post_init__(self) -> None:
        """Check what the library does not: a missing string makes it crash."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"`{item.name}` of {self.subject!r} contains a NUL character.")
        if self.is_remote:
            self._check_remote()

    def _check_remote(self) -> None:
        for name in ("server", "user"):
            if not getattr(self, name):
                raise ConfigError(f"VDDK needs `{name}` to open {self.subject}.", remedy=f"Give `{name}`.")
        if (self.password is None) == (self.cookie is None):
            raise ConfigError(
                f"VDDK needs either a password or a session cookie to open {self.subject}.",
                remedy="Give `password` or `cookie`, as a Secret.",
            )
        if self.thumbprint and not _THUMBPRINT.fullmatch(self.thumbprint):
            raise ConfigError(
                f"{self.thumbprint!r} is not a certificate thumbprint.",
                remedy="Write it as 20 (SHA-1) or 32 (SHA-256) hex pairs with colons, e.g. 'AB:12:...'.",
            )

    def credentials(self) -> dict[str, object]:
        """The secrets themselves. Raises ConfigError when one is missing or empty."""
        revealed: dict[str, object] = {"password": "", "cookie": ""}
        for name, secret in (("password", self.password), ("cookie", self.cookie)):
            if self.is_remote and secret is not None:
                revealed[name] = text = secret.reveal()
                if not text or "\0" in text:
                    raise ConfigError(
                        f"The {name} for {self.server} is empty or contains a NUL.", remedy=f"Check {secret}."
                    )
        return revealed

    def order(self) -> dict[str, object]:
        """The part of a child's order about the VM, secrets included."""
        names = ("server", "port", "user", "thumbprint", "vm")
        return {**{name: getattr(self, name) for name in names}, "datastore": "", **self.credentials()}

    def disk(self, path: str, snapshot: str | None) -> DiskAccess:
        """A disk of this VM in a snapshot."""
        mine = {item.name: getattr(self, item.name) for item in fields(VmAccess)}
        return DiskAccess(path=path, snapshot=snapshot, **mine)


@dataclass(frozen=True, kw_only=True)
class DiskAccess(VmAccess):
    """Which disk, and the login.

    A disk that belongs to no VM is opened by its `datastore` and `folder` in place of `vm`: VDDK 8.0.1 or later.
    This follows the release notes; nobody has verified it with the real library, least of all writing through it.

    Args:
        path: "[datastore] folder/disk.vmdk", exactly as the snapshot's configuration names it; or, when `vm` is
            empty, the absolute path of a local VMDK.
        snapshot: A moref value such as "snapshot-456".
        datastore: A moref value such as "datastore-11", of a disk without a VM.
        folder: Its folder on that datastore.
    """

    path: str
    snapshot: str | None = None
    datastore: str = ""
    folder: str = ""

    @property
    def subject(self) -> str:
        return self.path

    @property
    def is_remote(self) -> bool:
        return bool(self.vm or self.datastore)

    @classmethod
    def local(cls, path: str | Path) -> DiskAccess:
        """A VMDK in the file system of this machine."""
        return cls(path=str(path))

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "A VDDK disk needs a path.", remedy="Give `path`, e.g. '[ds1] web01/web01.vmdk'."
            )
        super().__post_init__()
        if self.datastore and (self.vm or self.snapshot or not self.folder):
            raise ConfigError(
                f"{self.path} is named by the datastore {self.datastore}, so it needs a folder, and neither a VM"
                " nor a snapshot.",
                remedy="Give `folder`, and leave `vm` and `snapshot` out; or leave `datastore` out.",
            )
        if not self.is_remote and not Path(self.path).is_absolute():
            raise ConfigError(
                f"{self.path} is neither a disk of a VM nor an absolute path.",
                remedy="Give `vm`, the moref value of the VM, or the absolute path of a local VMDK.",
            )

    def order(self) -> dict[str, object]:
        names = ("path", "snapshot", "datastore", "folder")
        return {**super().order(), **{name: getattr(self, name) for name in names}}
