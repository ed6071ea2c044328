"""How to get at a VM, and at one of its disks, through VDDK."""

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
    """Which VM, and who we are at its server.

    `server` is the vCenter or ESXi host, `thumbprint` that of its certificate; `vm` a moref value such as "vm-16",
    empty where a call is about all VMs. Login is by `user` and `password`, or by the `cookie` of a vSphere session.
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
        """What it is about, for messages."""
        return f"the VM {self.vm}" if self.vm else self.server

    @property
    def is_remote(self) -> bool:
        """Whether there is a server to log in to."""
        return True

    def __post_init__(self) -> None:
        """Refuse what the library would not check: a missing string makes it crash."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"`{item.name}` of {self.subject!r} holds a NUL character.")
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
                        f"The {name} for {self.server} is empty or holds a NUL.", remedy=f"Check {secret}."
                    )
        return revealed

    def order(self) -> dict[str, object]:
        """What a child has to know of it, secrets included."""
        names = ("server", "port", "user", "thumbprint", "vm")
        return {**{name: getattr(self, name) for name in names}, **self.credentials()}

    def disk(self, path: str, snapshot: str | None) -> DiskAccess:
        """A disk of this VM, as `snapshot` holds it."""
        mine = {item.name: getattr(self, item.name) for item in fields(VmAccess)}
        return DiskAccess(path=path, snapshot=snapshot, **mine)


@dataclass(frozen=True, kw_only=True)
class DiskAccess(VmAccess):
    """Which disk, and how to get at it.

    `path`: "[datastore] folder/disk.vmdk" exactly as the snapshot's configuration names it, or an absolute
    path of a local VMDK when `vm` is empty. `snapshot`: a moref value such as "snapshot-456".
    """

    path: str
    snapshot: str | None = None

    @property
    def subject(self) -> str:
        return self.path

    @property
    def is_remote(self) -> bool:
        return bool(self.vm)

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
        if not self.is_remote and not Path(self.path).is_absolute():
            raise ConfigError(
                f"{self.path} is neither a disk of a VM nor an absolute path.",
                remedy="Give `vm`, the moref value of the VM, or the absolute path of a local VMDK.",
            )

    def order(self) -> dict[str, object]:
        return {**super().order(), "path": self.path, "snapshot": self.snapshot}
