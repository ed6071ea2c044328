"""Stand-in for PowerShell with PowerCLI: understands one script, and does with the lab what PowerCLI would."""

from __future__ import annotations

import base64
import os
import re
import ssl
import sys
from pathlib import Path
from urllib.parse import unquote

from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import newestVersions

from . import common

_ARGUMENTS = ["-NoLogo", "-NoProfile", "-NonInteractive", "-Command", "-"]
_TEXT = r"\(\[Text\.Encoding\]::UTF8\.GetString\(\[Convert\]::FromBase64String\('([A-Za-z0-9+/=]*)'\)\)\)"
# The statements of the script in their order, as regular expressions; each group is a text in Base64, or a port.
_STATEMENTS = (
    r"\$ErrorActionPreference = 'Stop'",
    r"\$ProgressPreference = 'SilentlyContinue'",
    r"try \{ Import-Module VMware\.VimAutomation\.Core \| Out-Null",
    r"Set-PowerCLIConfiguration -Scope Session -InvalidCertificateAction Fail -Confirm:\$false \| Out-Null",
    rf"\$server = Connect-VIServer -Server {_TEXT} -Port (\d+) -Session {_TEXT}",
    rf"\$datastore = Get-Datastore -Server \$server -Id {_TEXT}",
    r"New-PSDrive -Name vadpipe -PSProvider VimDatastore -Root '\\' -Location \$datastore \| Out-Null",
    rf"Copy-DatastoreItem -Item \(\[WildcardPattern\]::Escape\({_TEXT}\)\) -Destination {_TEXT}",
    r"exit 0 \} catch \{ \[Console\]::Error\.WriteLine\(\$_\.Exception\.Message\)",
    r"exit 1 \}",
)


def main() -> None:
    order = sys.stdin.buffer.read().decode("ascii")
    common.record(order)
    if sys.argv[1:] != _ARGUMENTS:
        common.refuse(f"arguments {sys.argv[1:]}")
    lines = order.splitlines()
    script = (
        re.fullmatch("; ".join(_STATEMENTS), lines[0]) if len(lines) == 1 and order.endswith("\n") else None
    )
    if script is None:
        common.refuse("the script is not the one that was agreed on")
    common.mood()
    server, session, identifier, item, target = (
        base64.b64decode(script[group], validate=True).decode() for group in (1, 3, 4, 5, 6)
    )
    drive, *segments = item.split("\\")
    if drive != "vadpipe:" or not Path(target).is_dir():
        common.refuse(f"item {item}, destination {target}")
    authorities = os.environ.get("SSL_CERT_FILE")
    stub = SoapStubAdapter(
        server,
        int(script[2]),
        version=newestVersions.GetName("vim"),
        sslContext=ssl.create_default_context(cafile=authorities),
    )
    stub.cookie = f'vmware_soap_session="{session}"'
    name, datacenter = _found(stub, identifier)
    common.download(
        Path(target) / segments[-1],
        server=server,
        port=int(script[2]),
        authorities=authorities,
        headers={"Cookie": stub.cookie},
        path="/".join(segments),
        dsName=name,
        dcPath=datacenter,
    )


def _found(stub: SoapStubAdapter, identifier: str) -> tuple[str, str]:
    """Name and datacenter path of the datastore with PowerCLI's identifier."""
    kind, _, moref = identifier.partition("-")
    if kind != "Datastore":
        common.refuse(f"identifier {identifier}")
    datastore = vim.Datastore(moref, stub)
    try:
        name, entity, names = datastore.name, datastore.parent, list[str]()
        while entity is not None and entity.parent is not None:
            if names or isinstance(entity, vim.Datacenter):
                names.insert(0, entity.name)
            entity = entity.parent
    except vim.fault.NotAuthenticated:
        print("Connect-VIServer: The session is not authenticated.", file=sys.stderr)
        sys.exit(1)
    return unquote(name), "/".join(names)
