"""Copy-DatastoreItem of PowerCLI.

PowerShell reads the script from its standard input, and the session's id is part of it: it is in no argument, no
environment, no file. Every text travels as Base64 of its UTF-8, so that nothing in a name can be taken for code,
whatever its quotes (PowerShell knows nine) and whatever encoding the console has. The script is one line, because
PowerShell runs standard input line by line and reports nothing about a line that it cannot parse.

The datastore is named by its id, because names may repeat in another datacenter and are patterns to PowerCLI. The
session stays open: it is ours, and Disconnect-VIServer would end it.

Sources: PowerShell, about_Pwsh (-Command -); VCF PowerCLI reference: Connect-VIServer (-Session), Get-Datastore
(-Id), New-PSDrive with the VimDatastore provider, Copy-DatastoreItem, Set-PowerCLIConfiguration
(InvalidCertificateAction).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from ..api.session import VcenterSession
from .external_tool import open_workplace
from .fetch import Fetched, ManifestPlace

_ARGUMENTS = ("-NoLogo", "-NoProfile", "-NonInteractive", "-Command", "-")
_MODULE = "VMware.VimAutomation.Core"


@dataclass(frozen=True)
class CopyDatastoreItem:
    """Download with Copy-DatastoreItem. `program`: PowerShell's name or path. Cancel: killed, directory removed.

    The server's certificate is verified, by the system's authorities on Windows; elsewhere by the pinned one or by
    `ca_file` where the session has them.
    """

    program: str = "pwsh"
    timeout_s: float = 180.0  # loading the modules alone may take half a minute

    @property
    def way(self) -> str:
        return "Copy-DatastoreItem"

    def effects(self) -> Sequence[str]:
        return [f"Hands the session to {self.program} on its standard input."]

    async def fetch(self, session: VcenterSession, place: ManifestPlace) -> Fetched:
        """Raises VsphereError, SourceError."""
        async with open_workplace(session, place) as workplace:
            if place.datastore is None:
                raise workplace.failed(
                    f"The datastore of {place.path} is none of the VM's, so that its id is unknown."
                )
            order = script(
                session.settings.server,
                session.settings.port,
                workplace.session_id,
                place.datastore,
                place.path.path,
                str(workplace.download),
            )
            environment = {"POWERSHELL_TELEMETRY_OPTOUT": "1", "POWERSHELL_UPDATECHECK": "Off"}
            if workplace.authorities is not None:
                environment["SSL_CERT_FILE"] = str(
                    workplace.authorities
                )  # read by .NET where TLS is OpenSSL's
            content = await workplace.run(
                self.program, _ARGUMENTS, order=order.encode("ascii"), environment=environment
            )
            return Fetched(content)


def script(server: str, port: int, session_id: str, datastore: str, path: str, target: str) -> str:
    """The line that copies the file at `path` of the datastore with moref `datastore` into directory `target`."""
    item = "[WildcardPattern]::Escape(" + _text("\\".join(["vadpipe:", *path.split("/")])) + ")"
    steps = [
        f"Import-Module {_MODULE} | Out-Null",
        "Set-PowerCLIConfiguration -Scope Session -InvalidCertificateAction Fail -Confirm:$false | Out-Null",
        f"$server = Connect-VIServer -Server {_text(server)} -Port {port} -Session {_text(session_id)}",
        f"$datastore = Get-Datastore -Server $server -Id {_text(f'Datastore-{datastore}')}",
        "New-PSDrive -Name vadpipe -PSProvider VimDatastore -Root '\\' -Location $datastore | Out-Null",
        f"Copy-DatastoreItem -Item ({item}) -Destination {_text(target)}",
        "exit 0",
    ]
    caught = "[Console]::Error.WriteLine($_.Exception.Message); exit 1"
    settings = "$ErrorActionPreference = 'Stop'; $ProgressPreference = 'SilentlyContinue'"
    return f"{settings}; try {{ {'; '.join(steps)} }} catch {{ {caught} }}\n"


def _text(value: str) -> str:
    encoded = base64.b64encode(value.encode()).decode()
    return f"([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('{encoded}')))"
